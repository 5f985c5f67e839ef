"""The result of a run: where each record is stored, and what the manifest says about the plan."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from idsds.common.hashing import versions
from idsds.evaluation.cache import Block, Cover, gathered
from idsds.evaluation.job import Job
from idsds.evaluation.plan import Plan, Unit
from idsds.evaluation.records import KEYS, Content, Part, ordered


@dataclass(frozen=True)
class Result:
    """The result of a run: for every job and unit the blocks to take each image from, and which images could not be read.

    Args:
        covers: the blocks to use, for each job, by unit.
        images: addresses of the images that have records, by id, in the fixed order.
        targets: labels of these images, by id.
        skipped: ids of the images that the data set could not read.
    """

    plan: Plan
    covers: Sequence[Mapping[Unit, Cover]]
    images: Mapping[str, str]
    targets: Mapping[str, int]
    skipped: Sequence[str]

    @cached_property
    def place(self) -> dict[str, int]:
        """The position of each image in the fixed order, by id."""
        return {image_id: number for number, image_id in enumerate(self.images)}

    @property
    def members(self) -> Iterator[tuple[Job, Unit, Cover]]:
        """Every unit of every job, with its blocks."""
        for job, units in zip(self.plan.jobs, self.covers, strict=True):
            for unit, cover in units.items():
                yield job, unit, cover

    def assembled(self, job: Job, unit: Unit, cover: Cover) -> Iterator[Part]:
        """Yield the parts of a unit, each with all rows in memory. The first part carries the cost of the unit, the others zero.

        Raises:
            DamagedFileError: if a block's file has changed, naming it.
        """
        grid = self.plan.grids[unit.grid].get("grid")
        loaded: dict[int, pa.Table] = {}

        def once(block: Block) -> pa.Table:
            if id(block) not in loaded:
                loaded[id(block)] = block.load()
            return loaded[id(block)]

        took = {"forward": 0.0, "backward": 0.0, "seconds": 0.0, "memory": 0.0}
        for block, image_ids in next(iter(cover.values()), []):
            for name in ("forward", "backward", "seconds"):
                took[name] += getattr(block, name) * len(image_ids) / len(block.images)
            took["memory"] = max(took["memory"], block.memory)
        for method, picks in cover.items():
            if picks:
                table = gathered([(replace(block, load=partial(once, block)), image_ids) for block, image_ids in picks], method, self.place)
                names = tuple(name for name in table.column_names if name not in KEYS)
                yield Part(job.model, job.seed, method, grid, unit.address, len(table), names, partial(_selected, table), **took)
                took = dict.fromkeys(took, 0.0)

    def content(self) -> Content:
        """Return all records, in memory."""
        plan, parts = self.plan, [part for member in self.members for part in self.assembled(*member)]
        models = {(job.model, job.seed): number for number, job in enumerate(plan.jobs)}
        return Content.of(
            described(plan),
            parts=ordered([part for part in parts if part.method is not None], models, plan.methods),
            prepared=[part for part in parts if part.method is None],
            image_ids=list(self.images),
            targets=np.array(list(self.targets.values()), dtype=np.int64),
            groups=plan.groups,
            distilled=sorted({job.model for job in plan.jobs if job.distilled}),
        )


def _selected(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    return table.select(["image", *(name for name in table.column_names if name in columns and name not in KEYS)])


def plain_settings(plan: Plan) -> dict[str, Any]:
    """Return the settings to store with the records; tensors only enter the address."""
    quantity = {} if plan.quantity is None else {"quantity": str(plan.quantity)}
    settings = {name: value for name, value in plan.settings.items() if not isinstance(value, Tensor)} | quantity
    # Each is one value of a column: mappings and lists become JSON.
    return {name: json.dumps(value) if isinstance(value, (Mapping, list)) else value for name, value in settings.items()}


def described(plan: Plan) -> dict[str, Any]:
    """Return the plan's entries in the manifest."""
    return {
        "protocol": plan.protocol.name,
        "direction": plan.protocol.direction,
        "target": plan.target,
        "settings": plain_settings(plan),
        "dataset": plan.dataset,
        "seeds": sorted({job.seed for job in plan.jobs}),
        "methods": plan.methods,
        "families": {name: family for job in plan.jobs for name, family in job.families.items()},
        "queried": {job.model: job.queried for job in plan.jobs},
        "left_out": [{"model": job.model, "method": name, "why": why} for job in plan.jobs for name, why in job.excluded.items()],
        "device": plan.device,
        "precision": plan.precision,
        "channels_last": plan.channels_last,
        "compiled": plan.compiled,
        "versions": versions(),
    }
