"""Models for studies of metrics: architectures x data sets x fractions of the training images x training seeds, and their quality.

The xai-correlation study (burnpiro/xai-correlation, "Don't Augment Me" and its companion) fine-tunes 3 architectures on 5 data sets with
20, 40, ..., 100 % of the training images, to get models of different quality. Here the fractions are stratified by class and nested, the
epoch is chosen on validation images (the study chose it on its test images), and three measures of quality are distinguished (the study's
"acc" is weighted precision). A cached model is not trained again, and killed training resumes where it stopped.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field, PositiveInt

from idsds import plots
from idsds.common import paths
from idsds.common.devices import chosen_device
from idsds.common.files import atomic, read_json, read_table, write_table
from idsds.common.hashing import digest
from idsds.common.progress import Progress
from idsds.datasets import fingerprint
from idsds.datasets.base import first
from idsds.datasets.xai_correlation import Division
from idsds.statistics.classification import EXCESS, classification_scores, confusion, per_class
from idsds.statistics.intervals import seed_interval
from idsds.statistics.verdicts import verdicts
from idsds.studies.base import DatasetName, Findings, Result, TrainingStudy
from idsds.training.checkpoints import Stage, obtain, rehearse_stage
from idsds.training.predict import predicted
from idsds.training.processes import processes_of, train

Share = Annotated[float, Field(gt=0, le=1)]
IDENTITY = ("dataset", "model", "fraction", "seed")


@dataclass(frozen=True)
class Member:
    """One model of the study."""

    dataset: str
    model: str
    fraction: float
    seed: int
    stage: Stage

    @property
    def name(self) -> str:
        """Its name in records: ``resnet18_060_s0`` for 60 % and seed 0."""
        return f"{self.model}_{round(100 * self.fraction):03d}_s{self.seed}"

    @property
    def identity(self) -> dict[str, Any]:
        """Data set, architecture, fraction and seed."""
        return {name: getattr(self, name) for name in IDENTITY}


class ManyModels(TrainingStudy):
    """Base of studies on many models: architectures x data sets x fractions of the training images x training seeds.

    ``dogs`` is how ``stanford_dogs`` is divided: by the official lists, or with a fifth of each class for testing, as in the study.
    """

    datasets: Annotated[list[DatasetName], Field(min_length=1)]
    fractions: Annotated[list[Share], Field(min_length=1)]
    dogs: Division = "official"

    @property
    def trained_on(self) -> list[str]:
        """The data sets."""
        return self.datasets

    def members(self) -> list[Member]:
        """Return all models, by data set; nothing is trained, but missing images are reported now."""
        found = []
        for dataset, model, seed, fraction in itertools.product(self.datasets, self.models, self.seeds, self.fractions):
            stage = self.stage(model, dataset, seed, deletion=None, fraction=fraction, **self._division(dataset))
            found.append(Member(dataset, model, fraction, seed, stage))
        return found

    def _division(self, dataset: str) -> dict[str, str]:
        """Return the options of a data set that differ from its own."""
        return {"division": self.dogs} if dataset == "stanford_dogs" and self.dogs != "official" else {}

    def quality(self, images: int | None = None, progress: bool = True) -> pd.DataFrame:
        """Measure each model's quality; models that are not cached are trained.

        Args:
            images: number of test images, the first in the fixed order; None: all.

        Returns:
            One row per model: data set, architecture, fraction, seed; ``train_images``, ``epochs``, ``best_epoch`` (from 1) and
            ``val_accuracy`` of it; ``accuracy``, ``macro_f1``, ``weighted_f1`` and ``weighted_precision`` in [0, 1], higher is better, each
            with ``_low`` and ``_high``; ``top5``, accuracy with five guesses; ``count`` of the test images; ``interval``, what these
            intervals cover.
        """
        rows, members = [], self.members()
        train([member.stage for member in members], self.machine, progress)
        with Progress(members, desc="models", disable=not progress) as bar:
            for member in bar:
                bar.set_postfix_str(f"{member.name} on {member.dataset}")
                found = self._predictions(member, images)
                epochs = read_json(member.stage.path.with_suffix(".json"))["epochs"]
                best = max(epochs, key=lambda epoch: (epoch["val_accuracy"], -epoch["val_loss"]))
                row = {**member.identity, "train_images": member.stage.train_images, "epochs": len(epochs)}
                row |= {"best_epoch": best["epoch"] + 1, "val_accuracy": best["val_accuracy"]}
                rows.append({**row, **classification_scores(found["target"], found["prediction"]), "top5": found["top5"].mean()})
        return pd.DataFrame(rows).assign(interval="95 % bootstrap over test images, one training seed each")

    def _predictions(self, member: Member, images: int | None) -> pd.DataFrame:
        """Return image id, target, prediction and ``top5`` of the test images, computed once for each content of the checkpoint."""
        stage, test = member.stage, member.stage.split("test")
        test = test if images is None else first(test, images)
        model = None if stage.intact else obtain(stage, machine=self.machine, progress=False)
        address = digest([stage.key, stage.content, fingerprint(test), stage.device, self.precision, "top5"])
        path = paths.cache() / "predictions" / f"{paths.portable(stage.model)}-{address}.parquet"
        if not path.is_file():
            model = model or obtain(stage, machine=self.machine, progress=False)
            model.to(chosen_device(self.device))
            table = predicted(model, test, size=self.batch_size or 64, workers=self.workers, precision=self.precision)
            write_table(path, table, {"checkpoint": stage.path.name})
        return read_table(path)[0]


class TrainFractions(ManyModels):
    """Train models of different quality, and measure it; ``images`` is the number of test images, None for all."""

    PLAN_BY = ("dataset", "model")

    images: PositiveInt | None = None

    def plan_table(self) -> pd.DataFrame:
        """List what remains to be trained; a dry run times three batches of each architecture and data set that has something left.

        Returns:
            One row per model: ``dataset``, ``model``, ``fraction``, ``seed``, ``cached``, ``train_images``, ``epochs``, ``images_left``
            (forward and backward); in a dry run also ``images_per_second`` (all devices), ``side_by_side`` (trainings at once), ``hours``
            and ``memory_gb`` (of the fullest device; on a CPU of the process).
        """
        rows, rates = [], {}
        for member in self.members():
            stage, pair = member.stage, (member.dataset, member.model)
            left = stage.train_images * stage.recipe.epochs if stage.missing else 0
            row = {**member.identity, "cached": not left, "train_images": stage.train_images}
            row |= {"epochs": stage.recipe.epochs, "images_left": left}
            if self.dry_run:
                if left and pair not in rates:
                    rates[pair] = rehearse_stage(stage, machine=self.machine)
                rate = rates.get(pair) if left else None
                row["images_per_second"] = rate.images_per_second if rate else np.nan
                row["side_by_side"] = processes_of(stage, self.machine) if left else 1
                row["hours"] = left / rate.images_per_second / 3600 if rate else 0.0
                row["memory_gb"] = rate.memory_gb if rate else np.nan
            rows.append(row)
        return pd.DataFrame(rows)

    def classes(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Return what the models do class by class; those that are not cached are trained.

        Returns:
            The confusions and the report per class (:func:`idsds.statistics.classification.confusion` and ``per_class``), with the data
            set, architecture, fraction and seed of each model.
        """
        parts: tuple[list[pd.DataFrame], list[pd.DataFrame]] = ([], [])
        for member in self.members():
            found = self._predictions(member, self.images)
            for part, count in zip(parts, (confusion, per_class), strict=True):
                table = count(found["target"], found["prediction"])
                part.append(pd.concat([pd.DataFrame([member.identity] * len(table)), table], axis=1))
        return pd.concat(parts[0], ignore_index=True), pd.concat(parts[1], ignore_index=True)

    def _run(self, progress: bool) -> Result:
        table = self.quality(self.images, progress)
        with atomic(paths.resolve(self.output) / "quality.csv") as file:
            table.to_csv(file, index=False)
        confusions, report = self.classes()
        pages = [partial(plots.train_fractions, table, columns=self.columns), partial(plots.confusions, confusions, columns=self.columns)]
        return Result(self.stem, {"": table, "confusions": confusions, "classes": report}, findings(table), pages)


def findings(table: pd.DataFrame) -> Findings:
    """Judge per data set and architecture whether more training images give better models, and distinguish the measures of quality."""
    above = 100 * table[EXCESS]
    sides = f"{(table[f'{EXCESS}_low'] > 0).sum()} intervals above 0, {(table[f'{EXCESS}_high'] < 0).sum()} below"
    below = (table["macro_f1"] < table["accuracy"]).sum()
    spread = 100 * table.groupby(["dataset", "model", "fraction"])["accuracy"].std()
    sentences = [
        f'Weighted precision, the study\'s "acc", exceeds accuracy in {(above > 0).sum()} of {len(table)} models, by {above.median():.1f}'
        f" points in the median ({sides}); macro F1 is below accuracy in {below}."
    ]
    if table["seed"].nunique() > 1:
        deviation = f"{spread.median():.1f} points in the median and at most {spread.max():.1f}"
        sentences.append(f"Between {table['seed'].nunique()} training seeds accuracy has a standard deviation of {deviation}.")
    if table["fraction"].nunique() < 2:
        return Findings(sentences)
    least, most = (f"{share:.0%}" for share in (table["fraction"].min(), table["fraction"].max()))
    rows = []
    for (dataset, model), part in table.groupby(["dataset", "model"], sort=False):
        series = 100 * part.pivot(index="seed", columns="fraction", values="accuracy")
        gain, low, high = seed_interval((series.iloc[:, -1] - series.iloc[:, 0]).to_numpy())
        row = {"dataset": dataset, "architecture": model, "gain in points": gain, "low": low, "high": high}
        if "top5" in part:
            near = 100 * part.groupby("fraction")["top5"].mean()
            row["gain in points, top-5"] = near.iloc[-1] - near.iloc[0]
        falls = int((series.diff(axis=1).iloc[:, 1:] < 0).to_numpy().sum())
        rows.append({**row, "verdict": str(verdicts(low, high)), "steps that lower it": falls})
    gains = pd.DataFrame(rows)
    claim = (
        f"Accuracy on test images from {least} to {most} of the training images: {gains['gain in points'].median():+.1f} points"
        f" in the median of {len(gains)} architectures and data sets (intervals over training seeds)."
    )
    return Findings([claim, *sentences], gains)
