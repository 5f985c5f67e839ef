"""The models of a study of metrics: architectures x data sets x shares of the training images x training seeds, and how good each is.

The second study that this package repeats (burnpiro/xai-correlation, "Don't Augment Me" and its companion) fine-tunes 3 architectures on
5 data sets with 20, 40, ..., 100 % of the training images, to have models of many qualities. Here the shares are stratified by class and
nested, the epoch is chosen on validation images (the study chose it on the images that it then tested on), and the three measures of
quality are told apart (what the study calls "acc" is weighted precision). A model that is cached is not trained again, and one whose
training was killed goes on where it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Self

import pandas as pd
from pydantic import Field, PositiveInt, model_validator
from tqdm import tqdm

from idsds.common import paths
from idsds.common.devices import Device, Precision, chosen_device
from idsds.common.files import atomic, read_json, read_table, write_table
from idsds.common.hashing import digest
from idsds.datasets import fingerprint
from idsds.datasets.base import first
from idsds.statistics.classification import EXCESS, classification_scores
from idsds.studies.base import DatasetName, ModelName, NotebookSettings, check_output, check_unique
from idsds.studies.finetune import RECIPE
from idsds.training.checkpoints import PRETRAINED, Machine, Stage, check_starts, obtain, plan_training, rehearse_stage, trains_from_scratch
from idsds.training.predict import predicted

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
IDENTITY = ("dataset", "model", "fraction", "seed")


class ModelsSettings(NotebookSettings):
    """Which models, trained how: what the notebooks on many models have in common; None leaves a value of the recipe as it is.

    ``checkpoints`` names per architecture what it starts from: a file, or ``pretrained``, which downloads published weights; the small
    nets on embedded data need none.
    """

    datasets: Annotated[list[DatasetName], Field(min_length=1)]
    models: Annotated[list[ModelName], Field(min_length=1)]
    fractions: Annotated[list[Share], Field(min_length=1)]
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    device: Device = "auto"
    devices: PositiveInt = 1
    precision: Precision = "32-true"
    output: str
    checkpoints: dict[str, str] = {}
    workers: Annotated[int, Field(ge=0)] = 0
    epochs: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    lr: Positive | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    step_epochs: PositiveInt | None = None
    step_factor: Positive | None = None

    @model_validator(mode="after")
    def _models_fit(self) -> Self:
        check_unique(self, "datasets", "models", "fractions", "seeds")
        check_starts(self.checkpoints, self.models)
        for name in self.models:
            for dataset in self.datasets:
                if name not in self.checkpoints and not trains_from_scratch(name, dataset):
                    raise ValueError(
                        f"checkpoints: {name!r} needs weights to start from on {dataset!r}, a file or 'pretrained'; "
                        "only mini_* models on embedded data are trained from scratch"
                    )
        check_output(self.output)
        return self

    @property
    def machine(self) -> Machine:
        """What the models are trained on."""
        return Machine(self.devices, self.workers)


class TrainFractionSettings(ModelsSettings):
    """What ``params/*/train_fractions.yaml`` may say; ``images`` is the number of test images, None for all."""

    images: PositiveInt | None = None


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
        """Data set, architecture, share and seed."""
        return {name: getattr(self, name) for name in IDENTITY}


def members(settings: ModelsSettings) -> list[Member]:
    """All models of the study, by data set; nothing is trained, but images that are not on this disk are complained of now."""
    return list(_members(settings))


def _members(settings: ModelsSettings) -> Iterator[Member]:
    changes = {name: value for name in RECIPE if (value := getattr(settings, name)) is not None}
    for dataset in settings.datasets:
        for model in settings.models:
            start = settings.checkpoints.get(model)
            for seed in settings.seeds:
                for fraction in settings.fractions:
                    stage = plan_training(
                        model,
                        dataset,
                        in_domain=False,
                        seed=seed,
                        device=settings.device,
                        precision=settings.precision,
                        weights=start if start in (None, PRETRAINED) else str(paths.resolve(start)),
                        changes=changes,
                        fraction=fraction,
                    )
                    yield Member(dataset, model, fraction, seed, stage)


def plan_table(settings: ModelsSettings, *, measured: bool = False) -> pd.DataFrame:
    """What remains to be trained, one row per model; nothing is trained.

    Args:
        settings: validated.
        measured: time three batches of each architecture and data set that has something left.

    Returns:
        ``dataset``, ``model``, ``fraction``, ``seed``, ``cached``, ``train_images``, ``epochs``, ``images_left`` (forward and backward);
        when measured also ``images_per_second`` (all devices), ``hours`` and ``memory_gb`` (of the fullest device; of a CPU the process's).
    """
    rows, rates = [], {}
    for member in members(settings):
        stage = member.stage
        left = stage.train_images * stage.recipe.epochs if stage.missing else 0
        row = {
            **member.identity,
            "cached": not left,
            "train_images": stage.train_images,
            "epochs": stage.recipe.epochs,
            "images_left": left,
        }
        if measured:
            pair = member.dataset, member.model
            if left and pair not in rates:
                rates[pair] = rehearse_stage(stage, machine=settings.machine)
            rate = rates.get(pair)
            row["images_per_second"] = rate.images_per_second if rate and left else float("nan")
            row["hours"] = left / rate.images_per_second / 3600 if rate and left else 0.0
            row["memory_gb"] = rate.memory_gb if rate and left else float("nan")
        rows.append(row)
    return pd.DataFrame(rows)


def train_fractions(settings: TrainFractionSettings, *, progress: bool = True) -> pd.DataFrame:
    """Train every model that is not cached, and measure how good it is on test images that nothing was chosen on.

    Returns:
        The table of :func:`quality`, also in ``output/quality.csv``; with ``dry_run`` the measured :func:`plan_table`, and nothing is done.
    """
    if settings.dry_run:
        return plan_table(settings, measured=True)
    table = quality(settings, settings.images, progress=progress)
    with atomic(paths.resolve(settings.output) / "quality.csv") as partial:
        table.to_csv(partial, index=False)
    return table


def quality(settings: ModelsSettings, images: int | None = None, *, progress: bool = True) -> pd.DataFrame:
    """How good each model is.

    Args:
        settings: which models; what is not cached is trained.
        images: the first so many test images of the fixed order; None: all.
        progress: whether to show a bar.

    Returns:
        One row per model: data set, architecture, share, seed; ``train_images``, ``epochs``, ``best_epoch`` (from 1) and ``val_accuracy``
        of it; ``accuracy``, ``macro_f1`` and ``weighted_precision`` in [0, 1], higher is better, each with ``_low`` and ``_high``;
        ``count`` of the test images; ``interval``, what these intervals cover.
    """
    rows = []
    everyone = members(settings)
    with tqdm(everyone, desc="models", disable=not progress) as bar:
        for member in bar:
            bar.set_postfix_str(f"{member.name} on {member.dataset}")
            found = _predictions(member, settings, images)
            epochs = read_json(member.stage.path.with_suffix(".json"))["epochs"]
            best = max(epochs, key=lambda epoch: (epoch["val_accuracy"], -epoch["val_loss"]))
            row = {**member.identity, "train_images": member.stage.train_images, "epochs": len(epochs)}
            row |= {"best_epoch": best["epoch"] + 1, "val_accuracy": best["val_accuracy"]}
            rows.append({**row, **classification_scores(found["target"], found["prediction"])})
    return pd.DataFrame(rows).assign(interval="95 % bootstrap over test images, one training seed each")


def _predictions(member: Member, settings: ModelsSettings, images: int | None) -> pd.DataFrame:
    """Image id, target and prediction of the test images, computed once per checkpoint and kept beside it."""
    test = member.stage.split("test")
    test = test if images is None else first(test, images)
    address = digest([member.stage.key, fingerprint(test), member.stage.device, settings.precision])
    path = paths.cache() / "predictions" / f"{member.stage.model}-{address}.parquet"
    if not path.is_file() or member.stage.missing:
        model = obtain(member.stage, machine=settings.machine, progress=False)
        model.to(chosen_device(settings.device))
        table = predicted(model, test, size=settings.batch_size or 64, workers=settings.workers, precision=settings.precision)
        write_table(path, table, {"checkpoint": member.stage.path.name})
    return read_table(path)[0]


def findings(table: pd.DataFrame) -> list[str]:
    """What a table of :func:`quality` says, one sentence each; every number is computed from it."""
    seeds = table["seed"].nunique()
    counts = ", ".join(f"{rows['count'].min()} on {dataset}" for dataset, rows in table.groupby("dataset", sort=False))
    trained = f"{len(table)} models, of {seeds} training seeds each" if seeds > 1 else f"{len(table)} models, of one training seed"
    said = [f"{trained}, judged on test images that nothing was chosen on ({counts})."]
    cells = [rows.sort_values("fraction") for _, rows in table.groupby(["dataset", "model", "seed"], sort=False)]
    if len(low_high := sorted(set(table["fraction"]))) > 1:
        least, most = low_high[0], low_high[-1]
        gains = pd.Series([rows["accuracy"].iloc[-1] - rows["accuracy"].iloc[0] for rows in cells])
        steps = pd.concat([rows["accuracy"].diff().iloc[1:] for rows in cells])
        said.append(
            f"From {least:.0%} to {most:.0%} of the training images, accuracy changes by {100 * gains.median():+.1f} points in the median "
            f"({100 * gains.min():+.1f} to {100 * gains.max():+.1f}) over {len(gains)} series; {(steps < 0).sum()} of the {len(steps)} "
            "steps from one share to the next lower it."
        )
    above = 100 * table[EXCESS]
    higher, lower = (table[f"{EXCESS}_low"] > 0).sum(), (table[f"{EXCESS}_high"] < 0).sum()
    said.append(
        f"Weighted precision, which the study calls accuracy, is above accuracy in {(above > 0).sum()} of {len(table)} models, by "
        f"{above.median():.1f} points in the median and up to {above.max():.1f} (paired 95 % interval over the images above 0 in {higher}, "
        f"below 0 in {lower}); macro F1 is below accuracy in {(table['macro_f1'] < table['accuracy']).sum()}."
    )
    if seeds > 1:
        spread = 100 * table.groupby(["dataset", "model", "fraction"])["accuracy"].std()
        said.append(
            f"Between {seeds} training seeds accuracy has a standard deviation of {spread.median():.1f} points in the median, and of up to "
            f"{spread.max():.1f}."
        )
    return said
