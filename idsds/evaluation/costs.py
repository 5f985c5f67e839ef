"""The cost of an evaluation: measured beforehand on a few batches of every computation, or read from a finished run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from idsds.evaluation.cache import Columns, record_cache
from idsds.evaluation.folder import Folder
from idsds.evaluation.job import Job
from idsds.evaluation.plan import Plan
from idsds.evaluation.records import Run
from idsds.evaluation.run import Task, autocast, batch_size, on_plan, prepare, score, tasks_of
from idsds.models import create_model
from idsds.models.isolation import on_loan
from idsds.models.quantity import explaining
from idsds.training.checkpoints import Stage, rehearse_stage
from idsds.training.loop import batches
from idsds.training.processes import processes_of, wall_seconds

# Seconds, and number of times, for which a computation is repeated, after one warm-up batch that is not timed.
ENOUGH, AT_MOST = 0.3, 3


def measure(plan: Plan, folder: Path | None = None) -> pd.DataFrame:
    """Return the plan's table with the cost of each computation on this machine.

    A net whose checkpoint is not trained yet is timed with random weights, which take the same time.

    Args:
        folder: the run's folder; existing records are not computed again.

    Returns:
        :meth:`Plan.table` with ``images_left``, ``images_per_second`` (of that computation alone), ``seconds_left``, ``disk_mb``, an
        upper bound on the size of its files, and ``side_by_side``, how many rows of training such as this run at once.
    """
    there = [{unit: [] for unit in plan.units(job, False)} for job in plan.jobs]
    if folder is not None:
        state = Folder(folder, record_cache())
        there = state.find(plan.with_weights(state.checkpoints))
    table = plan.table().assign(images_left=pd.NA, images_per_second=pd.NA, seconds_left=pd.NA, disk_mb=pd.NA, side_by_side=1)
    for number, job in enumerate(plan.jobs):
        rows = (table["model"] == job.model) & (table["seed"] == job.seed)
        for stage in job.source.missing if isinstance(job.source, Stage) else []:
            per_second = training_rate(stage)
            seconds = stage.train_images * stage.recipe.epochs / per_second
            of_stage = rows & (table["checkpoint"] == stage.path.name)
            _fill(table, of_stage, stage.train_images, per_second, seconds, 0)
            table.loc[of_stage, "side_by_side"] = processes_of(stage)
        tasks = list(tasks_of(plan, number, there[number], folder))
        for work, (left, per_second, per_image) in _timed(plan, job, tasks).items():
            _fill(table, rows & (table["work"] == work), left, per_second, left / per_second, per_image * len(job.indices) / 1e6)
    kinds = {"images_left": "Int64", "images_per_second": "Float64", "seconds_left": "Float64", "disk_mb": "Float64"}
    return table.astype(kinds).round({"images_per_second": 1, "seconds_left": 1, "disk_mb": 2})


def load_costs(output: str | Path) -> pd.DataFrame:
    """Return the cost of each method of a run, read from the manifest. Methods that share a computation each have its full cost.

    Returns:
        One row per model, seed and method.

        ==================  ==============================================================================================
        forward, backward   passes per image, counted
        milliseconds        per image, including the protocol's part (sums, ranks), on the device of the run
        megabytes           peak memory per image of a batch, beyond what was allocated before; NaN if it was not measured
        together            number of methods that share the computation
        images              number of images that the means are over
        ==================  ==============================================================================================

    Raises:
        FileNotFoundError, OldRecordsError, DamagedFileError: as in :func:`load_records`.
    """
    run = Run.open(output)
    parts = pd.DataFrame([{"model": part.model, **part.facts} for part in run.parts("scores")])
    groups = parts.groupby(["model", "seed", "address"], sort=False)
    images = groups["rows"].transform("max")
    costs = parts[["model", "seed", "method"]].assign(
        **{name: groups[name].transform("sum") / images.clip(lower=1) for name in ("forward", "backward")},
        milliseconds=1000 * groups["seconds"].transform("sum") / images.clip(lower=1),
        megabytes=(groups["memory"].transform("max") / 1e6).where(lambda values: values > 0),
        together=groups["method"].transform("nunique"),
        images=images,
    )
    # With several grids, one of them has all costs, since the maps are shared.
    return costs.groupby(["model", "seed", "method"], sort=False).max().reset_index()


_RATES: dict[tuple, float] = {}


def training_rate(stage: Stage) -> float:
    """Return the images per second of a stage, including validation; stages that differ only in their images share one measurement."""
    key = (stage.model, stage.dataset, stage.device, stage.precision, stage.recipe.batch_size, stage.deletion is None)
    if key not in _RATES:
        _RATES[key] = stage.train_images * stage.recipe.epochs / (3600 * rehearse_stage(stage).hours)
    return _RATES[key]


def summary(table: pd.DataFrame) -> str:
    """Return one line per model, and one with the total."""
    sums = table.groupby("model", sort=False)[["seconds_left", "disk_mb"]].sum()
    lines = [f"{model}: {spell(seconds)}, {disk:.1f} MB" for model, seconds, disk in sums.itertuples()]
    return "\n".join([*lines, f"total: {spell(seconds_by_the_clock(table))} left, {table['disk_mb'].sum():.1f} MB on disk"])


def seconds_by_the_clock(table: pd.DataFrame) -> float:
    """Return the seconds of all rows of a measured plan, whose trainings run ``side_by_side``; without that column, one after the other.

    Args:
        table: with ``seconds_left`` or ``hours``; rows of one model and seed wait for each other.
    """
    seconds = pd.Series(0.0, table.index)
    for name, unit in (("seconds_left", 1), ("hours", 3600)):
        if name in table:
            seconds += unit * pd.to_numeric(table[name]).fillna(0).astype(float)
    at_once = pd.to_numeric(table.get("side_by_side", pd.Series(1, table.index))).fillna(1)
    many = (at_once > 1).to_numpy()
    if not many.any():
        return float(seconds.sum())
    names = [table.loc[many, name].astype(str).to_numpy() for name in ("dataset", "model", "fraction", "seed") if name in table]
    nets = seconds[many].groupby(names).sum()
    return float(seconds[~many].sum() + wall_seconds(nets.sum(), nets.max(), int(at_once.max())))


def spell(seconds: float) -> str:
    """Return a time in the largest unit that it fills."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _fill(table: pd.DataFrame, rows: pd.Series, left: int, per_second: float, seconds: float, disk: float) -> None:
    table.loc[rows, ["images_left", "images_per_second", "seconds_left", "disk_mb"]] = [left, per_second, seconds, disk]


def _timed(plan: Plan, job: Job, tasks: list[Task]) -> dict[str, tuple[int, float, float]]:
    """Return images left, images per second and bytes per image, by computation."""
    if isinstance(job.source, Stage) and job.source.missing:
        net = create_model(job.source.model, num_classes=job.source.num_classes)
    else:
        net = job.load()
    with on_loan(net, plan.device, plan.layout_of(job)) as model, explaining(model, plan.quantity):
        return _timed_on(model, plan, job, tasks)


def _timed_on(model: nn.Module, plan: Plan, job: Job, tasks: list[Task]) -> dict[str, tuple[int, float, float]]:
    size = min(batch_size(plan, job), len(job.indices))
    images, targets, image_ids = next(batches(job.dataset, job.indices[:size], size))
    batch = on_plan(plan, job, images, targets, image_ids)
    preparer = torch.compile(model) if plan.compiled else model
    grids = range(len(plan.grids))
    costs: dict[str, tuple[int, float, float]] = {}

    def prepared() -> list[dict[str, Any]]:
        return [prepare(plan, job, preparer, batch, settings) for settings in plan.grids]

    with autocast(plan):
        columns, per_second = _rate(prepared, len(image_ids), plan.device)
        if plan.shared_work:
            left = sum(len(task.indices) for task in tasks for unit in task.units if unit.group is None) // len(plan.grids)
            costs[plan.shared_work] = left, per_second, _bytes(columns) / len(image_ids)
        for number, group in enumerate(job.groups):
            methods = job.create_methods(model, group)
            scores, per_second = _rate(lambda m=methods: score(plan, job, model, m, batch, columns, grids), len(image_ids), plan.device)
            left = sum(len(task.indices) for task in tasks if number in {unit.group for unit in task.units})
            size_of_scores = _bytes([part for of_grid in scores.values() for part in of_grid])
            costs[", ".join(group)] = left, per_second, size_of_scores / len(image_ids)
    return costs


def _rate(function: Callable[[], Any], images: int, device: str) -> tuple[Any, float]:
    """Return the function's result, and its images per second."""
    result = function()
    _finish(device)
    start, times = time.perf_counter(), 0
    while times < AT_MOST and (not times or time.perf_counter() - start < ENOUGH):
        result, times = function(), times + 1
        _finish(device)
    return result, images * times / (time.perf_counter() - start)


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _bytes(columns: Sequence[Columns]) -> int:
    return sum(values.nbytes for part in columns for values in part.values())
