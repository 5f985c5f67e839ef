"""From what ``evaluate`` was given to a plan: every name looked up, every number checked, before any work is done."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from idsds.common import paths
from idsds.common.devices import PRECISIONS, check_precision, chosen_device
from idsds.common.hashing import OwnImages, own_digest
from idsds.common.interventions import BASELINES, patch_size
from idsds.common.registry import UnknownNameError
from idsds.datasets import DATASETS, as_image_dataset, fixed_order
from idsds.datasets.base import SPLITS, ImageDataset
from idsds.evaluation.plan import Job, Methods, Plan, Target, check_target, make_method, named_dataset, registered
from idsds.methods import METHODS, Method, Passes, split_name
from idsds.models import MODELS, create_model
from idsds.models.base import frozen
from idsds.protocols import PROTOCOLS, ProtocolEntry
from idsds.training.checkpoints import PRETRAINED, Stage, plan_training, published, starts_from_package, trains_from_scratch


def make_plan(
    models: Sequence[str] | Mapping[str, nn.Module | Stage],
    methods: Sequence[str] | Methods,
    dataset: str | Dataset,
    protocol: str,
    images: int,
    seeds: Sequence[int],
    *,
    checkpoints: Mapping[str, str | Path],
    device: str,
    precision: str,
    batch_size: int | None,
    shard: int,
    settings: Mapping[str, Any],
    split: str = "test",
    channels_last: bool = True,
    compiled: bool = False,
    target: Target = "label",
    elsewhere: bool = False,
) -> Plan:
    """Resolve and check everything that ``evaluate`` was given. Raises before any work is done; see :func:`idsds.evaluate`.

    ``elsewhere`` says that ``device`` stands for that of workers, which are still to be asked.
    """
    entry = PROTOCOLS[protocol]
    if entry.level != "image":
        raise ValueError(f"protocol {protocol!r} scores a method over a whole data set, not image by image: call {entry.call}")
    settings = protocol_settings(entry, settings)
    check_target(target)
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    for name, number in (("images", images), ("batch_size", batch_size), ("shard", shard)):
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, not {number!r}")
    device = chosen_device(device).type
    if not elsewhere:
        check_precision(precision, device)
    nets = _as_mapping("models", models, MODELS)
    wanted = _as_mapping("methods", methods, None)
    own_keys = {name: own_digest(thing) for name, thing in wanted.items() if thing is not None}
    if not isinstance(dataset, str):
        dataset = as_image_dataset(dataset)
        own_images = OwnImages(dataset)
        sides = dataset[0][0].shape[-2:]
    else:
        own_images = None
        sides = (DATASETS[dataset].image_size,) * 2
        if split not in SPLITS:
            raise UnknownNameError(f"split of {dataset!r}", split, SPLITS)
    settings["grid"] = _checked_grid(entry, settings["grid"], sides) if "grid" in settings else None
    settings = {name: value for name, value in settings.items() if name != "grid" or value is not None}
    if unused := [name for name in checkpoints if name not in nets]:
        raise UnknownNameError("model with a checkpoint", unused[0], nets)

    jobs = []
    for seed in seeds:
        for name, net in nets.items():
            source = _source(name, net, dataset, entry, seed, checkpoints, device, precision, settings)
            built = net.model if isinstance(net, Stage) else name if net is None else None  # the registry's name, where it has one
            fitting, excluded = _applicable(wanted, skeleton(built) if built else net, seed)
            where = (dataset, split, MODELS[built].normalisation if built else None) if isinstance(dataset, str) else dataset
            data = named_dataset(*where) if isinstance(where, tuple) else where
            ordered = data.image_ids if isinstance(data, ImageDataset) else [str(index) for index in range(len(data))]
            groups, passes = _groups(fitting, entry, settings)
            jobs.append(
                Job(
                    model=name,
                    seed=seed,
                    source=source,
                    wanted=wanted,
                    methods={m: wanted[m] for m in fitting},
                    excluded=excluded,
                    data=where,
                    indices=tuple(fixed_order(ordered)[:images]),
                    groups=groups,
                    passes=passes,
                    own_keys=own_keys,
                    own_images=own_images,
                )
            )
    left_out = [name for name in wanted if not any(name in job.methods for job in jobs)]
    if left_out:
        raise ValueError(f"method {left_out[0]!r} applies to none of the models: {jobs[0].excluded[left_out[0]]}")
    if images > (available := max(len(job.dataset) for job in jobs)):
        raise ValueError(f"images={images}, but this split has {available}")
    data_name = dataset if isinstance(dataset, str) else getattr(dataset, "name", "own")
    return Plan(tuple(jobs), entry, settings, data_name, device, precision, batch_size, shard, channels_last, compiled, target)


def protocol_settings(entry: ProtocolEntry, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a protocol with their defaults. Raises UnknownNameError for one that it does not take."""
    known: dict[str, Any] = {}
    for function in (entry.prepare, entry.function):
        for parameter in inspect.signature(function).parameters.values() if function else ():
            if parameter.kind is parameter.KEYWORD_ONLY and parameter.name != "seed":
                known.setdefault(parameter.name, parameter.default)
    for name in given:
        if name not in known and name not in ("grid", "baseline"):
            raise UnknownNameError(f"setting of protocol {entry.name!r}", name, known)
    if "baseline" in known:
        BASELINES[given.get("baseline", known["baseline"])]
    return {**known, **{name: value for name, value in given.items() if name in known}}


def _checked_grid(entry: ProtocolEntry, grid: Any, sides: Sequence[int]) -> Any:
    """One grid as a number, several as a tuple. Raises ValueError for a grid that does not divide the image, or too many of them."""
    if not isinstance(grid, (list, tuple)):
        patch_size(*sides, grid)
        return grid
    if entry.prepare is None:
        raise ValueError(f"protocol {entry.name!r} takes one grid, not {list(grid)}: its maps' passes depend on it")
    if not grid or len(set(grid)) < len(grid):
        raise ValueError(f"grid must be a number or a list of different numbers, not {list(grid)}")
    for each in grid:
        patch_size(*sides, each)
    return tuple(grid) if len(grid) > 1 else grid[0]


def _as_mapping(what: str, given: Any, registry: Any) -> dict[str, Any]:
    """A list of names as a mapping from name to None, a mapping as it is."""
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise TypeError(f"{what} must be a list of names or a mapping from name to {what[:-1]}, not {given!r}")
    found = dict(given) if isinstance(given, Mapping) else dict.fromkeys(given)
    if not found:
        raise ValueError(f"{what} is empty")
    if not isinstance(given, Mapping) and len(found) < len(list(given)):
        raise ValueError(f"{what} lists a name more than once: {list(given)}")
    for name, thing in found.items():
        if not isinstance(name, str):
            raise TypeError(f"{what} must be named by strings, not by {name!r}")
        if thing is None and registry is not None:
            registry[name]
        elif what == "methods" and (known := registered(name, thing)) is not None:
            split_name(known[0])
        elif what == "models" and not isinstance(thing, (nn.Module, Stage)):
            raise TypeError(f"model {name!r} must be a torch.nn.Module, not {type(thing).__name__}")
    return found


def _source(
    name: str,
    net: nn.Module | Stage | None,
    dataset: str | Dataset,
    entry: ProtocolEntry,
    seed: int,
    checkpoints: Mapping[str, str | Path],
    device: str,
    precision: str,
    settings: Mapping[str, Any],
) -> Stage | Path | nn.Module:
    if net is not None:
        return net
    packaged = isinstance(dataset, str) and starts_from_package(name, dataset)
    if packaged or checkpoints.get(name) == PRETRAINED:
        if not isinstance(dataset, str):
            raise ValueError(f"checkpoints: 'pretrained' goes with a data set by name; pass the net itself for your own: {{{name!r}: net}}")
        if packaged and entry.in_domain and name not in checkpoints:
            return plan_training(name, dataset, weights=PRETRAINED, seed=seed, device=device, precision=precision, **_deletion(settings))
        return published(name, dataset, device=device, precision=precision)
    if name in checkpoints:
        path = paths.resolve(checkpoints[name])
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint of {name!r} at {str(path)!r}")
        return path
    if isinstance(dataset, str) and trains_from_scratch(name, dataset):
        options = {"seed": seed, "device": device, "precision": precision, **_deletion(settings)}
        return plan_training(name, dataset, in_domain=entry.in_domain, **options)
    where = dataset if isinstance(dataset, str) else "your own data set"
    raise ValueError(
        f"there is no checkpoint of {name!r} for {where}: name one with checkpoints={{{name!r}: path}}, or fine-tune one first "
        "(notebooks/finetune.ipynb). Only mini_* models are trained on the fly, on images of 32 x 32"
    )


def _deletion(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The grid (of several the first) and the baseline that a net is fine-tuned with."""
    found = {key: settings[key] for key in ("grid", "baseline") if key in settings}
    return {key: value[0] if isinstance(value, tuple) else value for key, value in found.items()}


def skeleton(name: str) -> nn.Module:
    """A net of the registry without memory for its weights: enough to ask which methods apply."""
    try:
        with torch.device("meta"):
            return create_model(name)
    except RuntimeError:  # a net that reads its weights while it is built, which those without memory cannot give
        return create_model(name)


def _applicable(wanted: Methods, model: nn.Module, seed: int) -> tuple[dict[str, Method], dict[str, str]]:
    fitting, excluded = {}, {}
    for name, given in wanted.items():
        found = registered(name, given)
        reason = None if found is None else METHODS[split_name(found[0])[0]].inapplicable(model)
        if reason:
            excluded[name] = reason
        else:
            fitting[name] = make_method(name, given, model, seed)
    return fitting, excluded


def _groups(
    methods: Mapping[str, Method], entry: ProtocolEntry, settings: Mapping[str, Any]
) -> tuple[tuple[tuple[str, ...], ...], tuple[Passes | None, ...]]:
    """Methods that fall out of one computation, and its passes per image (None where unknown)."""
    groups: dict[Any, list[Method]] = {}
    for method in methods.values():
        groups.setdefault(method.computation, []).append(method)
    one = {**settings, "grid": settings["grid"][0]} if isinstance(settings.get("grid"), tuple) else settings  # the maps serve all grids
    passes = [None if members[0].entry.passes is None else entry.passes(members, **one) for members in groups.values()]
    return tuple(tuple(method.name for method in members) for members in groups.values()), tuple(passes)


def as_seeds(seed: int | Sequence[int]) -> list[int]:
    """One seed or several as a list. Raises TypeError or ValueError for none, one twice, and what is no whole number."""
    seeds = [seed] if isinstance(seed, int) else list(seed) if isinstance(seed, (list, tuple, range)) else None
    if seeds is None or any(not isinstance(each, int) or isinstance(each, bool) for each in seeds):
        raise TypeError(f"seed must be a whole number or a list of them, not {seed!r}")
    if not seeds:
        raise ValueError("seed is empty: name at least one")
    if twice := [each for each, count in Counter(seeds).items() if count > 1]:
        raise ValueError(f"seed lists {twice[0]} more than once")
    return seeds


def check_images(plan: Plan) -> None:
    """Raise ValueError for a user's data set in which two of the images asked for have one id: their records would be one."""
    for job in _once(plan.jobs, lambda job: id(job.data)):
        if job.own_images is None:
            continue
        if isinstance(job.dataset, ImageDataset):
            ids = [job.dataset.image_ids[index] for index in job.indices]
        else:
            ids = [job.own_images[index][0] for index in job.indices]
        if twice := [image_id for image_id, count in Counter(ids).items() if count > 1]:
            raise ValueError(f"{len(twice)} image id(s) of the data set are there more than once, the first is {twice[0]!r}")


def check_jobs(plan: Plan, numbers: Iterable[int]) -> None:
    """Load checkpoint files, and compare the targets with the logits of what is going to run.

    Args:
        plan: the whole evaluation.
        numbers: the jobs that have something to compute. A net of the user's sees one image.

    Raises:
        CheckpointError: a file that does not fit its model, naming both.
        ValueError: a net that does not return logits (B, K), or a label to explain that is not below K.
    """
    jobs = [plan.jobs[number] for number in numbers]
    for job in _once(jobs, lambda job: (job.model, id(job.source) if isinstance(job.source, nn.Module) else str(job.source))):
        classes = _classes(job)
        if plan.target == "prediction":
            continue  # no label is used
        targets = job.dataset.targets if isinstance(job.dataset, ImageDataset) else None
        for index in job.indices:
            target = targets[index] if targets is not None else job.own_images[index][1]  # type: ignore[index]
            if not 0 <= target < classes:
                raise ValueError(f"the target of image {_id(job, index)!r} is {target}, but {job.model!r} has {classes} classes")


def _classes(job: Job) -> int:
    """K of the model."""
    if isinstance(job.source, Stage):
        return job.source.num_classes
    if isinstance(job.source, Path):
        job.load()  # does it fit?
        return getattr(job.dataset, "num_classes", None) or MODELS[job.model].num_classes
    item = next((item for item in map(job.dataset.__getitem__, job.indices) if item is not None), None)
    if item is None:
        raise ValueError(f"none of the {len(job.indices)} images can be read")
    where = next((tensor.device for tensor in (*job.source.parameters(), *job.source.buffers())), torch.device("cpu"))
    with frozen(job.source), torch.no_grad():
        logits = job.source(item[0][None].to(where))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 1:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{job.model!r} must return logits (B, K); for a batch of one image it returns {given}")
    return logits.shape[1]


def _id(job: Job, index: int) -> str:
    return job.dataset.image_ids[index] if isinstance(job.dataset, ImageDataset) else job.own_images[index][0]  # type: ignore[index]


def _once(jobs: Iterable[Job], key: Callable[[Job], Hashable]) -> list[Job]:
    return list({key(job): job for job in jobs}.values())
