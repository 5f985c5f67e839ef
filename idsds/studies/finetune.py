"""In-domain fine-tuning: deleted patches become in-distribution, so that a drop in the logit measures importance.

Half of the training images lose one random patch of the grid (Hesse, Schaub-Meyer, Roth, NeurIPS 2024, section 3). It has worked if
accuracy on images with one deleted patch is close to that on intact images, which does not change.

The same params file serves a notebook, the command line, torchrun and Slurm (docs/clusters.md); a killed run resumes when started again.
``batch_size`` is that of all devices together, 256 in the paper; if a device cannot hold its share, ``accumulate`` splits it into passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, Self

import pandas as pd
from lightning_fabric import Fabric
from pydantic import Field, PositiveInt, model_validator
from torch import nn

from idsds import plots
from idsds.common import paths
from idsds.common.files import atomic
from idsds.common.registry import check_names
from idsds.datasets import DATASETS, ImageDataset
from idsds.datasets.base import OnError, first
from idsds.evaluation.evaluate import evaluate
from idsds.models.base import describe
from idsds.statistics.intervals import wilson
from idsds.statistics.rankings import rank_agreement
from idsds.studies.base import DatasetName, Findings, MethodName, Result, TrainingStudy, check_grids, in_memory
from idsds.studies.result import listed
from idsds.training.checkpoints import PRETRAINED, Stage, obtain, rehearse_stage
from idsds.training.launch import Machine, is_main, of_all
from idsds.training.predict import accuracy
from idsds.training.processes import processes_of, train
from idsds.training.recipes import BaselineName, Deletion
from idsds.training.steps import loader_of


def measure(
    model: nn.Module, test: ImageDataset, deletion: Deletion | None, *, batch_size: int | None = None, workers: int = 0, **machine: Any
) -> list[dict[str, Any]]:
    """Measure accuracy on intact images and on the same ones with one patch deleted.

    Args:
        model: returns logits (B, K).
        batch_size: batch size over all devices together; None for 64.
        machine: ``device``, ``devices`` and ``precision``, see :class:`idsds.training.launch.Machine`.

    Returns:
        Two rows: ``images`` (``intact``, ``one patch deleted``), ``accuracy`` (share in [0, 1], higher is better), ``low`` and ``high``
        (95 % Wilson interval over images), ``top5`` (accuracy with five guesses), ``top5_low``, ``top5_high``, ``count`` of images,
        ``skipped``, those that could not be read. Images of one group, such as crops of a photo, count as one in the intervals, which
        makes them conservative; ``groups`` says how many there are.
    """
    kinds = {"intact": None, "one patch deleted": deletion}
    shares = Machine(**machine).launch(_measure, model, test, list(kinds.values()), batch_size or 64, workers)
    skipped = len(of_all(test.skipped))
    count, rows = len(test) - skipped, []
    units = count if test.groups is None else min(count, len(set(test.groups)))
    for kind, (share, near) in zip(kinds, shares, strict=True):
        row: dict[str, Any] = {"images": kind}
        for name, value, ends in (("accuracy", share, ("low", "high")), ("top5", near, ("top5_low", "top5_high"))):
            row |= {name: value, **dict(zip(ends, wilson(value * units, units), strict=True))}
        rows.append({**row, "count": count, "skipped": skipped, **({} if units == count else {"groups": units})})
    return rows


def _measure(
    fabric: Fabric, model: nn.Module, test: ImageDataset, deletions: Sequence[Deletion | None], batch: int, workers: int
) -> list[tuple[float, float]]:
    model.to(fabric.device)
    mine = range(len(test))[fabric.global_rank :: fabric.world_size]
    size = max(1, batch // fabric.world_size)
    chosen = [mine[start : start + size] for start in range(0, len(mine), size)]
    loss = describe(model).loss
    found = [accuracy(model, loader_of(test, chosen, workers), deletion, loss=loss, fabric=fabric) for deletion in deletions]
    return [(share, near) for share, _, near in found]


def costs(table: pd.DataFrame, of: str = "accuracy") -> pd.DataFrame:
    """Return the accuracy (or ``top5``) that one deleted patch costs, from a table of :meth:`Finetune.train`.

    Returns:
        One row per model and seed: ``before`` and ``after`` in-domain fine-tuning, ``intact_change``, how the accuracy on intact images
        changes.
    """
    accuracy = table.pivot_table(index=["model", "seed"], columns=["stage", "images"], values=of, sort=False)
    intact, deleted = (accuracy.xs(kind, axis=1, level="images") for kind in ("intact", "one patch deleted"))
    return (intact - deleted)[["before", "after"]].assign(intact_change=intact["after"] - intact["before"]).reset_index()


def ranking_changes(records: pd.DataFrame) -> pd.DataFrame:
    """Return the effect of fine-tuning on the drops and on the ranking of methods.

    Args:
        records: of :func:`idsds.evaluate`, with ``label``, ``before`` or ``after``.

    Returns:
        One row per model: ``largest_drop_before`` and ``largest_drop_after``, medians over images of the largest drop (logits); ``rho``,
        Spearman's correlation of the methods' mean scores before and after, with ``low``, ``high``; ``tau``, Kendall's; ``methods`` that
        were compared, all but the controls, and ``images``.
    """
    agreed = rank_agreement(records[records["family"] != "control"], "label")
    agreed = agreed[(agreed["first"] == "before") & (agreed["second"] == "after")].set_index("model")
    once = records.drop_duplicates(["label", "model", "seed", "image_id"]).assign(largest=lambda rows: rows["drops"].map(max))
    table = once.pivot_table("largest", "model", "label", aggfunc="median", sort=False)[["before", "after"]].add_prefix("largest_drop_")
    names = {"rho": "rho", "low": "rho_low", "high": "rho_high", "tau": "tau", "methods": "methods", "images": "count"}
    return table.assign(**{name: agreed[column] for name, column in names.items()}).rename_axis(columns=None).reset_index()


class Finetune(TrainingStudy):
    """Fine-tune models in-domain, and measure the effect on their accuracy for the first ``images`` test images.

    With ``methods``, also measure the effect on drops and on the ranking of methods, for the first ``ranked_images``; this needs models
    with published weights, which are scored as ``before``.
    """

    PLAN_BY = ("model", "stage")

    dataset: DatasetName
    images: PositiveInt
    methods: list[MethodName] = []
    ranked_images: PositiveInt = 60
    grid: PositiveInt = 4
    baseline: BaselineName = "zeros"
    root: str | None = None
    held_out: Annotated[float, Field(ge=0, lt=1)] | None = None
    on_error: OnError | None = None
    accumulate: PositiveInt = 1
    save_every: PositiveInt = 1000

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_grids(self.dataset, self.grid)
        if self.methods and any(self.checkpoints.get(model) != PRETRAINED for model in self.models):
            raise ValueError("methods: a ranking before and after needs models whose checkpoints are 'pretrained'")
        if self.methods and self.root is not None:
            raise ValueError("methods: a ranking reads its images in $IDSDS_DATA, not in a root")
        check_names(f"option of data set {self.dataset!r}", self._data_options(), DATASETS[self.dataset].options)
        return self

    def _data_options(self) -> dict[str, Any]:
        return {name: value for name in ("root", "held_out", "on_error") if (value := getattr(self, name)) is not None}

    @property
    def trained_on(self) -> list[str]:
        """The data set."""
        return [self.dataset]

    @property
    def machine(self) -> Machine:
        """The hardware that the stages run on."""
        return Machine(self.devices, self.workers, self.accumulate, self.save_every)

    def stages(self) -> list[Stage]:
        """Return the in-domain stage of each model and seed."""
        domain = {"deletion": Deletion(grid=self.grid, baseline=self.baseline), **self._data_options()}
        return [self.stage(model, self.dataset, seed, **domain) for model in self.models for seed in self.seeds]

    def _checked_stages(self) -> list[Stage]:
        """Return the stages. Raises CheckpointError if a file of initial weights does not fit: now, and not after days of training."""
        stages = self.stages()
        for stage in stages:
            stage.check_weights()
        return stages

    def plan_table(self) -> pd.DataFrame:
        """Measure what remains to be done on three batches of each stage that is not cached; nothing is trained.

        Returns:
            One row per model, seed and stage: stage, cached, side_by_side (trainings at once), steps left, images_per_second (training,
            all devices), hours left, memory_gb (the largest of a device; on a CPU of the process).
        """
        rows = []
        for stage in self._checked_stages():
            for part in filter(None, (stage.start, stage)):
                name = "train" if part.deletion is None else "fine-tune in-domain"
                facts = {"model": part.model, "seed": part.seed, "stage": name, "cached": part not in stage.missing}
                nothing = {"steps": 0, "images_per_second": float("nan"), "hours": 0.0, "memory_gb": float("nan")}
                facts["side_by_side"] = processes_of(part, self.machine)
                rows.append({**facts, **(nothing if facts["cached"] else asdict(rehearse_stage(part, machine=self.machine)))})
        return pd.DataFrame(rows)

    def train(self, progress: bool = True) -> pd.DataFrame:
        """Fine-tune every model with every seed, and measure the effect. Cached stages are not repeated.

        Accuracies are those of the test split (for ImageNet the official validation images): the first ``images`` of its fixed order,
        intact and with one patch deleted, the same patch before and after. No epoch was chosen on them, unless ``held_out=0``.

        Returns:
            One row per model, seed, stage (``before``, ``after``) and kind of images, with the columns of :func:`measure` and the
            ``checkpoint``. Also in ``output/accuracy.csv``.

        Raises:
            CheckpointError: for a file of ``checkpoints`` that cannot be read or does not fit, before anything is trained.
            ImageReadError: for an image that cannot be read, unless ``on_error="skip"`` leaves it out and counts it.
        """
        machine = {name: getattr(self, name) for name in ("batch_size", "workers", "device", "devices", "precision")}
        rows: list[dict[str, Any]] = []
        stages = self._checked_stages()
        train(stages, self.machine, progress)
        for stage in stages:
            test = first(stage.split("test"), self.images)
            if stage.start is not None:
                obtain(stage.start, machine=self.machine, progress=progress)
            # Reload the initial weights, since the stage may come from the cache.
            before, after = stage.begin(), obtain(stage, machine=self.machine, progress=progress)
            for when, net, path in (("before", before, stage.start.path if stage.start else stage.weights), ("after", after, stage.path)):
                facts = {"model": stage.model, "seed": stage.seed, "stage": when}
                rows += [{**facts, **row, "checkpoint": str(path)} for row in measure(net, test, stage.deletion, **machine)]
        table = pd.DataFrame(rows)
        if is_main():
            with atomic(paths.resolve(self.output) / "accuracy.csv") as file:
                table.to_csv(file, index=False)
        return table

    def ranked(self, progress: bool = True) -> pd.DataFrame:
        """Score the methods on the nets before and after: the records of :func:`idsds.evaluate`, with ``label``."""
        names = ("methods", "dataset", "grid", "baseline", "device", "precision")
        shared = {name: getattr(self, name) for name in names} | {"images": self.ranked_images, "progress": progress}
        parts = []
        for seed in self.seeds:
            tuned = {stage.model: stage for stage in self.stages() if stage.seed == seed}
            for label, protocol, models in (("before", "single_deletion", self.models), ("after", "idsds", tuned)):
                checkpoints = self.checkpoints if label == "before" else None
                run = {"protocol": protocol, "seed": seed, "checkpoints": checkpoints, "output": f"{self.output}/{label}_{seed}"}
                parts.append(in_memory(evaluate(models, **shared, **run)).assign(label=label))
        return pd.concat(parts, ignore_index=True)

    def _run(self, progress: bool) -> Result:
        trained = self.train(progress)
        table, mean = trained.drop(columns="checkpoint"), (cost := costs(trained)).mean(numeric_only=True)
        near = costs(trained, "top5").mean(numeric_only=True)
        sentences = [
            f"One deleted patch costs {mean['before']:.1%} of accuracy before in-domain fine-tuning and {mean['after']:.1%} after it"
            f" (top-5: {near['before']:.1%} and {near['after']:.1%}).",
            f"The accuracy on intact images changes by {mean['intact_change']:+.1%} (top-5: {near['intact_change']:+.1%}).",
            f"These are means of {len(cost)} nets, {table['count'].max()} images each.",
        ]
        tables = {"": table, "costs": cost}
        if self.methods:
            tables["ranking"] = changes = ranking_changes(self.ranked(progress))
            agreed = listed(f"{row.rho:.2f} [{row.low:.2f}, {row.high:.2f}] on {row.model}" for row in changes.itertuples())
            sentences[2] = f"The rankings of methods before and after it have a Spearman correlation of {agreed}."
        draw = partial(plots.finetune, table, columns=self.columns)
        return Result(self.stem, tables, Findings(sentences), draw, trained)
