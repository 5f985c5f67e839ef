"""One shard of an evaluation: some images of one model, from pixels to files of records."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from idsds.common.batching import default_batch, halving
from idsds.common.files import DamagedFileError
from idsds.common.registry import UnknownNameError
from idsds.evaluation.cache import EMPTY, Part, Sheet, Shelf, leave, record_cache
from idsds.evaluation.plan import Job, Plan, predictions
from idsds.methods import Method, Passes
from idsds.methods.base import MethodEntry, shared_maps
from idsds.models.inspection import two_images
from idsds.protocols import Batch
from idsds.training.loop import batches

Advance = Callable[[int], Any]


@dataclass(frozen=True)
class Step:
    """Images of a shard for which the same is to be computed.

    Args:
        indices: the images.
        grids: numbers of the grids whose columns are lacking.
        groups: by number of the group, the methods to compute: those asked for, and those that have a record already.
    """

    indices: tuple[int, ...]
    grids: tuple[int, ...]
    groups: Mapping[int, tuple[str, ...]]


@dataclass(frozen=True)
class Task:
    """One shard of images of one job: its files, and what they lack.

    Args:
        job: number of the job in the plan.
        indices: the images.
        prepared: the files of method-independent columns, one for each grid; None where nothing is kept on disk.
        files: one file of records for each group of methods.
        images: by id, the address of each image; None where nothing is kept on disk.
        taken: by file, what another run has left in the cache of it.
        kept: how many of the files of records lack nothing.
        steps: what is to be computed.
        passes: how many that takes.
    """

    job: int
    indices: tuple[int, ...]
    prepared: tuple[Path | None, ...]
    files: tuple[Path | None, ...]
    images: Mapping[str, str] | None
    taken: Mapping[Path, Path]
    kept: int
    steps: tuple[Step, ...]
    passes: int

    def lacking(self, grid: int) -> int:
        """Images whose columns for a grid are to be computed."""
        return sum(len(step.indices) for step in self.steps if grid in step.grids)

    def missing(self, group: int) -> int:
        """Images whose records of a group are to be computed."""
        return sum(len(step.indices) for step in self.steps if group in step.groups)


def tasks_of(plan: Plan, number: int, shelf: Shelf | None) -> Iterator[Task]:
    """The shards of a job; with a ``shelf``, what lies there complete and readable is not computed again."""
    job = plan.jobs[number]
    grids = plan.grids if plan.shared_work else []
    for start in range(0, len(job.indices), plan.shard):
        indices = job.indices[start : start + plan.shard]
        prepared: list[Path | None] = [None] * len(grids)
        files: list[Path | None] = [None] * len(job.groups)
        held: list[dict[tuple[str, str], tuple[str, ...]]] = [{} for _ in range(len(grids) + len(files))]
        images, taken = None, {}
        if shelf is not None:
            images = job.images(indices)
            slug = re.sub(r"[^\w+-]+", "_", job.model)[:60]  # what the user calls a net may be no name of a file
            names = [plan.prepared_address(job, start, settings) for settings in grids]
            names += [plan.address(job, start, group) for group in job.groups]
            names = [f"{slug}-{name}.parquet" for name in names]
            for i, (name, group) in enumerate(zip(names, [*((),) * len(grids), *job.groups], strict=True)):
                sheet, cached = shelf.find(name, images, group)
                held[i] = sheet.held
                if cached is not None:
                    taken[shelf.path(name)] = cached
            prepared, files = [shelf.path(name) for name in names[: len(grids)]], [shelf.path(name) for name in names[len(grids) :]]
        steps = _steps(job, indices, images, held[: len(grids)], held[len(grids) :])
        passes = sum(len(step.indices) * _passes(plan, job, step) for step in steps)
        kept = sum(all(i not in step.groups for step in steps) for i in range(len(files)))
        yield Task(number, indices, tuple(prepared), tuple(files), images, taken, kept, steps, passes)


Held = Mapping[tuple[str, str], tuple[str, ...]]


def _steps(
    job: Job, indices: Sequence[int], images: Mapping[str, str] | None, prepared: Sequence[Held], records: Sequence[Held]
) -> tuple[Step, ...]:
    """What is to be computed, in the images' order; ``prepared`` and ``records`` say what each file holds."""
    known: Sequence[Any] = [None] * len(indices) if images is None else list(images.items())
    needs: list[tuple[tuple[int, ...], tuple[tuple[int, tuple[str, ...]], ...]]] = []
    for image in known:
        grids = tuple(i for i, held in enumerate(prepared) if image not in held)
        groups = []
        for i, (group, held) in enumerate(zip(job.groups, records, strict=True)):
            there = held.get(image, ())
            if not set(group) <= set(there):  # what is there of the same computation stays there
                groups.append((i, group + tuple(name for name in there if name not in group and _falls_out(job, name, group[0]))))
        needs.append((grids, tuple(groups)))
    steps, done = [], 0
    for (grids, groups), same in groupby(needs):
        count = len(list(same))
        if grids or groups:
            steps.append(Step(tuple(indices[done : done + count]), grids, dict(groups)))
        done += count
    return tuple(steps)


def _passes(plan: Plan, job: Job, step: Step) -> int:
    """Per image, as far as they are known."""
    return sum(sum(plan.prepare_passes(plan.grids[i])) for i in step.grids) + sum(sum(job.passes[i] or (0, 0)) for i in step.groups)


def _falls_out(job: Job, name: str, of: str) -> bool:
    """Whether a method still is what it was when the file was written: another output of the computation ``of``."""
    try:
        return job.method_key(name) == job.method_key(of)
    except UnknownNameError:
        return False


class _File:
    """What is computed for one file: columns or records of some images, added batch by batch."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.frames: list[pd.DataFrame] = []
        self.parts: list[Part] = []

    def begin(self, methods: Sequence[str]) -> None:
        """Another step begins."""
        self.methods, self.counter, self.seconds = tuple(methods), PassCounter(), 0.0
        self.image_ids: list[str] = []

    @contextmanager
    def computing(self, model: nn.Module, image_ids: Sequence[str]) -> Iterator[None]:
        """A batch is computed: count its passes and seconds."""
        begun = time.perf_counter()
        with self.counter.watch(model):
            yield
        self.seconds += time.perf_counter() - begun
        self.image_ids += image_ids

    def end(self, images: Mapping[str, str] | None) -> None:
        """The step has ended."""
        if images is not None and self.image_ids:
            kept = {name: images[name] for name in self.image_ids}
            self.parts.append(Part(kept, self.methods, self.counter.forward, self.counter.backward, self.seconds))

    def finish(self, images: Mapping[str, str] | None, cache: Path | None) -> pd.DataFrame | None:
        """Write the file, with what is there already, and leave it in the cache; without a file, return the frame."""
        if self.path is None or not self.frames:
            return pd.concat(self.frames, ignore_index=True) if self.frames else pd.DataFrame()
        try:
            there = Sheet.read(self.path) if self.path.is_file() else EMPTY
        except DamagedFileError:  # which was named when the run began
            there = EMPTY
        there.with_more(self.frames, self.parts, list(images or ())).write(self.path)
        leave(self.path, cache)
        return None


def run_task(plan: Plan, task: Task, model: nn.Module, advance: Advance = lambda passes: None) -> dict[int, pd.DataFrame]:
    """Compute what the files of a shard lack, and write them; without a folder, return the frames by number of the group.

    Args:
        plan: the settings.
        task: the shard.
        model: the loaded model, on the device.
        advance: called with the number of passes done, after each batch and computation.
    """
    job = plan.jobs[task.job]
    preparer = torch.compile(model) if plan.compiled else model
    stored = _stored(plan, task)
    columns = {i: _File(task.prepared[i]) for i in range(len(task.prepared))}
    records = {i: _File(task.files[i]) for i in range(len(task.files)) if task.missing(i)}
    for step in task.steps:
        methods = {i: job.create_methods(model, names) for i, names in step.groups.items()}
        for i in step.grids:
            columns[i].begin(())
        for i, names in step.groups.items():
            records[i].begin(names)
        files = [*(columns[i] for i in step.grids), *(records[i] for i in step.groups)]
        try:
            _run_step(plan, job, step, (model, preparer), methods, stored, columns, records, advance)
        except BaseException:  # what was computed before is kept
            for file in files:
                file.end(task.images)
            _written(task, columns, records)
            raise
        for file in files:
            file.end(task.images)
    return _written(task, columns, records)


def _run_step(
    plan: Plan,
    job: Job,
    step: Step,
    models: tuple[nn.Module, Any],
    methods: Mapping[int, Sequence[Method]],
    stored: Mapping[int, pd.DataFrame],
    columns: Mapping[int, _File],
    records: Mapping[int, _File],
    advance: Advance,
) -> None:
    """Compute what a step lacks, batch by batch; ``models`` are the net and, for what no method depends on, the compiled one."""
    model, preparer = models
    for images, targets, image_ids in batches(job.dataset, step.indices, batch_size(plan, job)):
        if not image_ids:  # none of them could be read
            continue
        batch = on_plan(plan, job, images, targets, image_ids)
        prepared: list[dict[str, Tensor]] = [{} for _ in plan.grids]
        for i, frame in stored.items():
            if i not in step.grids:
                rows = frame.loc[list(image_ids)]
                prepared[i] = {name: _tensor(rows[name], plan.device) for name in rows.columns}
        for i in step.grids:
            with columns[i].computing(preparer, image_ids), autocast(plan):
                prepared[i] = prepare(plan, job, preparer, batch, plan.grids[i])
                frame = _frame({"image_id": image_ids, **prepared[i]})
            columns[i].frames.append(frame)
            advance(sum(plan.prepare_passes(plan.grids[i])) * len(image_ids))
        for i in step.groups:
            with records[i].computing(model, image_ids), autocast(plan):
                frame = score(plan, job, model, methods[i], batch, prepared)
            records[i].frames.append(frame)
            advance(sum(job.passes[i] or (0, 0)) * len(image_ids))


def _written(task: Task, columns: Mapping[int, _File], records: Mapping[int, _File]) -> dict[int, pd.DataFrame]:
    """Write the files of a shard, or return the frames of records that have none."""
    shared = record_cache()
    for file in columns.values():
        if file.path is not None:
            file.finish(task.images, shared)
    frames = {i: file.finish(task.images, shared) for i, file in records.items()}
    return {i: frame for i, frame in frames.items() if frame is not None and task.files[i] is None}


def _stored(plan: Plan, task: Task) -> dict[int, pd.DataFrame]:
    """By number of the grid, the stored columns by image id, where some step takes them from disk."""
    wanted = {i for i in range(len(task.prepared)) for step in task.steps if step.groups and i not in step.grids}
    return {i: Sheet.read(path).frame.set_index("image_id") for i, path in enumerate(task.prepared) if path is not None and i in wanted}


def prepare(plan: Plan, job: Job, model: nn.Module, batch: Batch, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The method-independent columns of a batch for one grid; with ``target`` where the class to explain is the model's prediction."""
    columns: dict[str, Tensor] = {}
    if plan.target == "prediction":
        columns["target"] = predictions(model, batch.images)
        batch = replace(batch, targets=columns["target"])
    return columns | (plan.protocol.prepare(model, batch, seed=job.seed, **settings) if plan.protocol.prepare else {})


def score(
    plan: Plan, job: Job, model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: Sequence[Mapping[str, Tensor]]
) -> pd.DataFrame:
    """Records of a batch: one row per image, method and grid."""

    if plan.target == "prediction":
        batch = replace(batch, targets=prepared[0]["target"])
        prepared = [{name: values for name, values in columns.items() if name != "target"} for columns in prepared]

    def judge(size: int) -> pd.DataFrame:
        frames = []
        for start in range(0, len(batch.images), size):
            some = slice(start, start + size)
            part = Batch(batch.images[some], batch.targets[some], batch.image_ids[some], batch.normalisation)
            judged = methods if len(plan.grids) == 1 else held(methods, part)
            for settings, columns in zip(plan.grids, prepared, strict=True):
                ready = {name: values[some] for name, values in columns.items()}
                found = plan.protocol.function(model, judged, part, ready, **settings)
                plain = {name: _in_a_cell(value) for name, value in settings.items() if not isinstance(value, Tensor)}
                for method in methods:
                    identity = {"model": job.model, "method": method.name, "seed": job.seed, "image_id": part.image_ids}
                    facts = {"target": part.targets, "dataset": plan.dataset, "protocol": plan.protocol.name, "family": method.entry.family}
                    facts["ceiling"] = method.is_ceiling(plain)
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
    images = images.to(plan.device, job.facts.dtype if job.facts else torch.float32)
    return Batch(images.contiguous(memory_format=plan.layout_of(job)), targets.to(plan.device), image_ids, normalisation)


def batch_size(plan: Plan, job: Job) -> int:
    """Images per batch: as asked for, or bounded by memory."""
    if plan.batch_size is not None:
        return plan.batch_size
    return default_batch(two_images(job.dataset, job.indices)[:1].to(plan.device))


def autocast(plan: Plan) -> torch.autocast:
    """The precision of a plan."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(plan.precision, torch.float32)
    return torch.autocast(plan.device, dtype=dtype, enabled=plan.precision != "32-true")


def _in_a_cell(setting: Any) -> Any:
    """A setting as one value of a column: a mapping or a sequence as JSON."""
    return json.dumps(setting) if isinstance(setting, (Mapping, list, tuple)) else setting


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


class PassCounter:
    """Images that went forward through a model, and images whose logits were differentiated."""

    def __init__(self) -> None:
        self.forward = self.backward = 0

    @property
    def facts(self) -> dict[str, int]:
        """The counts, as they are stored."""
        return {"forward": self.forward, "backward": self.backward}

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[PassCounter]:
        """Count the passes through ``model`` inside the block."""

        def count(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            images = len(output)
            self.forward += images
            if output.requires_grad:
                output.register_hook(lambda _gradient: self._add_backward(images))

        handle = model.register_forward_hook(count)
        try:
            yield self
        finally:
            handle.remove()

    def _add_backward(self, images: int) -> None:
        self.backward += images
