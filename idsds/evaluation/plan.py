"""What an evaluation consists of: its jobs, the passes that they take, and the addresses of all that it computes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from idsds.common.batching import default_batch, in_batches
from idsds.common.hashing import OwnImages, code_digest, digest, file_digest, own_digest, versions
from idsds.common.normalisation import Normalisation
from idsds.common.registry import UnknownNameError
from idsds.common.switches import switches
from idsds.datasets import DATASETS, create_dataset, fingerprint
from idsds.datasets.base import ImageDataset
from idsds.datasets.images import viewed
from idsds.evaluation.records import FORMAT
from idsds.methods import METHODS, Method, Passes, as_method, split_name
from idsds.models import MODELS, create_model
from idsds.models.base import frozen
from idsds.models.inspection import Facts
from idsds.models.quantity import Quantity
from idsds.models.weights import CheckpointError
from idsds.protocols import ProtocolEntry
from idsds.training.checkpoints import Stage, obtain

Methods = Mapping[str, Any]

# Versions of what stores numbers, and computes none.
RECORDED_ONLY = ("pandas", "pyarrow")


@dataclass(frozen=True)
class Unit:
    """What is computed together and stored under one address: columns for one grid, or the records of a group of methods for it.

    Args:
        grid: its number in :attr:`Plan.grids`.
        group: number of the group in :attr:`Job.groups`; None for the method-independent columns.
        methods: of the group; none for the columns.
        address: a hash of all that determines it but the images; empty where nothing is kept on disk.
    """

    grid: int
    group: int | None
    methods: tuple[str, ...]
    address: str = ""


@dataclass(frozen=True)
class Job:
    """One model with one training seed, and the methods that apply to it.

    Args:
        model: its name in the records.
        seed: of training, noise and masks.
        source: a stage of training, a checkpoint file, or the user's net as it is.
        wanted: the methods that were asked for, by name: None for a method of the registry, (name, options) for one with other
            options, else the user's own.
        methods: those of them that apply to the model.
        excluded: methods that do not apply, with the reason.
        data: the images, in the space that the model wants: the user's, or (name, split, normalisation, view) of the registry's.
        indices: which of them, in the fixed order.
        groups: methods that share a computation.
        passes: passes per image of each group.
        families: of the methods.
        queried: by method, the deletions that it queries itself, see :meth:`idsds.methods.Method.is_ceiling`.
        own_keys: hashes of the user's own methods.
        own_images: what is known of the user's own images, None for a data set of the registry.
        facts: what is known of the user's own net, None for one of the registry.
        weights: the sha256 of the checkpoint of a stage; empty while it is not known, see :func:`idsds.evaluation.stages.with_weights`.
    """

    model: str
    seed: int
    source: Stage | Path | nn.Module
    wanted: Methods
    methods: Methods
    excluded: Mapping[str, str]
    data: Dataset | tuple[str, str, Normalisation | None, tuple[Any, ...] | None]
    indices: tuple[int, ...]
    groups: tuple[tuple[str, ...], ...]
    passes: tuple[Passes | None, ...]
    families: Mapping[str, str] = field(default_factory=dict)
    queried: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    own_keys: Mapping[str, str] = field(default_factory=dict)
    own_images: OwnImages | None = None
    facts: Facts | None = None
    weights: str = ""

    @property
    def dataset(self) -> Dataset:
        """The images. Those of the registry are loaded where they are needed, and not sent from process to process."""
        return named_dataset(*self.data) if isinstance(self.data, tuple) else self.data

    @cached_property
    def model_key(self) -> str:
        """The address of the net: its weights and the code that it is built by."""
        if isinstance(self.source, nn.Module):
            return own_digest(self.source, judged=True)
        weights = [self.source.key, self.weights] if isinstance(self.source, Stage) else file_digest(self.source)
        return digest([weights, code_digest(MODELS[self.built].build), own_digest(MODELS[self.built])])

    @property
    def distilled(self) -> bool:
        """Whether the net was fine-tuned in-domain without labels, as far as it is known: its score is IDSDS (distilled)."""
        recipe = self.source.recipe if isinstance(self.source, Stage) and self.source.deletion is not None else None
        return getattr(self.source, "distilled", False) is True or (recipe is not None and recipe.loss == "distill")

    @property
    def built(self) -> str:
        """The registry's name of the net: a stage may go by a name of its own in the records."""
        return self.source.model if isinstance(self.source, Stage) else self.model

    def ids(self, indices: Sequence[int]) -> list[str]:
        """The ids of images."""
        if isinstance(self.dataset, ImageDataset):
            return [self.dataset.image_ids[index] for index in indices]
        return [self.own_images[index][0] for index in indices]  # type: ignore[index]

    def targets(self, indices: Sequence[int]) -> list[int]:
        """The labels of images."""
        if isinstance(self.dataset, ImageDataset):
            return [self.dataset.targets[index] for index in indices]
        return [self.own_images[index][1] for index in indices]  # type: ignore[index]

    def images(self, indices: Sequence[int]) -> dict[str, str]:
        """By id, the address of each image: of the registry's its id and the version of its file, of a user's a hash of pixels and target.

        It is empty for an image of the user's that cannot be read.
        """
        if self.own_images is None:
            stamps = (self.dataset.stamp(index) for index in indices)  # type: ignore[attr-defined]
            return {image_id: f"{image_id} {stamp}".strip() for image_id, stamp in zip(self.ids(indices), stamps, strict=True)}
        return {image_id: key for image_id, _, key in (self.own_images[index] for index in indices)}

    @cached_property
    def data_key(self) -> str:
        """The address of the data set of the registry; of a user's that of its normalisation, each image having an address of its own."""
        if self.own_images is not None:
            return own_digest(getattr(self.dataset, "normalisation", None))
        return digest([fingerprint_of(*self.data), code_digest(DATASETS[self.data[0]].load)])  # type: ignore[misc, index]

    def method_key(self, name: str) -> str:
        """The address of a method's computation: its code, options and noise."""
        found = registered(name, self.wanted.get(name))
        if found is None:
            return self.own_keys[name]
        base, options = found
        entry = METHODS[split_name(base)[0]]
        return digest([code_digest(entry.function), own_digest(entry.settings(**options)), entry.noise])

    def unsure(self, group: Sequence[str]) -> Iterator[str]:
        """Why records of a group of methods cannot be found again, if so."""
        for what, key in ((f"model {self.model!r}", self.model_key), *((f"method {name!r}", self.own_keys.get(name)) for name in group)):
            if reason := getattr(key, "reason", ""):
                yield f"{what} is computed anew in every call: it cannot be established that it is the same as before ({reason})"

    def prepare(self, progress: bool = True) -> None:
        """Train what is not cached, and anew what is damaged."""
        if not self.is_ready:
            obtain(self.source, progress=progress)

    @property
    def is_ready(self) -> bool:
        """Whether there is nothing to train: the checkpoint of a stage is there and is what was written."""
        return not isinstance(self.source, Stage) or self.source.intact

    def load(self) -> nn.Module:
        """The model in eval mode on the CPU. Raises CheckpointError where the checkpoint is no longer the one that the plan names."""
        if isinstance(self.source, Stage):
            model = obtain(self.source, progress=False)
            if self.weights and self.source.content != self.weights:
                raise CheckpointError(f"the checkpoint {str(self.source.path)!r} was replaced while it was in use; start the run again")
            return model
        if isinstance(self.source, Path):
            num_classes = getattr(self.dataset, "num_classes", None)
            return create_model(self.model, num_classes=num_classes, checkpoint=self.source)
        return self.source

    def create_methods(self, model: nn.Module, names: Sequence[str]) -> list[Method]:
        """The methods named, on the loaded model."""
        methods = [make_method(name, self.methods.get(name), model, self.seed) for name in names]
        for method in methods:
            method.model_name = self.model
        return methods


@dataclass(frozen=True)
class Plan:
    """A whole evaluation: jobs, protocol and settings.

    Args:
        jobs: one per model and training seed.
        protocol: the registry's entry.
        settings: the protocol's settings: grid, baseline and what else it takes.
        dataset: the data set's name.
        device, precision, channels_last, compiled, batch_size, shard, workers: how it is computed.
        target: the class that is explained: the image's ``label``, or the model's ``prediction``, which is a method-independent column.
        quantity: what is explained and judged, in place of what methods and protocol read by themselves; None also for the logit.
        notes: what the user should be told before the work begins, a sentence each.
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
    workers: int = 0
    target: Target = "label"
    quantity: Quantity | None = None
    notes: tuple[str, ...] = ()

    @property
    def shared_work(self) -> str:
        """What the table calls the work that no method depends on; empty where there is none."""
        return "deletions" if self.protocol.prepare else "predictions" if self.target == "prediction" else ""

    @property
    def grids(self) -> list[dict[str, Any]]:
        """The settings with one grid at a time."""
        grid = self.settings.get("grid")
        return [{**self.settings, "grid": each} for each in grid] if isinstance(grid, tuple) else [dict(self.settings)]

    def layout_of(self, job: Job) -> torch.memory_format:
        """How tensors lie in memory for a job's net."""
        if job.facts is not None:
            return job.facts.layout
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def prepare_passes(self, settings: Mapping[str, Any]) -> Passes:
        """Passes per image of the method-independent columns for one grid."""
        passes = self.protocol.prepare_passes(**settings) if self.protocol.prepare else Passes(0)
        return passes + PREDICTION_PASSES if self.target == "prediction" else passes

    def units(self, job: Job, addressed: bool) -> list[Unit]:
        """What a job consists of: the columns for each grid, then each group of methods for each grid."""
        columns = [Unit(i, None, ()) for i in range(len(self.grids))] if self.shared_work else []
        records = [Unit(i, j, group) for j, group in enumerate(job.groups) for i in range(len(self.grids))]
        return [replace(unit, address=self.address(job, unit)) if addressed else unit for unit in columns + records]

    def address(self, job: Job, unit: Unit) -> str:
        """The address of a unit: for columns, a hash of no more than their function and what it takes."""
        settings = self.grids[unit.grid]
        if unit.group is None:
            prepare = self.protocol.prepare or predictions
            taken = {name: settings[name] for name in inspect.signature(prepare).parameters if name in settings}
            return digest({**self._shared(job, taken), "prepare": code_digest(prepare)})
        content = self._shared(job, settings)
        content |= {"name": job.model, "dataset": self.dataset}
        content |= {"protocol": [self.protocol.name, code_digest(self.protocol.function)]}
        content["computation"] = job.method_key(unit.methods[0])
        if self.protocol.prepare:
            content["prepare"] = code_digest(self.protocol.prepare)
        for reason in job.unsure(unit.methods):
            warnings.warn(reason, stacklevel=2)
        # Two of the user's methods may be one thing under two names: each has records of its own.
        content["own"] = [name for name in unit.methods if name in job.own_keys]
        return digest(content)

    def _shared(self, job: Job, settings: dict[str, Any]) -> dict[str, Any]:
        """What determines every number but the image. Batch and block size are not in it: they change scores by rounding alone."""
        content = {
            "format": FORMAT,
            "model": job.model_key,
            "data": job.data_key,
            "seed": job.seed,
            "settings": own_digest(sorted(settings.items())),
            "numerics": [self.device, self.precision, self.layout_of(job) == torch.channels_last, self.compiled],
            "versions": {name: version for name, version in versions().items() if name not in RECORDED_ONLY},
            "switches": self._switches,
        }
        # Only where it is not the label, or the logit: what was computed before there was a choice keeps its address.
        if self.target != "label":
            content["target"] = [self.target, code_digest(predictions)]
        if self.quantity is not None:
            content["quantity"] = [str(self.quantity), code_digest(Quantity)]
        return content

    @cached_property
    def _switches(self) -> str:
        return own_digest(switches())

    def table(self) -> pd.DataFrame:
        """What will be done, one row per model, seed and shared computation.

        Columns: model, seed, work, images, forward and backward (passes in all), epochs (of training that is not cached), note, checkpoint
        (the file that training will leave, by which one that stands in several plans is known).
        Passes are <NA> for the user's own methods: nobody knows before.
        """
        rows: list[dict[str, Any]] = []
        for job in self.jobs:
            shared = {"model": job.model, "seed": job.seed, "images": len(job.indices)}
            for stage in job.source.missing if isinstance(job.source, Stage) else []:
                what = "train" if stage.deletion is None else "fine-tune in-domain"
                rows.append(
                    {**shared, "work": what, "images": stage.train_images, "epochs": stage.recipe.epochs, "checkpoint": stage.path.name}
                )
            prepared = sum((self.prepare_passes(settings) for settings in self.grids), Passes(0))
            counted: list[tuple[str, Passes | None]] = [(self.shared_work, prepared)]
            counted += [(", ".join(group), passes) for group, passes in zip(job.groups, job.passes, strict=True)]
            for work, passes in counted:
                if work:
                    forward, backward = (pd.NA, pd.NA) if passes is None else passes.times(len(job.indices))
                    rows.append({**shared, "work": work, "forward": forward, "backward": backward})
            for name, reason in job.excluded.items():
                rows.append({**shared, "work": name, "images": 0, "forward": 0, "backward": 0, "note": f"left out: {reason}"})
        columns = ["model", "seed", "work", "images", "epochs", "forward", "backward", "note", "checkpoint"]
        table = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[3:7], "Int64"))
        return table.assign(**{name: table[name].astype(object).fillna("") for name in ("note", "checkpoint")})

    @cached_property
    def groups(self) -> dict[str, str]:
        """By image id, what each image belongs to; empty where the data set says nothing of it."""
        found: dict[str, str] = {}
        for job in self.jobs:
            if (groups := getattr(job.dataset, "groups", None)) is not None:
                found |= zip(job.ids(job.indices), (str(groups[index]) for index in job.indices), strict=True)
        return found

    @property
    def methods(self) -> list[str]:
        """All methods, in the order in which they were asked for."""
        return [name for name in self.jobs[0].wanted if any(name in job.methods for job in self.jobs)]

    @property
    def announced(self) -> Passes:
        """Forward and backward passes of all models; those of the user's own methods are not known and not counted."""
        table = self.table()
        return Passes(int(table["forward"].sum()), int(table["backward"].sum()))


@lru_cache(maxsize=8)
def named_dataset(name: str, split: str, normalisation: Normalisation | None, view: tuple[Any, ...] | None = None) -> ImageDataset:
    """A data set of the registry, read from disk once, at the size and with the crop of ``view``."""
    return viewed(create_dataset(name, split, normalisation), view)


@lru_cache(maxsize=8)
def fingerprint_of(name: str, split: str, normalisation: Normalisation | None, view: tuple[Any, ...] | None = None) -> str:
    """The address of a data set of the registry: of its name, split, ids, targets, normalisation and crop, without reading an image."""
    return fingerprint(named_dataset(name, split, normalisation, view))


def registered(name: str, given: Any) -> tuple[str, dict[str, Any]] | None:
    """What ``evaluate`` was given under a name, as a method of the registry and its options; None for the user's own.

    Raises:
        TypeError: for a tuple that is no pair of a method and its options.
    """
    if given is None:
        return name, {}
    if not isinstance(given, tuple):
        return None
    if len(given) != 2 or not isinstance(given[1], Mapping):
        raise TypeError(f"method {name!r}: a method with options is a pair such as ('IG', {{'steps': 5}}), not {given!r}")
    return (given[0], dict(given[1])) if isinstance(given[0], str) else None


def make_method(name: str, given: Any, model: nn.Module, seed: int) -> Method:
    """A method of the registry, with options of its own or without, or the user's."""
    found = registered(name, given)
    if found is None:
        return as_method(name, given, model, seed)
    base, options = found
    method = Method(base, model, seed=seed, **options)
    method.name = name
    return method


Target = Literal["label", "prediction"]


#: One pass per image and file of method-independent columns, in which the class is kept.
PREDICTION_PASSES = Passes(1)


def check_target(target: object) -> None:
    """Raise UnknownNameError for what is neither ``label`` nor ``prediction``."""
    if target not in get_args(Target):
        raise UnknownNameError("target", target, get_args(Target))


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    """The class with the highest logit, (B,), of images (B, 3, H, W); one forward pass each."""
    with torch.inference_mode(), frozen(model):
        logits = in_batches(model, images, size=default_batch(images))  # (B, K)
    return logits.argmax(dim=1)
