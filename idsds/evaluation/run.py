"""Compute the blocks of columns and records of some images for one model."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn

from idsds.common.batching import default_batch, halving
from idsds.common.memory import Peak, peak_memory
from idsds.datasets.base import collate, fixed_order
from idsds.datasets.decoded import Decoded, Images
from idsds.evaluation.cache import Block, Columns, Store, as_array, as_table, cover, gathered, joined, record_cache, share
from idsds.evaluation.job import Job, named_dataset
from idsds.evaluation.plan import Plan, Unit, predictions
from idsds.evaluation.records import as_values
from idsds.evaluation.trial import judging, tried
from idsds.methods import Method, Passes
from idsds.methods.base import MethodEntry, shared_maps
from idsds.models.inspection import two_images
from idsds.models.quantity import explaining
from idsds.protocols import Batch

Advance = Callable[[int], Any]


@dataclass(frozen=True)
class Task:
    """Images of one job for which the same units are to be computed.

    Args:
        images: the images' addresses, by id.
        units: units to compute.
        folder: where the blocks are written; None returns them.
        passes: number of passes, as far as known.
    """

    job: int
    indices: tuple[int, ...]
    images: Mapping[str, str]
    units: tuple[Unit, ...]
    stored: Mapping[int, tuple[Block, ...]]
    folder: Path | None
    passes: int


@dataclass(frozen=True)
class Outcome:
    """The outcome of a task.

    Args:
        blocks: one for each unit; empty if no image could be read.
        skipped: ids of the images that the data set reported as unreadable.
        worker: the process that ran the task, for messages.
    """

    blocks: tuple[Block, ...]
    skipped: tuple[str, ...]
    worker: str = "this process"


def tasks_of(plan: Plan, number: int, there: Mapping[Unit, Sequence[Block]], folder: Path | None) -> Iterator[Task]:
    """Yield what a job lacks, given its existing blocks by unit, as tasks of at most ``plan.shard`` images.

    The new blocks go into ``folder``; if it is None, nothing is kept on disk, and images need no address.
    """
    job = plan.jobs[number]
    addresses = wanted_images(job, folder is not None)
    known = list(addresses.items())
    lacking = {unit: cover(blocks, unit.methods, addresses)[1] for unit, blocks in there.items()}
    columns = {unit.grid: blocks for unit, blocks in there.items() if unit.group is None}
    for start in range(0, len(known), plan.shard):
        shard = range(start, min(start + plan.shard, len(known)))
        # An image without an address could not be read.
        for units, same in groupby(shard, key=lambda i: tuple(u for u in there if known[i][0] in lacking[u]) if known[i][1] else ()):
            places = list(same)
            images = dict(known[i] for i in places)
            if not units:
                continue
            to_make = {unit.grid for unit in units if unit.group is None}
            picks = {grid: cover(blocks, (), images)[0][None] for grid, blocks in columns.items() if grid not in to_make}
            stored = {grid: tuple(block.only(image_ids) for block, image_ids in of_grid) for grid, of_grid in picks.items()}
            indices = tuple(job.indices[i] for i in places)
            yield Task(number, indices, images, units, stored, folder, len(places) * sum(_passes(plan, job, unit) for unit in _once(units)))


def wanted_images(job: Job, addressed: bool) -> dict[str, str]:
    """Return the addresses of a job's images by id, in the fixed order; the ids themselves if nothing is kept on disk."""
    return job.images(job.indices) if addressed else {image_id: image_id for image_id in job.ids(job.indices)}


def _once(units: Sequence[Unit]) -> list[Unit]:
    """Return the units without further grids of the same group, since they share its maps."""
    first: dict[Any, Unit] = {}
    for unit in units:
        first.setdefault(("columns", unit.grid) if unit.group is None else unit.group, unit)
    return list(first.values())


def _passes(plan: Plan, job: Job, unit: Unit) -> int:
    """Return the passes per image, as far as they are known."""
    return sum(plan.prepare_passes(plan.grids[unit.grid])) if unit.group is None else sum(job.passes[unit.group] or (0, 0))


class _Making:
    """A block that is being computed, batch by batch."""

    def __init__(self, unit: Unit) -> None:
        self.unit = unit
        self.parts: list[list[Columns]] = []
        self.image_ids: list[str] = []
        self.counter, self.seconds, self.memory = PassCounter(), 0.0, 0.0

    @contextmanager
    def computing(self, model: nn.Module, batch: Batch) -> Iterator[None]:
        """Count the passes and seconds of a batch, and measure the memory of the first."""
        device = batch.images.device
        with nullcontext(Peak()) if self.image_ids else peak_memory(str(device)) as peak:
            begun = time.perf_counter()
            with self.counter.watch(model):
                yield
            self.seconds += time.perf_counter() - begun
        self.memory = max(self.memory, peak.bytes / len(batch.images))

    def add(self, columns: Sequence[Columns], image_ids: Sequence[str]) -> None:
        """Append the columns of a batch, one set per method."""
        self.parts.append([{name: as_array(values) for name, values in of_method.items()} for of_method in columns])
        self.image_ids += image_ids

    def block(self, images: Mapping[str, str]) -> Block:
        """Return all batches as a block, method by method; ``images`` are the addresses by id."""
        table = as_table([part[number] for number in range(len(self.parts[0])) for part in self.parts])
        taken = {**self.counter.facts, "seconds": self.seconds, "memory": self.memory}
        kept = {image_id: images[image_id] for image_id in self.image_ids}
        return Block(self.unit.address, kept, self.unit.methods, table.slice, **taken)  # all rows


class Source:
    """The images of a run, from which each task takes its batches.

    Args:
        jobs: indices of the jobs that will run; images used by several jobs are kept while memory allows.
    """

    def __init__(self, plan: Plan, jobs: Collection[int]) -> None:
        self.plan, self.several = plan, len(jobs) > 1
        self.known: dict[Any, Decoded] = {}

    def batches(self, job: Job, tasks: Sequence[Task]) -> Iterator[Iterator[Images]]:
        """Yield the batches of each of a job's tasks, prefetched."""
        size = batch_size(self.plan, job)
        cut = [[task.indices[start : start + size] for start in range(0, len(task.indices), size)] for task in tasks]
        every = self._of(job).batches(chain.from_iterable(cut), self.plan.workers, pin=self.plan.device == "cuda")
        for own in cut:
            yield islice(every, len(own))

    def _of(self, job: Job) -> Decoded:
        if job.own_images is not None:
            return job.own_images.dataset  # type: ignore[return-value]
        # Nets that differ only in their normalisation share images; nets with another size or crop have their own.
        key = (*job.data[:2], *job.data[3:]) if isinstance(job.data, tuple) else id(job.data)
        if key not in self.known:
            self.known[key] = Decoded(job.dataset, None if self.several else 0)
        return self.known[key].of(job.dataset)


def run_task(
    plan: Plan, task: Task, model: nn.Module, advance: Advance = lambda passes: None, source: Iterator[Images] | None = None
) -> Outcome:
    """Compute the blocks of a task, and write them if the run has a folder.

    Args:
        model: the loaded model, on the device.
        advance: called with the number of completed passes, after each batch and computation.
        source: the task's batches; None loads them.
    """
    source = next(Source(plan, [task.job]).batches(plan.jobs[task.job], [task])) if source is None else source
    making = {(unit.group, unit.grid): _Making(unit) for unit in task.units}
    try:
        with explaining(model, plan.quantity):
            _run_batches(plan, task, (model, torch.compile(model) if plan.compiled else model), source, making, advance)
    except BaseException:  # keep what was computed before
        _kept(task, [made.block(task.images) for made in making.values() if made.image_ids])
        raise
    blocks = tuple(made.block(task.images) for made in making.values() if made.image_ids)
    read = {image_id for block in blocks for image_id in block.images}
    return Outcome(_kept(task, blocks), tuple(image_id for image_id in task.images if image_id not in read))


def _run_batches(
    plan: Plan,
    task: Task,
    models: tuple[nn.Module, Any],
    source: Iterator[Images],
    making: Mapping[tuple[int | None, int], _Making],
    advance: Advance,
) -> None:
    """Compute the units of a task, batch by batch; ``models`` are the net and its compiled form for the method-independent columns."""
    job, (model, preparer) = plan.jobs[task.job], models
    groups = [unit for unit in _once(task.units) if unit.group is not None]
    methods = {unit.group: job.create_methods(model, unit.methods) for unit in groups}
    stored = {grid: _Stored(blocks, plan.device) for grid, blocks in task.stored.items()} if groups else {}
    untried, alone = {unit.group for unit in groups}, set()  # alone: tried on a batch of one image
    for images, targets, image_ids in source:
        if not image_ids:  # none of them could be read
            continue
        batch = on_plan(plan, job, images, targets, image_ids)
        prepared: list[Columns] = [stored[grid].rows(image_ids) if grid in stored else {} for grid in range(len(plan.grids))]
        for unit in task.units:
            if unit.group is None:
                with making[None, unit.grid].computing(preparer, batch), autocast(plan):
                    prepared[unit.grid] = prepare(plan, job, preparer, batch, plan.grids[unit.grid])
                making[None, unit.grid].add([prepared[unit.grid]], image_ids)
                advance(_passes(plan, job, unit) * len(image_ids))
        for unit in groups:
            grids = [other.grid for other in task.units if other.group == unit.group]
            if unit.group in untried and (len(image_ids) > 1 or unit.group not in alone):
                (untried.remove if len(image_ids) > 1 else alone.add)(unit.group)
                with autocast(plan):
                    seen = partial(judging, plan.protocol, plan.grids, job.seed)
                    methods[unit.group] = tried(methods[unit.group], explained(plan, batch, prepared[grids[0]]), seen)
            with making[unit.group, unit.grid].computing(model, batch), autocast(plan):
                scores = score(plan, job, model, methods[unit.group], batch, prepared, grids)
            for grid, columns in scores.items():
                making[unit.group, grid].add(columns, image_ids)
            advance(_passes(plan, job, unit) * len(image_ids))


def _kept(task: Task, blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Write the blocks to the run's folder and the cache, and return them as stored; without a folder, return them unchanged."""
    if task.folder is None:
        return tuple(blocks)
    store, cache = Store(task.folder), record_cache()
    written = tuple(store.write(block) for block in blocks)
    for block in written:
        share(block, cache)
    return written


class _Stored:
    """Method-independent columns that were computed before."""

    def __init__(self, blocks: Sequence[Block], device: str) -> None:
        self.place = {image_id: number for number, image_id in enumerate(image_id for block in blocks for image_id in block.images)}
        picks = [(block, list(block.images)) for block in blocks]
        self.table = gathered(picks, None, self.place).drop_columns("image")
        self.device = device

    def rows(self, image_ids: Sequence[str]) -> Columns:
        table = self.table.take(pa.array([self.place[image_id] for image_id in image_ids]))
        return {name: torch.from_numpy(np.array(as_values(table[name]))).to(self.device) for name in table.column_names}


def prepare(plan: Plan, job: Job, model: nn.Module, batch: Batch, settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the method-independent columns of a batch for one grid, with a column ``target`` if the model's prediction is explained."""
    columns: dict[str, Tensor] = {}
    if plan.target == "prediction":
        columns["target"] = predictions(model, batch.images)
        batch = replace(batch, targets=columns["target"])
    return columns | (plan.protocol.prepare(model, batch, seed=job.seed, **settings) if plan.protocol.prepare else {})


def score(
    plan: Plan, job: Job, model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: Sequence[Columns], grids: Sequence[int]
) -> dict[int, list[Columns]]:
    """Return the protocol's columns of a batch for each method, by number of the grid; ``prepared`` has the columns of all grids."""
    batch = explained(plan, batch, prepared[grids[0]])
    if plan.target == "prediction":
        prepared = [{name: values for name, values in columns.items() if name != "target"} for columns in prepared]

    def judge(size: int) -> dict[int, list[Columns]]:
        parts: dict[int, list[list[Columns]]] = {grid: [[] for _ in methods] for grid in grids}
        for start in range(0, len(batch.images), size):
            some = slice(start, start + size)
            part = replace(batch, images=batch.images[some], targets=batch.targets[some], image_ids=batch.image_ids[some])
            judged = methods if len(grids) == 1 else held(methods, part)
            for grid in grids:
                ready = {name: values[some] for name, values in prepared[grid].items()}
                scores = plan.protocol.function(model, judged, part, ready, **plan.grids[grid])
                for method, columns in zip(methods, parts[grid], strict=True):
                    columns.append({name: as_array(values) for name, values in scores[method.name].items()})
        return {grid: [joined(columns) for columns in of_methods] for grid, of_methods in parts.items()}

    return halving(judge, len(batch.images))[0]


def explained(plan: Plan, batch: Batch, prepared: Columns) -> Batch:
    """Return a batch with the classes to explain as its targets: its labels, or the model's predictions."""
    return replace(batch, targets=prepared["target"]) if plan.target == "prediction" else batch


class _Held(Method):
    """A method that returns precomputed maps for one batch, and explains any other images as usual."""

    def __init__(self, method: Method, images: Tensor, maps: Tensor) -> None:
        def explain(_model: nn.Module, pixels: Tensor, targets: Tensor, *, maps: Tensor) -> Tensor:
            return maps if pixels is images else method(pixels, targets)

        entry = MethodEntry(name=method.name, function=explain, family=method.entry.family, passes=Passes(0))
        super().__init__(method.name, method.model, seed=method.seed, entry=entry, maps=maps)


def held(methods: Sequence[Method], batch: Batch) -> list[Method]:
    """Return the methods with precomputed maps of a batch, for several runs of the protocol on it."""
    maps = shared_maps(methods, batch.images, batch.targets, batch.image_ids)
    return [_Held(method, batch.images, maps[method.name]) for method in methods]


def on_plan(plan: Plan, job: Job, images: Tensor, targets: Tensor, image_ids: Sequence[str]) -> Batch:
    """Return a batch on the plan's device, in its memory format, with its normalisation if that is known."""
    normalisation = getattr(job.dataset, "normalisation", None)
    images = images.to(plan.device, job.facts.dtype if job.facts else torch.float32, non_blocking=True)
    images, targets = images.contiguous(memory_format=plan.layout_of(job)), targets.to(plan.device)
    # Each of a user's images has its own address, independent of the others.
    companions = partial(_companions, job.data) if isinstance(job.data, tuple) else None
    return Batch(images, targets, image_ids, normalisation, companions, getattr(job.dataset, "parts", None))


#: How many images of a data set a protocol may combine with the one it scores.
COMPANIONS = 64


@lru_cache(maxsize=4)
def _companions(data: tuple[Any, ...]) -> tuple[Tensor, Tensor]:
    """Return the first images of a registered data set in its fixed order, whatever images the run uses, and their classes."""
    dataset = named_dataset(*data)
    images, targets, _ = collate([dataset[index] for index in fixed_order(dataset.image_ids)[:COMPANIONS]])
    return images, targets


def batch_size(plan: Plan, job: Job) -> int:
    """Return the images per batch: as set in the plan, or chosen by the free memory."""
    if plan.batch_size is not None:
        return plan.batch_size
    return default_batch(two_images(job.dataset, job.indices)[:1].to(plan.device))


def autocast(plan: Plan) -> torch.autocast:
    """Return the autocast context for the precision of a plan."""
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(plan.precision, torch.float32)
    return torch.autocast(plan.device, dtype=dtype, enabled=plan.precision != "32-true")


class PassCounter:
    """Counts the images of forward passes through a model, and the images whose logits were differentiated."""

    def __init__(self) -> None:
        self.forward = self.backward = 0

    @property
    def facts(self) -> dict[str, int]:
        """The counts, as stored in records."""
        return {"forward": self.forward, "backward": self.backward}

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[PassCounter]:
        """Count the passes through ``model`` inside the block."""

        def count(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            images = len(output)
            self.forward += images
            if output.requires_grad:
                output.register_hook(lambda _gradient: self._add_backward(images))

        with model.register_forward_hook(count):
            yield self

    def _add_backward(self, images: int) -> None:
        self.backward += images
