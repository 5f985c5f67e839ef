"""One shard of an evaluation: some images of one model, from pixels to files of records."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from idsds.batching import default_batch, halving
from idsds.methods import Method, Passes
from idsds.methods.base import MethodEntry, shared_maps
from idsds.passes import PassCounter
from idsds.planning import Job, Plan
from idsds.protocols import Batch
from idsds.registry import UnknownNameError
from idsds.store import DamagedFileError, read_table, write_table
from idsds.training import batches

Advance = Callable[[int], Any]


@dataclass(frozen=True)
class Task:
    """One shard of images of one job, and which of its files are lacking.

    Args:
        job: number of the job in the plan.
        indices: the images.
        prepared: the files of method-independent columns, one for each grid; None where nothing is kept on disk.
        groups: methods that share a computation: those asked for, and those that the file holds already.
        files: one file of records for each group.
        lacking: numbers of the grids whose columns are to be computed.
        missing: numbers of the groups whose records are to be computed.
        passes: how many that takes.
    """

    job: int
    indices: tuple[int, ...]
    prepared: tuple[Path | None, ...]
    groups: tuple[tuple[str, ...], ...]
    files: tuple[Path | None, ...]
    lacking: tuple[int, ...]
    missing: tuple[int, ...]
    passes: int

    @property
    def open(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.missing or self.lacking)


def tasks_of(plan: Plan, number: int, folder: Path | None) -> Iterator[Task]:
    """The shards of a job; with a ``folder``, what lies there complete and readable is not computed again."""
    job = plan.jobs[number]
    grids = plan.grids if plan.protocol.prepare else []
    for start in range(0, len(job.indices), plan.shard):
        indices = job.indices[start : start + plan.shard]
        groups = list(job.groups)
        files: list[Path | None] = [None] * len(groups)
        prepared: list[Path | None] = [None] * len(grids)
        lacking, missing = list(range(len(grids))), list(range(len(groups)))
        if folder is not None:
            data = job.data_key(indices)

            def path(address: str, folder: Path = folder) -> Path:
                return folder / "records" / f"{job.model}-{address}.parquet"

            files = [path(plan.address(job, data, indices, group)) for group in groups]
            prepared = [path(plan.prepared_address(job, data, indices, settings)) for settings in grids]
            held = [_methods_in(file) for file in files]
            missing = [i for i in missing if held[i] is None or not set(groups[i]) <= set(held[i])]
            lacking = [i for i in lacking if _methods_in(prepared[i]) is None]
            for i in missing:  # what is there of the same computation stays there
                groups[i] += tuple(name for name in held[i] or () if name not in groups[i] and _falls_out(job, name, groups[i][0]))
        once = sum(sum(job.passes[i] or (0, 0)) for i in missing) + sum(sum(plan.prepare_passes(grids[i])) for i in lacking)
        yield Task(number, indices, *map(tuple, (prepared, groups, files, lacking, missing)), once * len(indices))


def _falls_out(job: Job, name: str, of: str) -> bool:
    """Whether a method still is what it was when the file was written: another output of the computation ``of``."""
    try:
        return job.method_key(name) == job.method_key(of)
    except UnknownNameError:
        return False


def _methods_in(path: Path | None) -> list[str] | None:
    """The methods of a file of records; None for one that is not there, or damaged, which is named and computed again."""
    if path is None or not path.is_file():
        return None
    try:
        return read_table(path)[1]["methods"]
    except (DamagedFileError, KeyError) as error:
        warnings.warn(f"{error}; this shard is computed again", stacklevel=4)
        return None


def run_task(plan: Plan, task: Task, model: nn.Module, advance: Advance = lambda passes: None) -> dict[int, pd.DataFrame]:
    """Compute the files that a shard lacks, and write them; without a folder, return the frames by number of the group.

    Args:
        plan: the settings.
        task: the shard.
        model: the loaded model, on the device.
        advance: called with the number of passes done, after each batch and computation.
    """
    job = plan.jobs[task.job]
    preparer = torch.compile(model) if plan.compiled else model
    kept = {i: read_table(path)[0] for i, path in enumerate(task.prepared) if path is not None and i not in task.lacking}
    counted = {i: PassCounter() for i in task.lacking}
    columns: dict[int, list[pd.DataFrame]] = {i: [] for i in task.lacking}
    passes_of = {i: PassCounter() for i in task.missing}
    parts: dict[int, list[pd.DataFrame]] = {i: [] for i in task.missing}
    done = 0
    for images, targets, image_ids in batches(job.dataset, task.indices, batch_size(plan, job)):
        batch = on_plan(plan, job, images, targets, image_ids)
        prepared: list[dict[str, Tensor]] = [{} for _ in plan.grids]
        for i, frame in kept.items():
            rows = frame.iloc[done : done + len(image_ids)]
            prepared[i] = {name: _tensor(rows[name], plan.device) for name in rows.columns if name != "image_id"}
        for i in task.lacking:
            with counted[i].watch(preparer), autocast(plan):
                prepared[i] = plan.protocol.prepare(preparer, batch, seed=job.seed, **plan.grids[i])  # type: ignore[misc]
            columns[i].append(_frame({"image_id": image_ids, **prepared[i]}))
            advance(sum(plan.prepare_passes(plan.grids[i])) * len(image_ids))
        done += len(image_ids)
        for i in task.missing:
            methods = job.create_methods(model, task.groups[i])
            with passes_of[i].watch(model), autocast(plan):
                parts[i].append(score(plan, job, model, methods, batch, prepared))
            advance(sum(job.passes[i] or (0, 0)) * len(image_ids))
    for i in task.lacking:
        if (path := task.prepared[i]) is not None:
            write_table(path, pd.concat(columns[i], ignore_index=True), {"methods": [], **counted[i].facts})
    frames = {}
    for i, found in parts.items():
        frame, path = pd.concat(found, ignore_index=True), task.files[i]
        if path is None:
            frames[i] = frame
        else:
            write_table(path, frame, {"methods": list(task.groups[i]), **passes_of[i].facts})
    return frames


def score(
    plan: Plan, job: Job, model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: Sequence[Mapping[str, Tensor]]
) -> pd.DataFrame:
    """Records of a batch: one row per image, method and grid."""

    def judge(size: int) -> pd.DataFrame:
        frames = []
        for start in range(0, len(batch.images), size):
            some = slice(start, start + size)
            part = Batch(batch.images[some], batch.targets[some], batch.image_ids[some], batch.normalisation)
            judged = methods if len(plan.grids) == 1 else held(methods, part)
            for settings, columns in zip(plan.grids, prepared, strict=True):
                ready = {name: values[some] for name, values in columns.items()}
                found = plan.protocol.function(model, judged, part, ready, **settings)
                plain = {name: value for name, value in settings.items() if not isinstance(value, Tensor)}
                for method in methods:
                    identity = {"model": job.model, "method": method.name, "seed": job.seed, "image_id": part.image_ids}
                    facts = {"target": part.targets, "dataset": plan.dataset, "protocol": plan.protocol.name, "family": method.entry.family}
                    frames.append(_frame({**identity, **facts, **plain, **ready, **found[method.name]}))
        return pd.concat(frames, ignore_index=True)

    return halving(judge, len(batch.images))[0]


class _Held(Method):
    """A method whose maps of a batch are known already; any other images it explains anew."""

    def __init__(self, method: Method, images: Tensor, maps: Tensor) -> None:
        self.name, self.transform, self.model, self.seed, self.batch = method.name, "", method.model, method.seed, None
        self.options = {"maps": maps}

        def explain(_model: nn.Module, asked: Tensor, targets: Tensor, *, maps: Tensor) -> Tensor:
            return maps if asked is images else method(asked, targets)

        self.entry = MethodEntry(name=method.name, function=explain, family=method.entry.family, passes=Passes(0))


def held(methods: Sequence[Method], batch: Batch) -> list[Method]:
    """The methods with their maps of a batch computed once, for a protocol that asks for them several times."""
    maps = shared_maps(methods, batch.images, batch.targets, batch.image_ids)
    return [_Held(method, batch.images, maps[method.name]) for method in methods]


def on_plan(plan: Plan, job: Job, images: Tensor, targets: Tensor, image_ids: Sequence[str]) -> Batch:
    """A batch on the plan's device, in its layout, with what its pixels were normalised by where that is known."""
    normalisation = getattr(job.dataset, "normalisation", None)
    return Batch(images.to(plan.device).contiguous(memory_format=plan.layout), targets.to(plan.device), image_ids, normalisation)


def batch_size(plan: Plan, job: Job) -> int:
    """Images per batch: as asked for, or bounded by memory."""
    if plan.batch_size is not None:
        return plan.batch_size
    return default_batch(job.dataset[job.indices[0]][0][None].to(plan.device))


def autocast(plan: Plan) -> torch.autocast:
    """The precision of a plan."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(plan.precision, torch.float32)
    return torch.autocast(plan.device, dtype=dtype, enabled=plan.precision != "32-true")


def _frame(columns: Mapping[str, Any]) -> pd.DataFrame:
    """Columns of tensors (B,) or (B, n), lists or constants as a frame; a row of a (B, n) tensor becomes a list."""
    plain: dict[str, Any] = {}
    for name, values in columns.items():
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            array = (values.float() if values.dtype in (torch.float16, torch.bfloat16) else values).numpy()
            values = list(array) if array.ndim > 1 else array
        plain[name] = values
    return pd.DataFrame(plain)


def _tensor(column: pd.Series, device: str) -> Tensor:
    values = np.stack(column.to_list()) if column.dtype == object else column.to_numpy()
    return torch.from_numpy(np.array(values)).to(device)
