"""The benchmark engine: models x methods over a data set, every pass once, records that survive.

Work is cut into shards of images. For each shard the method-independent columns (for IDSDS: the deletion drops) are computed once, and each
group of methods that share a computation is one file of records. A file's name is a hash of all that determines its content, and it appears
complete or not at all: a run that is killed goes on where it was, and a method that is added later costs its own passes only.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from idsds import paths
from idsds.batching import default_batch, halving
from idsds.methods import Method
from idsds.passes import PassCounter
from idsds.planning import Job, Plan, make_plan
from idsds.protocols import Batch
from idsds.records import tidy, write_manifest
from idsds.store import DamagedFileError, read_table, write_table
from idsds.training import batches


def evaluate(
    models: Sequence[str] | Mapping[str, nn.Module],
    methods: Sequence[str] | Mapping[str, Any],
    dataset: str | Dataset = "mnist5k",
    protocol: str = "idsds",
    images: int = 200,
    grid: int = 4,
    baseline: str = "zeros",
    seed: int | Sequence[int] = 0,
    output: str | Path | None = None,
    batch_size: int | None = None,
    dry_run: bool = False,
    progress: bool = True,
    *,
    device: str = "auto",
    precision: str = "32-true",
    checkpoints: Mapping[str, str | Path] | None = None,
    shard: int = 256,
    **settings: Any,
) -> pd.DataFrame:
    """Judge attribution methods on models over a data set.

    Args:
        models: names (fine-tuned in-domain for the data set, trained once and cached), or ``{"my_net": nn.Module}``, used as it is.
        methods: names, or ``{"my_method": callable(images, targets) -> maps}``, a captum Attribution, a torchcam extractor; ``None`` as the
            value stands for the registry's method of that name. A method that does not apply to one of several models is left out there.
        dataset: a name, or any torch Dataset of (image (3, H, W), target) or (image, target, image_id).
        protocol: ``idsds``, or another of ``list_protocols()``.
        images: the first so many of one fixed order, the same for every model and method.
        grid: patches per side.
        baseline: what replaces a deleted patch.
        seed: of training, noise and masks; several seeds give records for each.
        output: folder for the records, relative to the repository root; None keeps nothing on disk but trained checkpoints.
        batch_size: images per batch; None bounds it by memory. It changes scores by float rounding only.
        dry_run: return the plan (passes per model and computation) instead of computing anything.
        progress: show progress bars, and say beforehand what will be computed.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        checkpoints: files of weights by model name, used in place of training.
        shard: images per file of records.
        settings: further settings of the protocol.

    Returns:
        One row per (image, model, method, seed): ``image_id``, ``model``, ``method``, ``target``, ``score`` (NaN where undefined), and the
        protocol's other columns; the same as :func:`load_records` of ``output``. With ``dry_run`` the plan.

    Raises:
        UnknownNameError: an unknown name, with the nearest match.
        ValueError, TypeError, OSError: anything else that cannot work, before any work is done.
    """
    seeds = [seed] if isinstance(seed, int) else list(seed)
    plan = make_plan(
        models,
        methods,
        dataset,
        protocol,
        images,
        seeds,
        checkpoints=checkpoints or {},
        device=device,
        precision=precision,
        batch_size=batch_size,
        shard=shard,
        settings={"grid": grid, "baseline": baseline, **settings},
    )
    folder = None if output is None else paths.check_writable(output)
    tasks = [task for job in plan.jobs for task in _tasks(plan, job, folder)]
    if dry_run:
        return plan.table()
    if progress:
        print(announcement(plan, tasks), flush=True)
    if folder is not None:
        write_manifest(folder, plan, "running")
    waiting = [job for job in plan.jobs if any(task.job is job and task.missing for task in tasks)]
    for job in waiting:
        job.prepare(progress)
    frames: dict[str, pd.DataFrame] = {}
    total = sum(task.passes for task in tasks)
    with tqdm(total=total, desc=f"{plan.protocol.name} on {plan.dataset}", unit="pass", unit_scale=True, disable=not progress) as bar:
        for job in waiting:
            bar.set_postfix_str(job.model)
            model = job.load().to(plan.device, memory_format=torch.channels_last)
            for task in tasks:
                if task.job is job and task.missing:
                    frames |= run_task(plan, task, model, bar.update)
    parts = [(task.path(address) or address, group) for task in tasks for address, group in zip(task.addresses, task.groups, strict=True)]
    found = [_select(frames[at] if folder is None else read_table(at)[0], group) for at, group in parts]
    records = tidy(found, [(job.model, job.seed) for job in plan.jobs], plan.methods)
    if folder is not None:
        prepared = [task.path(task.prepared) for task in tasks if plan.protocol.prepare is not None]
        write_manifest(folder, plan, "complete", records, parts, prepared)
    return records


@dataclass(frozen=True)
class Task:
    """One shard of images of one job, and which files of records it still lacks."""

    job: Job
    indices: tuple[int, ...]
    folder: Path | None
    prepared: str
    groups: tuple[tuple[str, ...], ...]
    addresses: tuple[str, ...]
    missing: tuple[int, ...]
    passes: int

    def path(self, address: str) -> Path | None:
        """Where a file of records is, or will be."""
        return None if self.folder is None else self.folder / "records" / f"{self.job.model}-{address}.parquet"


def _tasks(plan: Plan, job: Job, folder: Path | None) -> Iterator[Task]:
    for start in range(0, len(job.indices), plan.shard):
        indices = job.indices[start : start + plan.shard]
        addresses = tuple(plan.address(job, indices, group) for group in job.groups)
        task = Task(job, indices, folder, plan.address(job, indices, None), job.groups, addresses, (), 0)
        missing = tuple(i for i, address in enumerate(addresses) if not _is_complete(task.path(address), job.groups[i]))
        per_image = sum((sum(job.passes[i] or (0, 0)) for i in missing), 0)
        if missing and plan.protocol.prepare is not None and not _is_complete(task.path(task.prepared), ()):
            per_image += sum(plan.protocol.prepare_passes(**plan.settings))
        yield Task(job, indices, folder, task.prepared, job.groups, addresses, missing, per_image * len(indices))


def _is_complete(path: Path | None, methods: Sequence[str]) -> bool:
    """Whether a file of records is there, readable and has all ``methods``; a damaged one is named, and computed again."""
    if path is None or not path.is_file():
        return False
    try:
        _, facts = read_table(path)
    except DamagedFileError as error:
        warnings.warn(f"{error}; this shard is computed again", stacklevel=4)
        return False
    return set(methods) <= set(facts["methods"])


def announcement(plan: Plan, tasks: Sequence[Task]) -> str:
    """What is going to be computed, in two or three lines."""
    names = {name for job in plan.jobs for name in job.methods}
    models = list(dict.fromkeys(job.model for job in plan.jobs))
    seeds = list(dict.fromkeys(job.seed for job in plan.jobs))
    images = max(len(job.indices) for job in plan.jobs)
    forward, backward = plan.announced
    lines = [
        f"{plan.protocol.name}: {len(models)} model(s) ({', '.join(models)}) x {len(names)} methods on {images} images of {plan.dataset}"
        + (f" x {len(seeds)} seeds" if len(seeds) > 1 else "")
        + f"; {forward:,} forward and {backward:,} backward passes in all"
    ]
    training = plan.table().dropna(subset="epochs")
    if len(training):
        steps = int((training["epochs"] * training["images"]).sum())
        lines.append(f"first {len(training)} training stage(s) that are not cached: {steps:,} images forward and backward")
    files, missing, left = (sum(values) for values in zip(*((len(t.groups), len(t.missing), t.passes) for t in tasks), strict=True))
    if missing < files:
        lines.append(f"{files - missing} of {files} files of records are there already; {left:,} passes left")
    return "\n".join(lines)


def run_task(plan: Plan, task: Task, model: nn.Module, advance: Any = lambda passes: None) -> dict[str, pd.DataFrame]:
    """Compute the files of records that a shard lacks, and write them; without a folder, return the frames by address.

    Args:
        plan: the settings.
        task: the shard.
        model: the loaded model, on the device.
        advance: called with the number of passes done, after each batch and computation.
    """
    counter, job = PassCounter(), task.job
    path = task.path(task.prepared)
    kept = read_table(path)[0] if plan.protocol.prepare and _is_complete(path, ()) else None
    prepared_parts: list[pd.DataFrame] = []
    parts: dict[int, list[pd.DataFrame]] = {i: [] for i in task.missing}
    passes_of: dict[int, PassCounter] = {i: PassCounter() for i in task.missing}
    done = 0
    for images, targets, image_ids in batches(job.dataset, task.indices, _batch_size(plan, job)):
        images = images.to(plan.device).contiguous(memory_format=torch.channels_last)
        batch = Batch(images, targets.to(plan.device), image_ids, getattr(job.dataset, "normalisation", None))
        prepared: dict[str, Tensor] = {}
        if kept is not None:
            rows = kept.iloc[done : done + len(image_ids)]
            prepared = {name: _tensor(rows[name], plan.device) for name in rows.columns if name != "image_id"}
        elif plan.protocol.prepare is not None:
            with counter.watch(model), _autocast(plan):
                prepared = plan.protocol.prepare(model, batch, seed=job.seed, **plan.settings)
            prepared_parts.append(_frame({"image_id": image_ids, **prepared}))
            advance(sum(plan.protocol.prepare_passes(**plan.settings)) * len(image_ids))
        done += len(image_ids)
        for index in task.missing:
            methods = job.create_methods(model, task.groups[index])
            with passes_of[index].watch(model), _autocast(plan):
                parts[index].append(_score(plan, job, model, methods, batch, prepared))
            advance(sum(job.passes[index] or (0, 0)) * len(image_ids))
    if prepared_parts and path is not None:
        write_table(path, pd.concat(prepared_parts, ignore_index=True), {"methods": [], **counter.facts})
    frames = {}
    for index, found in parts.items():
        address, frame = task.addresses[index], pd.concat(found, ignore_index=True)
        if (target := task.path(address)) is None:
            frames[address] = frame
        else:
            write_table(target, frame, {"methods": list(task.groups[index]), **passes_of[index].facts})
    return frames


def _score(plan: Plan, job: Job, model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: dict[str, Tensor]) -> pd.DataFrame:
    """Records of a batch: one row per image and method."""

    def score(size: int) -> pd.DataFrame:
        frames = []
        for start in range(0, len(batch.images), size):
            some = slice(start, start + size)
            part = Batch(batch.images[some], batch.targets[some], batch.image_ids[some], batch.normalisation)
            ready = {name: values[some] for name, values in prepared.items()}
            columns = plan.protocol.function(model, methods, part, ready, **plan.settings)
            for method in methods:
                identity = {"model": job.model, "method": method.name, "seed": job.seed, "image_id": part.image_ids}
                facts = {"target": part.targets, "dataset": plan.dataset, "protocol": plan.protocol.name, "family": method.entry.family}
                settings = {name: value for name, value in plan.settings.items() if not isinstance(value, Tensor)}
                frames.append(_frame({**identity, **facts, **settings, **ready, **columns[method.name]}))
        return pd.concat(frames, ignore_index=True)

    return halving(score, len(batch.images))[0]


def _batch_size(plan: Plan, job: Job) -> int:
    if plan.batch_size is not None:
        return plan.batch_size
    image = job.dataset[job.indices[0]][0]
    return default_batch(image[None].to(plan.device))


def _autocast(plan: Plan) -> torch.autocast:
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(plan.precision, torch.float32)
    return torch.autocast(plan.device, dtype=dtype, enabled=plan.precision != "32-true")


def _frame(columns: Mapping[str, Any]) -> pd.DataFrame:
    """Columns of tensors (B,) or (B, n), lists or constants as a frame; a row of a (B, n) tensor becomes a list."""
    plain: dict[str, Any] = {}
    for name, values in columns.items():
        if isinstance(values, Tensor):
            array = (
                values.detach().float().cpu().numpy() if values.dtype in (torch.float16, torch.bfloat16) else values.detach().cpu().numpy()
            )
            values = list(array) if array.ndim > 1 else array
        plain[name] = values
    return pd.DataFrame(plain)


def _tensor(column: pd.Series, device: str) -> Tensor:
    values = np.stack(column.to_list()) if column.dtype == object else column.to_numpy()
    return torch.from_numpy(np.array(values)).to(device)


def _select(frame: pd.DataFrame, methods: Sequence[str]) -> pd.DataFrame:
    return frame[frame["method"].isin(methods)]
