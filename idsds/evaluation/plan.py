"""The plan of an evaluation: its jobs, their passes, and the addresses of everything that it computes."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import pandas as pd
import torch
from torch import Tensor, nn

from idsds.common.batching import default_batch, in_batches
from idsds.common.hashing import code_digest, digest, own_digest, versions
from idsds.common.switches import switches
from idsds.evaluation.job import Job
from idsds.evaluation.manifest import FORMAT
from idsds.methods import Passes
from idsds.models.base import frozen
from idsds.models.quantity import Quantity
from idsds.protocols import ProtocolEntry
from idsds.training.checkpoints import Stage

Target = Literal["label", "prediction"]
#: One pass per image and file of method-independent columns, which stores the class.
PREDICTION_PASSES = Passes(1)
# Packages that only store numbers and compute none.
RECORDED_ONLY = ("pandas", "pyarrow")


@dataclass(frozen=True)
class Unit:
    """A computation stored under one address: the method-independent columns, or a group of methods' records, for one grid.

    Args:
        grid: index in :attr:`Plan.grids`.
        group: index of the group in :attr:`Job.groups`; None for the method-independent columns.
        methods: the group's methods; empty for the columns.
        address: a hash of everything that determines it except the images; empty if nothing is kept on disk.
    """

    grid: int
    group: int | None
    methods: tuple[str, ...]
    address: str = ""


@dataclass(frozen=True)
class Plan:
    """A whole evaluation: jobs, protocol and settings.

    Args:
        jobs: one per model and training seed.
        protocol: the registry's entry.
        settings: the protocol's settings, including grid and baseline.
        device, precision, channels_last, compiled, batch_size, shard, workers: how it is computed.
        target: the class explained: the image's ``label``, or the model's ``prediction``, which is a method-independent column.
        quantity: the quantity explained and scored; None for the defaults of methods and protocol, also for the logit.
        notes: what the user should be told before the work begins, one sentence each.
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
        """The table's name for method-independent work; empty if there is none."""
        return "deletions" if self.protocol.prepare else "predictions" if self.target == "prediction" else ""

    @property
    def grids(self) -> list[dict[str, Any]]:
        """The settings for each single grid."""
        grid = self.settings.get("grid")
        return [{**self.settings, "grid": each} for each in grid] if isinstance(grid, tuple) else [dict(self.settings)]

    def layout_of(self, job: Job) -> torch.memory_format:
        """Return the memory format for a job's net."""
        if job.facts is not None:
            return job.facts.layout
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def prepare_passes(self, settings: Mapping[str, Any]) -> Passes:
        """Return the passes per image of the method-independent columns for one grid."""
        passes = self.protocol.prepare_passes(**settings) if self.protocol.prepare else Passes(0)
        return passes + PREDICTION_PASSES if self.target == "prediction" else passes

    def removals(self, job: Job) -> int:
        """Return the number of passes without single background objects for all images of a job, which depends on the images."""
        parts = getattr(job.dataset, "parts", None) if self.protocol.parts else None
        return sum(map(parts.count, job.ids(job.indices))) if parts else 0

    def units(self, job: Job, addressed: bool) -> list[Unit]:
        """Return a job's units: the columns for each grid, then each group of methods for each grid."""
        columns = [Unit(i, None, ()) for i in range(len(self.grids))] if self.shared_work else []
        records = [Unit(i, j, group) for j, group in enumerate(job.groups) for i in range(len(self.grids))]
        return [replace(unit, address=self.address(job, unit)) if addressed else unit for unit in columns + records]

    def address(self, job: Job, unit: Unit) -> str:
        """Return a unit's address; for columns, a hash of just their function and its inputs."""
        settings = self.grids[unit.grid]
        if unit.group is None:
            prepare = self.protocol.prepare or predictions
            taken = {name: settings[name] for name in inspect.signature(prepare).parameters if name in settings}
            return digest({**self._shared(job, taken), "prepare": code_digest(prepare)})
        for reason in job.unsure(unit.methods):
            warnings.warn(reason, stacklevel=2)
        content = self._shared(job, settings) | {
            "name": job.model,
            "dataset": self.dataset,
            "protocol": [self.protocol.name, code_digest(self.protocol.function)],
            "computation": job.method_key(unit.methods[0]),
            # Two of the user's methods may be one object under two names; each has records of its own.
            "own": [name for name in unit.methods if name in job.own_keys],
        }
        return digest(content | ({"prepare": code_digest(self.protocol.prepare)} if self.protocol.prepare else {}))

    def _shared(self, job: Job, settings: dict[str, Any]) -> dict[str, Any]:
        """Return everything but the image that determines a number, without batch and block size, which only affect rounding."""
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
        # Omitted for the label and the logit, so that older records keep their addresses.
        if self.target != "label":
            content["target"] = [self.target, code_digest(predictions)]
        if self.quantity is not None:
            content["quantity"] = [str(self.quantity), code_digest(Quantity)]
        return content

    @cached_property
    def _switches(self) -> str:
        return own_digest(switches())

    def table(self) -> pd.DataFrame:
        """Return what will be done, one row per model, seed and shared computation.

        Columns: model, seed, work, images, forward and backward (total passes), epochs (of training that is not cached), note, checkpoint
        (the file that training will write, which identifies training shared by several plans). Passes are <NA> for the user's own
        methods, since they are unknown beforehand.
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
                    forward += self.removals(job) if work == self.shared_work else 0
                    rows.append({**shared, "work": work, "forward": forward, "backward": backward})
            for name, reason in job.excluded.items():
                rows.append({**shared, "work": name, "images": 0, "forward": 0, "backward": 0, "note": f"left out: {reason}"})
        columns = ["model", "seed", "work", "images", "epochs", "forward", "backward", "note", "checkpoint"]
        table = pd.DataFrame(rows, columns=columns).astype(dict.fromkeys(columns[3:7], "Int64"))
        return table.assign(**{name: table[name].astype(object).fillna("") for name in ("note", "checkpoint")})

    def with_weights(self, known: Mapping[str, str] | None = None) -> Plan:
        """Return the plan with the hashes of its checkpoints, which are part of the records' addresses.

        ``known`` are those of checkpoints that are no longer in the cache, by key of the stage.
        """

        def weighed(job: Job) -> Job:
            if not isinstance(job.source, Stage):
                return job
            return replace(job, weights=job.source.content or (known or {}).get(job.source.key, ""))

        return replace(self, jobs=tuple(map(weighed, self.jobs)))

    def on_device(self, device: str) -> Plan:
        """Return the plan for the device of a cluster's workers, which may differ from this process's."""

        def moved(stage: Stage) -> Stage:
            return replace(stage, device=device, start=moved(stage.start) if stage.start else None)

        jobs = tuple(replace(job, source=moved(job.source)) if isinstance(job.source, Stage) else job for job in self.jobs)
        return replace(self, device=device, jobs=jobs)

    @cached_property
    def groups(self) -> dict[str, str]:
        """The group of each image, by id; empty if the data set has no groups."""
        found: dict[str, str] = {}
        for job in self.jobs:
            if (groups := getattr(job.dataset, "groups", None)) is not None:
                found |= zip(job.ids(job.indices), (str(groups[index]) for index in job.indices), strict=True)
        return found

    @property
    def methods(self) -> list[str]:
        """All methods, in the order requested."""
        return [name for name in self.jobs[0].wanted if any(name in job.methods for job in self.jobs)]

    @property
    def announced(self) -> Passes:
        """Forward and backward passes of all models, excluding the user's own methods, whose passes are unknown."""
        table = self.table()
        return Passes(int(table["forward"].sum()), int(table["backward"].sum()))


def predictions(model: nn.Module, images: Tensor) -> Tensor:
    """Return the class with the highest logit, (B,), for images (B, 3, H, W), with one forward pass each."""
    with torch.inference_mode(), frozen(model):
        logits = in_batches(model, images, size=default_batch(images))  # (B, K)
    return logits.argmax(dim=1)
