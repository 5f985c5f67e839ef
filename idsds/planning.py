"""What an evaluation will do: everything is resolved, checked, addressed and counted before any of it is done."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.utils.data import Dataset

from idsds.addresses import code_digest, data_digest, file_digest, own_digest
from idsds.datasets import DATASETS, as_image_dataset, create_dataset, fixed_order
from idsds.datasets.base import SPLITS, ImageDataset
from idsds.interventions import BASELINES, patch_size
from idsds.methods import METHODS, Method, Passes, as_method, split_name
from idsds.models import MODELS, create_model
from idsds.models.base import Normalisation
from idsds.protocols import PROTOCOLS, ProtocolEntry
from idsds.registry import UnknownNameError
from idsds.settings import PRECISIONS, chosen_device
from idsds.stages import Stage, obtain, plan_training, trains_from_scratch
from idsds.store import digest, versions

Methods = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One model with one training seed, and the methods that apply to it.

    Args:
        model: its name in the records.
        seed: of training, noise and masks.
        source: a stage of training, a checkpoint file, or the user's net as it is.
        wanted: the methods that were asked for, by name: None for a method of the registry, else the user's own.
        methods: those of them that apply to the model.
        excluded: methods that do not apply, with the reason.
        data: the images, in the space that the model wants: the user's, or (name, split, normalisation) of the registry's.
        indices: which of them, in the fixed order.
        groups: methods that share a computation.
        passes: passes per image of each group.
        own_keys: hashes of the user's own methods.
    """

    model: str
    seed: int
    source: Stage | Path | nn.Module
    wanted: Methods
    methods: Methods
    excluded: Mapping[str, str]
    data: Dataset | tuple[str, str, Normalisation | None]
    indices: tuple[int, ...]
    groups: tuple[tuple[str, ...], ...]
    passes: tuple[Passes | None, ...]
    own_keys: Mapping[str, str] = field(default_factory=dict)

    @property
    def dataset(self) -> Dataset:
        """The images. Those of the registry are loaded where they are needed, and not sent from process to process."""
        return named_dataset(*self.data) if isinstance(self.data, tuple) else self.data

    @cached_property
    def model_key(self) -> str:
        """The address of the net: its weights and the code that it is built by."""
        if isinstance(self.source, nn.Module):
            return own_digest(self.source)
        weights = self.source.key if isinstance(self.source, Stage) else file_digest(self.source)
        return digest([weights, code_digest(MODELS[self.model].build)])

    def data_key(self, indices: Sequence[int]) -> str:
        """The address of some of the images."""
        return data_digest(self.dataset, indices, named=isinstance(self.data, tuple))

    def method_key(self, name: str) -> str:
        """The address of a method's computation: its code, options and noise."""
        if name in self.own_keys:
            return self.own_keys[name]
        entry = METHODS[split_name(name)[0]]
        return digest([code_digest(entry.function), own_digest(entry.settings()), entry.noise])

    def prepare(self, progress: bool = True) -> None:
        """Train what is not cached."""
        if isinstance(self.source, Stage) and self.source.missing:
            obtain(self.source, progress=progress)

    def load(self) -> nn.Module:
        """The model in eval mode on the CPU."""
        if isinstance(self.source, Stage):
            return obtain(self.source, progress=False)
        if isinstance(self.source, Path):
            num_classes = getattr(self.dataset, "num_classes", None)
            return create_model(self.model, num_classes=num_classes, checkpoint=self.source)
        return self.source

    def create_methods(self, model: nn.Module, names: Sequence[str]) -> list[Method]:
        """The methods named, on the loaded model."""
        return [make_method(name, self.methods.get(name), model, self.seed) for name in names]


@dataclass(frozen=True)
class Plan:
    """A whole evaluation: jobs, protocol and settings.

    Args:
        jobs: one per model and training seed.
        protocol: the registry's entry.
        settings: the protocol's settings: grid, baseline and what else it takes.
        dataset: the data set's name.
        device, precision, channels_last, compiled, batch_size, shard: how it is computed.
    """

    jobs: tuple[Job, ...]
    protocol: ProtocolEntry
    settings: Mapping[str, Any]
    dataset: str
    device: str
    precision: str
    batch_size: int | None
    shard: int
    channels_last: bool = True
    compiled: bool = False

    @property
    def grids(self) -> list[dict[str, Any]]:
        """The settings with one grid at a time."""
        grid = self.settings.get("grid")
        return [{**self.settings, "grid": each} for each in grid] if isinstance(grid, tuple) else [dict(self.settings)]

    def prepare_passes(self, settings: Mapping[str, Any]) -> Passes:
        """Passes per image of the method-independent columns for one grid."""
        return self.protocol.prepare_passes(**settings) if self.protocol.prepare else Passes(0)

    def address(self, job: Job, data: str, indices: Sequence[int], group: Sequence[str]) -> str:
        """The address of the records of one shard and group of methods; ``data`` is the address of the images."""
        content = self._shared(job, data, indices, dict(self.settings))
        content |= {"protocol": [self.protocol.name, code_digest(self.protocol.function)], "computation": job.method_key(group[0])}
        return digest(content)

    def prepared_address(self, job: Job, data: str, indices: Sequence[int], settings: Mapping[str, Any]) -> str:
        """The address of the method-independent columns of one shard: of no more than their function and what it takes."""
        prepare = self.protocol.prepare
        taken = {name: settings[name] for name in inspect.signature(prepare).parameters if name in settings}
        return digest({**self._shared(job, data, indices, taken), "prepare": code_digest(prepare)})

    def _shared(self, job: Job, data: str, indices: Sequence[int], settings: dict[str, Any]) -> dict[str, Any]:
        """What determines every number. Batch size is not in it: it changes scores by rounding, and is chosen by memory."""
        return {
            "model": job.model_key,
            "data": data,
            "indices": list(indices),
            "seed": job.seed,
            "settings": own_digest(sorted(settings.items())),
            "numerics": [self.device, self.precision, self.channels_last, self.compiled],
            "versions": {name: versions()[name] for name in ("idsds", "torch", "captum", "torchcam")},
        }

    def table(self) -> pd.DataFrame:
        """What will be done, one row per model, seed and shared computation.

        Columns: model, seed, work, images, forward and backward (passes in all), epochs (of training that is not cached), note.
        Passes are <NA> for the user's own methods: nobody knows before.
        """
        rows: list[dict[str, Any]] = []
        for job in self.jobs:
            shared = {"model": job.model, "seed": job.seed, "images": len(job.indices)}
            for stage in job.source.missing if isinstance(job.source, Stage) else []:
                what = "train" if stage.deletion is None else "fine-tune in-domain"
                rows.append({**shared, "work": what, "images": stage.train_images, "epochs": stage.recipe.epochs})
            prepared = sum((self.prepare_passes(settings) for settings in self.grids), Passes(0))
            counted: list[tuple[str, Passes | None]] = [("deletions" if self.protocol.prepare else "", prepared)]
            counted += [(", ".join(group), passes) for group, passes in zip(job.groups, job.passes, strict=True)]
            for work, passes in counted:
                if work:
                    forward, backward = (pd.NA, pd.NA) if passes is None else passes.times(len(job.indices))
                    rows.append({**shared, "work": work, "forward": forward, "backward": backward})
            for name, reason in job.excluded.items():
                rows.append({**shared, "work": name, "images": 0, "forward": 0, "backward": 0, "note": f"left out: {reason}"})
        columns = ["model", "seed", "work", "images", "epochs", "forward", "backward", "note"]
        table = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[3:7], "Int64"))
        return table.assign(note=table["note"].astype(object).fillna(""))

    @property
    def methods(self) -> list[str]:
        """All methods, in the order in which they were asked for."""
        return [name for name in self.jobs[0].wanted if any(name in job.methods for job in self.jobs)]

    @property
    def announced(self) -> Passes:
        """Forward and backward passes of all models; those of the user's own methods are not known and not counted."""
        table = self.table()
        return Passes(int(table["forward"].sum()), int(table["backward"].sum()))


def make_plan(
    models: Sequence[str] | Mapping[str, nn.Module],
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
) -> Plan:
    """Resolve and check everything that ``evaluate`` was given. Raises before any work is done; see :func:`idsds.evaluate`."""
    entry = PROTOCOLS[protocol]
    settings = protocol_settings(entry, settings)
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    for name, number in (("images", images), ("batch_size", batch_size), ("shard", shard)):
        if number is not None and (not isinstance(number, int) or isinstance(number, bool) or number < 1):
            raise ValueError(f"{name} must be a whole number of at least 1, not {number!r}")
    device = chosen_device(device).type
    nets = _as_mapping("models", models, MODELS)
    wanted = _as_mapping("methods", methods, None)
    own_keys = {name: own_digest(thing) for name, thing in wanted.items() if thing is not None}
    if not isinstance(dataset, str):
        dataset = as_image_dataset(dataset)
        sides = dataset[0][0].shape[-2:]
    else:
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
            skeleton = net if net is not None else _skeleton(name)
            fitting, excluded = _applicable(wanted, skeleton, seed)
            where = (dataset, split, MODELS[name].normalisation if net is None else None) if isinstance(dataset, str) else dataset
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
                )
            )
    left_out = [name for name in wanted if not any(name in job.methods for job in jobs)]
    if left_out:
        raise ValueError(f"method {left_out[0]!r} applies to none of the models: {jobs[0].excluded[left_out[0]]}")
    if images > (available := max(len(job.dataset) for job in jobs)):
        raise ValueError(f"images={images}, but this split has {available}")
    data_name = dataset if isinstance(dataset, str) else getattr(dataset, "name", "own")
    return Plan(tuple(jobs), entry, settings, data_name, device, precision, batch_size, shard, channels_last, compiled)


@lru_cache(maxsize=8)
def named_dataset(name: str, split: str, normalisation: Normalisation | None) -> ImageDataset:
    """A data set of the registry, read from disk once."""
    return create_dataset(name, split, normalisation)


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


def on_device(plan: Plan, device: str) -> Plan:
    """The plan for a device that is not this process's: that of a cluster's workers."""

    def moved(stage: Stage) -> Stage:
        return replace(stage, device=device, start=moved(stage.start) if stage.start else None)

    jobs = tuple(replace(job, source=moved(job.source)) if isinstance(job.source, Stage) else job for job in plan.jobs)
    return replace(plan, device=device, jobs=jobs)


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


def make_method(name: str, own: Any, model: nn.Module, seed: int) -> Method:
    """A method of the registry, or the user's own."""
    return Method(name, model, seed=seed) if own is None else as_method(name, own, model, seed)


def _as_mapping(what: str, given: Any, registry: Any) -> dict[str, Any]:
    """A list of names as a mapping from name to None, a mapping as it is."""
    if isinstance(given, str):
        raise TypeError(f"{what} must be a list of names or a mapping from name to {what[:-1]}, not the string {given!r}")
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
        elif thing is None:
            split_name(name)
        elif what == "models" and not isinstance(thing, nn.Module):
            raise TypeError(f"model {name!r} must be a torch.nn.Module, not {type(thing).__name__}")
    return found


def _source(
    name: str,
    net: nn.Module | None,
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
    if name in checkpoints:
        path = Path(checkpoints[name]).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint of {name!r} at {str(path)!r}")
        return path
    if isinstance(dataset, str) and trains_from_scratch(name, dataset):
        deletion = {key: settings[key] for key in ("grid", "baseline") if key in settings}
        if isinstance(deletion.get("grid"), tuple):
            deletion["grid"] = deletion["grid"][0]
        return plan_training(name, dataset, in_domain=entry.in_domain, seed=seed, device=device, precision=precision, **deletion)
    where = dataset if isinstance(dataset, str) else "your own data set"
    raise ValueError(
        f"there is no checkpoint of {name!r} for {where}: name one with checkpoints={{{name!r}: path}}, or fine-tune one first "
        "(notebooks/finetune.ipynb). Only mini_* models are trained on the fly, on embedded data"
    )


def _skeleton(name: str) -> nn.Module:
    """The net without memory for its weights: enough to ask which methods apply."""
    try:
        with torch.device("meta"):
            return create_model(name)
    except (RuntimeError, NotImplementedError):
        return create_model(name)


def _applicable(wanted: Methods, model: nn.Module, seed: int) -> tuple[dict[str, Method], dict[str, str]]:
    fitting, excluded = {}, {}
    for name, own in wanted.items():
        reason = None if own is not None else METHODS[split_name(name)[0]].inapplicable(model)
        if reason:
            excluded[name] = reason
        else:
            fitting[name] = make_method(name, own, model, seed)
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
