"""From what ``evaluate`` was given to a plan: every name looked up, every number checked, before any work is done."""

from __future__ import annotations

import inspect
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from idsds.common import paths
from idsds.common.devices import PRECISIONS, check_precision, chosen_device
from idsds.common.hashing import OwnImages, own_digest
from idsds.common.interventions import BASELINES, patch_size, shifted
from idsds.common.normalisation import as_normalisation
from idsds.common.numbers import as_whole, plain
from idsds.common.registry import UnknownNameError
from idsds.datasets import DATASETS, as_image_dataset, fixed_order
from idsds.datasets.base import SPLITS, ImageDataset
from idsds.datasets.decoded import Decoded
from idsds.evaluation.checks import check_stored, doubt, not_in_domain, unexplained, unfit
from idsds.evaluation.plan import Job, Methods, Plan, Target, check_target, make_method, named_dataset, registered
from idsds.methods import METHODS, Method, Passes, split_name
from idsds.methods.binding import bound_elsewhere
from idsds.methods.own import as_stored
from idsds.models import MODELS, authors, create_model
from idsds.models.inspection import Facts, as_net, examined, two_images
from idsds.models.quantity import as_quantity
from idsds.protocols import PROTOCOLS, ProtocolEntry
from idsds.training.checkpoints import PRETRAINED, Stage, plan_training, published, starts_from_package, trains_from_scratch
from idsds.training.recipes import Deletion

#: Images that are judged where nobody says how many.
DEFAULT_IMAGES = 200


@dataclass(frozen=True)
class Arguments:
    """What :func:`idsds.evaluate` was given, as far as a plan depends on it; see there for what each means.

    Args:
        settings: of the protocol, grid and baseline among them.
        elsewhere: whether ``device`` stands for that of workers, which are still to be asked.
    """

    models: Sequence[str] | Mapping[str, nn.Module | Stage]
    methods: Sequence[str] | Methods
    dataset: str | Dataset = "mnist5k"
    protocol: str = "idsds"
    images: int | None = None
    seeds: Sequence[int] = (0,)
    settings: Mapping[str, Any] = field(default_factory=dict)
    checkpoints: Mapping[str, str | Path] = field(default_factory=dict)
    device: str = "auto"
    precision: str = "32-true"
    batch_size: int | None = None
    shard: int = 256
    split: str = "test"
    channels_last: bool = True
    compiled: bool = False
    workers: int | None = None
    target: Target = "label"
    quantity: Any = None
    elsewhere: bool = False
    normalisation: Any = None

    def check(self) -> None:
        """Raise UnknownNameError, TypeError or ValueError for what can be seen to be wrong without looking at anything else."""
        check_target(self.target)
        if self.quantity is not None:
            as_quantity(self.quantity)
        if self.precision not in PRECISIONS:
            raise UnknownNameError("precision", self.precision, PRECISIONS)
        as_normalisation(self.normalisation)
        if isinstance(self.dataset, str) and self.split not in SPLITS:
            DATASETS[self.dataset]
            raise UnknownNameError(f"split of {self.dataset!r}", self.split, SPLITS)


def make_plan(given: Arguments) -> Plan:
    """Resolve and check everything that ``evaluate`` was given. Raises before any work is done; see :func:`idsds.evaluate`."""
    entry = PROTOCOLS[given.protocol]
    if entry.level != "image":
        raise ValueError(f"protocol {given.protocol!r} scores a method over a whole data set, not image by image: call {entry.call}")
    given.check()
    quantity = None if given.quantity is None else as_quantity(given.quantity)
    read = {} if quantity is None else {"quantity": "logit"}  # what the net returns is read as it is
    settings = protocol_settings(entry, given.settings)
    settings |= {name: value for name, value in read.items() if name in settings}
    given = replace(given, quantity=quantity)
    numbers = {name: getattr(given, name) for name in ("images", "batch_size", "shard")}
    numbers = {name: number if number is None else as_whole(name, number) for name, number in numbers.items()}
    given = replace(given, device=chosen_device(given.device).type, **numbers)
    if not given.elsewhere:
        check_precision(given.precision, given.device)
    nets = {name: as_net(name, net) for name, net in _as_mapping("models", given.models, MODELS).items()}
    wanted = {name: as_stored(name, thing) for name, thing in _as_mapping("methods", given.methods, None).items()}
    own_images = None
    if isinstance(given.dataset, str):
        sides = (DATASETS[given.dataset].image_size,) * 2
        if given.normalisation is not None and (named := [name for name, net in nets.items() if not isinstance(net, nn.Module)]):
            raise ValueError(f"normalisation={given.normalisation!r} contradicts model {named[0]!r}, which has one of its own")
    else:
        given = replace(given, dataset=as_image_dataset(given.dataset, labels=given.target == "label", normalisation=given.normalisation))
        decoded = Decoded(given.dataset)
        if not isinstance(given.dataset, ImageDataset):  # ids and targets of the package's come without their images
            given = replace(given, dataset=decoded)
        own_images, sides = OwnImages(decoded), two_images(given.dataset, range(len(given.dataset))).shape[-2:]
    if "grid" in settings:
        settings["grid"] = _checked_grid(entry, settings["grid"], sides)
        for grid in settings["grid"] if isinstance(settings["grid"], tuple) else [settings["grid"]]:
            shifted(*sides, grid, settings.get("offset", 0))
    if unused := [name for name in given.checkpoints if name not in nets]:
        raise UnknownNameError("model with a checkpoint", unused[0], nets)
    own_keys = {name: own_digest(thing) for name, thing in wanted.items() if thing is not None}
    look = _Look(replace(given, models=nets, methods=wanted, settings=settings), entry)
    jobs = tuple(
        replace(look.job(name, net, seed), own_keys=own_keys, own_images=own_images) for seed in given.seeds for name, net in nets.items()
    )
    if left_out := [name for name in wanted if not any(name in job.methods for job in jobs)]:
        raise ValueError(f"method {left_out[0]!r} applies to none of the models: {jobs[0].excluded[left_out[0]]}")
    if entry.parts and any(getattr(job.dataset, "parts", None) is None for job in jobs):
        raise ValueError(f"protocol {entry.name!r} removes known parts, which this data set lacks: take 'funnybirds' or 'sprites'")
    if given.images is not None and given.images > (available := max(len(job.dataset) for job in jobs)):
        raise ValueError(f"images={given.images}, but this split has {available}")
    return Plan(
        jobs=jobs,
        protocol=entry,
        settings=settings,
        dataset=given.dataset if isinstance(given.dataset, str) else getattr(given.dataset, "name", "own"),
        device=given.device,
        precision=given.precision,
        batch_size=given.batch_size,
        shard=given.shard,
        channels_last=given.channels_last,
        compiled=given.compiled,
        workers=_workers(given),
        target=given.target,
        quantity=None if quantity is None or quantity.kind == "logit" else quantity,
        notes=tuple(look.notes),
    )


def _workers(given: Arguments) -> int:
    """How many processes read ahead. A user's data set may hold what another process must not touch, so it has to be asked for."""
    if given.workers is not None:
        return as_whole("workers", given.workers, least=0)
    return min(8, os.cpu_count() or 1) if given.device == "cuda" and isinstance(given.dataset, str) else 0


class _Look:
    """Makes the jobs; each net of the user's is looked at once, however many seeds there are."""

    def __init__(self, given: Arguments, entry: ProtocolEntry) -> None:
        self.given, self.entry = given, entry
        self.own = {name: net for name, net in given.models.items() if isinstance(net, nn.Module)}  # type: ignore[union-attr]
        self.known: dict[str, tuple[Facts, dict[str, str]]] = {}
        self.notes: dict[str, None] = {}

    def job(self, name: str, net: nn.Module | Stage | None, seed: int) -> Job:
        """One model with one training seed."""
        given, dataset, settings = self.given, self.given.dataset, self.given.settings
        methods = _for_model(given.methods, name, list(given.models))
        source = _source(name, net, dataset, self.entry, seed, given.checkpoints, given.device, given.precision, settings)
        built = net.model if isinstance(net, Stage) else name if net is None else None  # the registry's name, where it has one
        space = MODELS[built].normalisation if built else as_normalisation(given.normalisation)
        where = (dataset, given.split, space, MODELS[built].view if built else None) if isinstance(dataset, str) else dataset
        data = named_dataset(*where) if isinstance(where, tuple) else where
        if getattr(data, "view", None) is not None and "grid" in settings:  # of another size than the data set's own, perhaps
            _checked_grid(self.entry, settings["grid"], data.view[:1] * 2)
        ids = data.image_ids if isinstance(data, ImageDataset) else [str(index) for index in range(len(data))]
        indices = tuple(fixed_order(ids)[: given.images or DEFAULT_IMAGES])
        fitting, excluded, bound = _applicable(methods, skeleton(built) if built else net, seed, self.own.values())
        if name in self.own:
            bound |= {m: reason for m, reason in self._unfit(name, fitting, methods, data, indices).items() if m in fitting}
            fitting = {m: method for m, method in fitting.items() if m not in bound}
            self.notes |= dict.fromkeys(filter(None, (doubt(m, methods[m], name, net) for m in fitting)))
        self.notes |= dict.fromkeys(f"method {m!r} is left out for model {name!r}: {reason}" for m, reason in bound.items())
        if given.quantity is not None:
            excluded |= unexplained(given.quantity, fitting, methods)
            fitting = {m: method for m, method in fitting.items() if m not in excluded}
        groups, passes = _groups(fitting, self.entry, settings)
        return Job(
            model=name,
            seed=seed,
            source=source,
            wanted=methods,
            methods={method: methods[method] for method in fitting},
            excluded=excluded | bound,
            data=where,
            indices=indices,
            groups=groups,
            passes=passes,
            families={method: made.entry.family for method, made in fitting.items()},
            queried={method: made.entry.queries(**made.options) for method, made in fitting.items()},
            facts=self.known[name][0] if name in self.own else None,
        )

    def _unfit(
        self, name: str, fitting: Mapping[str, Method], methods: Mapping[str, Any], data: Dataset, indices: Sequence[int]
    ) -> dict[str, str]:
        """The methods that do not fit a net of the user's, with the reason, from a look at two images."""
        given, net = self.given, self.own[name]
        if name not in self.known:
            pair = two_images(data, indices)
            facts = examined(name, net, pair, given.device, given.channels_last)
            self.known[name] = facts, unfit(fitting, methods, facts, net, pair, given.device)
            self.notes |= dict.fromkeys([*facts.notes, *filter(None, [not_in_domain(name, net, self.entry, given.settings)])])
        return self.known[name][1]


def _for_model(methods: Mapping[str, Any], model: str, models: Sequence[str]) -> dict[str, Any]:
    """The methods as one model gets them: an option ``layer`` that is a mapping names the layer by model.

    Raises UnknownNameError for a model that is not judged.
    """
    mine = dict(methods)
    for name, value in methods.items():
        options = value[1] if isinstance(value, tuple) and len(value) == 2 else None
        if isinstance(options, Mapping) and isinstance(layers := options.get("layer"), Mapping):
            for other in layers:
                if other not in models:
                    raise UnknownNameError(f"model with a layer of {name!r}", other, models)
            rest = {key: option for key, option in options.items() if key != "layer"}
            mine[name] = (value[0], rest | ({"layer": layers[model]} if model in layers else {}))
    return mine


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
    return {**known, **{name: plain(value) for name, value in given.items() if name in known}}


def _checked_grid(entry: ProtocolEntry, grid: Any, sides: Sequence[int]) -> Any:
    """One grid as a number, several as a tuple. Raises ValueError for a grid that does not divide the image, or too many of them."""
    if not isinstance(grid, (list, tuple, range, np.ndarray)):
        patch_size(*sides, grid)
        return grid
    grid = [plain(each) for each in grid]
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
            return plan_training(
                name, dataset, _deletion(settings, entry), weights=PRETRAINED, seed=seed, device=device, precision=precision
            )
        return published(name, dataset, device=device, precision=precision)
    if name in checkpoints:
        path = paths.resolve(checkpoints[name])
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint of {name!r} at {str(path)!r}")
        return path
    if isinstance(dataset, str) and trains_from_scratch(name, dataset):
        deletion = _deletion(settings, entry) if entry.in_domain else None
        return plan_training(name, dataset, deletion, seed=seed, device=device, precision=precision)
    in_paper = dataset == "imagenet" and entry.in_domain and _deletion(settings, entry) == Deletion(**authors.SETTINGS)
    if in_paper and authors.file_of(name).is_file():
        return authors.file_of(name)
    where = dataset if isinstance(dataset, str) else "your own data set"
    theirs = f"put the authors' {authors.file_of(name).name!r} ({authors.REPOSITORY}) into {str(authors.folder())!r}, " if in_paper else ""
    raise ValueError(
        f"there is no checkpoint of {name!r} for {where}: {theirs}name one with checkpoints={{{name!r}: path}}, or fine-tune one first "
        "(notebooks/finetune.ipynb). Only mini_* models are trained on the fly, on images of 32 x 32"
    )


def _deletion(settings: Mapping[str, Any], entry: ProtocolEntry) -> Deletion:
    """The grid (of several the first) and the baseline that a net is fine-tuned with."""
    found = {key: settings[key] for key in ("grid", "baseline") if key in settings}
    found = {key: value[0] if isinstance(value, tuple) else value for key, value in found.items()}
    return Deletion(**found, share=entry.masked_share)


def skeleton(name: str) -> nn.Module:
    """A net of the registry without memory for its weights: enough to ask which methods apply."""
    try:
        with torch.device("meta"):
            return create_model(name)
    except RuntimeError:  # a net that reads its weights while it is built, which those without memory cannot give
        return create_model(name)


def _applicable(
    wanted: Methods, model: nn.Module, seed: int, judged: Iterable[nn.Module]
) -> tuple[dict[str, Method], dict[str, str], dict[str, str]]:
    """The methods that apply to a model; why others never do; and why others do not as they are asked for, which is to be said."""
    fitting, excluded, bound = {}, {}, {}
    for name, given in wanted.items():
        found = registered(name, given)
        unasked = bound_elsewhere(given, model, judged) if found is None else _no_layer(model, found[1].get("layer"))
        if found is not None and (reason := METHODS[split_name(found[0])[0]].inapplicable(model)):
            excluded[name] = reason
        elif unasked:
            bound[name] = unasked
        else:
            fitting[name] = make_method(name, given, model, seed)
    return fitting, excluded, bound


def _no_layer(model: nn.Module, layer: object) -> str | None:
    """Why a layer that an option names cannot be read; None where it is there, or none is named."""
    modules = [name for name, _ in model.named_modules() if name]
    return None if layer is None or layer in modules else str(UnknownNameError("layer", layer, modules))


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
    seed = plain(seed)
    try:
        seeds = [as_whole("seed", each, least=None) for each in ([seed] if isinstance(seed, (int, float, str)) else seed)]
    except (TypeError, ValueError) as error:
        raise TypeError(f"seed must be a whole number or a list of them, not {seed!r}") from error
    if not seeds:
        raise ValueError("seed is empty: name at least one")
    if twice := [each for each, count in Counter(seeds).items() if count > 1]:
        raise ValueError(f"seed lists {twice[0]} more than once")
    return seeds


def check_images(plan: Plan) -> None:
    """Raise ValueError for a user's data set in which two of the images asked for have one id: their records would be one."""
    for job in _once(plan.jobs, lambda job: id(job.data)):
        for name, given in job.methods.items():
            check_stored(name, given, job.ids(job.indices))
        if job.own_images is None:
            continue
        if twice := [image_id for image_id, count in Counter(job.ids(job.indices)).items() if count > 1]:
            raise ValueError(f"{len(twice)} image id(s) of the data set are there more than once, the first is {twice[0]!r}")


def check_jobs(plan: Plan, numbers: Iterable[int]) -> None:
    """Load checkpoint files, and compare the targets with the logits of what is going to run.

    Args:
        plan: the whole evaluation.
        numbers: the jobs that have something to compute.

    Raises:
        CheckpointError: a file that does not fit its model, naming both.
        ValueError: a label to explain that is not below K.
    """
    jobs = [plan.jobs[number] for number in numbers]
    for job in _once(jobs, lambda job: (job.model, id(job.source) if isinstance(job.source, nn.Module) else str(job.source))):
        classes = _classes(job)
        if plan.quantity is not None and (plan.quantity.against or 0) >= classes:
            raise ValueError(f"quantity: {plan.quantity}, but {job.model!r} has {classes} classes, 0 to {classes - 1}")
        if plan.target == "prediction":
            continue  # no label is used
        images = job.images(job.indices).values() if job.own_images is not None else job.indices
        for index, target, key in zip(job.indices, job.targets(job.indices), images, strict=True):
            if key == "":
                continue  # it cannot be read, and has no label
            if not 0 <= target < classes:
                raise ValueError(f"the target of image {job.ids([index])[0]!r} is {target}, but {job.model!r} has {classes} classes")


def _classes(job: Job) -> int:
    """K of the model."""
    if isinstance(job.source, Stage):
        return job.source.num_classes
    if isinstance(job.source, Path):
        job.load()  # does it fit?
        return getattr(job.dataset, "num_classes", None) or MODELS[job.model].num_classes
    assert job.facts is not None  # of every net of the user's
    return job.facts.classes


def _once(jobs: Iterable[Job], key: Callable[[Job], Hashable]) -> list[Job]:
    return list({key(job): job for job in jobs}.values())
