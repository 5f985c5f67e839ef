"""What a run came to: where each record is taken from, and what the manifest says of the plan."""

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
from idsds.evaluation.plan import Job, Plan, Unit
from idsds.evaluation.records import KEYS, Content, Part, ordered


@dataclass(frozen=True)
class Result:
    """What a run came to: for every job and unit the blocks to take each image from, and what could not be read.

    Args:
        plan: what was asked for.
        covers: for each job, by unit.
        images: by id, the address of each image that has records, in the fixed order.
        targets: by id, the label of each.
        skipped: ids of the images that the data set could not read.
    """

    plan: Plan
    covers: Sequence[Mapping[Unit, Cover]]
    images: Mapping[str, str]
    targets: Mapping[str, int]
    skipped: Sequence[str]

    @cached_property
    def place(self) -> dict[str, int]:
        """The place of each image."""
        return {image_id: number for number, image_id in enumerate(self.images)}

    @property
    def members(self) -> Iterator[tuple[Job, Unit, Cover]]:
        """Every unit of every job."""
        for job, units in zip(self.plan.jobs, self.covers, strict=True):
            for unit, found in units.items():
                yield job, unit, found

    def assembled(self, job: Job, unit: Unit, found: Cover) -> Iterator[Part]:
        """The parts of a unit, each with all its rows in memory; what the unit took stands with the first of them.

        Raises:
            DamagedFileError: naming the file of a block that is not what it was.
        """
        grid = self.plan.grids[unit.grid].get("grid")
        loaded: dict[int, pa.Table] = {}

        def once(block: Block) -> pa.Table:
            if id(block) not in loaded:
                loaded[id(block)] = block.load()
            return loaded[id(block)]

        took = {"forward": 0.0, "backward": 0.0, "seconds": 0.0, "memory": 0.0}
        for block, image_ids in next(iter(found.values()), []):
            for name in ("forward", "backward", "seconds"):
                took[name] += getattr(block, name) * len(image_ids) / len(block.images)
            took["memory"] = max(took["memory"], block.memory)
        for method, picks in found.items():
            if picks:
                table = gathered([(replace(block, load=partial(once, block)), image_ids) for block, image_ids in picks], method, self.place)
                names = tuple(name for name in table.column_names if name not in KEYS)
                yield Part(job.model, job.seed, method, grid, unit.address, len(table), names, partial(_selected, table), **took)
                took = dict.fromkeys(took, 0.0)

    def content(self) -> Content:
        """All records, in memory."""
        plan, parts = self.plan, [part for member in self.members for part in self.assembled(*member)]
        models = {(job.model, job.seed): number for number, job in enumerate(plan.jobs)}
        return Content(
            parts=ordered([part for part in parts if part.method is not None], models, plan.methods),
            prepared=[part for part in parts if part.method is None],
            image_ids=list(self.images),
            targets=np.array(list(self.targets.values()), dtype=np.int64),
            facts={"dataset": plan.dataset, "protocol": plan.protocol.name, "direction": plan.protocol.direction, **plain_settings(plan)},
            families={name: family for job in plan.jobs for name, family in job.families.items()},
            queried={name: queried for job in plan.jobs for name, queried in job.queried.items()},
            groups=plan.groups,
            distilled=sorted({job.model for job in plan.jobs if job.distilled}),
            predicted=plan.target == "prediction",
        )


def _selected(table: pa.Table, columns: Sequence[str]) -> pa.Table:
    return table.select(["image", *(name for name in table.column_names if name in columns and name not in KEYS)])


def plain_settings(plan: Plan) -> dict[str, Any]:
    """The settings that are stored; what is a tensor is part of the address alone."""
    quantity = {} if plan.quantity is None else {"quantity": str(plan.quantity)}
    return {name: _in_a_cell(value) for name, value in plan.settings.items() if not isinstance(value, Tensor)} | quantity


def _in_a_cell(setting: Any) -> Any:
    """A setting as one value of a column: a mapping or a sequence (but several grids) as JSON."""
    return json.dumps(setting) if isinstance(setting, (Mapping, list)) else setting


def described(plan: Plan) -> dict[str, Any]:
    """What the manifest says of a plan."""
    return {
        "protocol": plan.protocol.name,
        "direction": plan.protocol.direction,
        "target": plan.target,
        "settings": plain_settings(plan),
        "dataset": plan.dataset,
        "seeds": sorted({job.seed for job in plan.jobs}),
        "methods": plan.methods,
        "families": {name: family for job in plan.jobs for name, family in job.families.items()},
        "queried": {name: queried for job in plan.jobs for name, queried in job.queried.items()},
        "left_out": [{"model": job.model, "method": name, "why": why} for job in plan.jobs for name, why in job.excluded.items()],
        "device": plan.device,
        "precision": plan.precision,
        "channels_last": plan.channels_last,
        "compiled": plan.compiled,
        "versions": versions(),
    }
