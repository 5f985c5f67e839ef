"""In-domain fine-tuning: deleted patches become ordinary input, so that a drop of the logit measures importance and not surprise.

Half of the training images lose one random patch of the grid (Hesse, Schaub-Meyer, Roth, NeurIPS 2024, section 3). The evidence that it
worked is the accuracy on images with one deleted patch: it comes close to the accuracy on intact ones, which stays what it was.

One function, :func:`finetune`, serves all of these; the numbers of processes and nodes are read from the environment. Files lie below
``IDSDS_HOME`` (default: the repository), the data below ``IDSDS_DATA``; a run that was killed goes on when it is started again.

In a notebook, on 1..N devices of this machine (``devices: 4`` in the params file)::

    papermill notebooks/finetune.ipynb runs/imagenet/finetune.ipynb -f params/imagenet/finetune.yaml

In a terminal, the same; then what it will take (steps, images per second, hours, memory), without training::

    python -m idsds finetune params/imagenet/finetune.yaml devices=4
    python -m idsds finetune params/imagenet/finetune.yaml devices=4 dry_run=true

With torchrun on two nodes of eight devices, the same line on each of them::

    torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=$HEAD_NODE:29500 \\
        -m idsds finetune params/imagenet/finetune.yaml

Under Slurm, one task per device, in a batch script (``--requeue`` goes on after a preemption)::

    #SBATCH --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=8 --requeue
    srun python -m idsds finetune params/imagenet/finetune.yaml

``batch_size`` is that of all devices together: 256 in the paper. Where a device cannot hold its share, ``accumulate`` cuts it into passes.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pandas as pd
import yaml
from lightning_fabric import Fabric
from pydantic import Field, PositiveInt, model_validator
from scipy import stats
from torch import nn

from idsds.common import paths
from idsds.common.devices import Device, Precision
from idsds.common.files import atomic
from idsds.common.interventions import patch_size
from idsds.common.registry import UnknownNameError
from idsds.datasets import DATASETS, ImageDataset
from idsds.datasets.base import OnError, first
from idsds.models.base import describe
from idsds.studies.base import DatasetName, ModelName, NotebookSettings, check_output, check_unique
from idsds.training.checkpoints import PRETRAINED, Machine, Stage, check_starts, obtain, plan_training, rehearse_stage, trains_from_scratch
from idsds.training.launch import check_machine, is_main, launch, of_all
from idsds.training.predict import accuracy
from idsds.training.recipes import BaselineName, Deletion
from idsds.training.steps import loader_of

Positive = Annotated[float, Field(gt=0)]
# The settings that change the recipe.
RECIPE = ("epochs", "batch_size", "lr", "momentum", "weight_decay", "step_epochs", "step_factor")


class FineTuneSettings(NotebookSettings):
    """What ``params/*/finetune.yaml`` may say; None leaves a value of the recipe as it is.

    ``images`` is the number of test images on which the accuracies are measured. ``checkpoints`` names per model what it starts from: a
    file, or ``pretrained``, which downloads published weights; the small nets on small images need none. ``columns`` is the width of the
    figure in columns of a paper.
    """

    dataset: DatasetName
    models: Annotated[list[ModelName], Field(min_length=1)]
    images: PositiveInt
    grid: PositiveInt = 4
    baseline: BaselineName = "zeros"
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    device: Device = "auto"
    devices: PositiveInt = 1
    precision: Precision = "32-true"
    output: str
    checkpoints: dict[str, str] = {}
    root: str | None = None
    held_out: Annotated[float, Field(ge=0, lt=1)] | None = None
    on_error: OnError | None = None
    workers: Annotated[int, Field(ge=0)] = 0
    accumulate: PositiveInt = 1
    save_every: PositiveInt = 1000
    epochs: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    lr: Positive | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    step_epochs: PositiveInt | None = None
    step_factor: Positive | None = None
    columns: Literal[1, 2] = 2

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        size = DATASETS[self.dataset].image_size
        patch_size(size, size, self.grid)
        check_machine(self.device, self.devices, self.precision)
        check_unique(self, "models", "seeds")
        check_starts(self.checkpoints, self.models)
        for name in self.models:
            if name not in self.checkpoints and not trains_from_scratch(name, self.dataset):
                raise ValueError(
                    f"checkpoints: {name!r} needs weights to start from on {self.dataset!r}, a file or 'pretrained'; "
                    "only mini_* models on images of 32 x 32 are trained from scratch"
                )
        for option in self._data_options():
            if option not in DATASETS[self.dataset].options:
                raise UnknownNameError(f"option of data set {self.dataset!r}", option, DATASETS[self.dataset].options)
        check_output(self.output)
        return self

    def _data_options(self) -> dict[str, Any]:
        return {name: value for name in ("root", "held_out", "on_error") if (value := getattr(self, name)) is not None}

    @property
    def machine(self) -> Machine:
        """What the stages run on."""
        return Machine(self.devices, self.workers, self.accumulate, self.save_every)

    def check_checkpoints(self) -> None:
        """Raise CheckpointError where a file to start from does not fit its model: now, and not when its turn has come after days."""
        for model in self.models:
            self.stage(model, self.seeds[0]).check_weights()

    def stage(self, model: str, seed: int) -> Stage:
        """The in-domain stage of one model and seed."""
        start = self.checkpoints.get(model)
        return plan_training(
            model,
            self.dataset,
            grid=self.grid,
            baseline=self.baseline,
            seed=seed,
            device=self.device,
            precision=self.precision,
            weights=start if start in (None, PRETRAINED) else str(paths.resolve(start)),
            changes={name: value for name in RECIPE if (value := getattr(self, name)) is not None},
            options=self._data_options(),
        )


def finetune(settings: FineTuneSettings, *, progress: bool = True) -> pd.DataFrame:
    """Fine-tune every model with every seed, and measure what it did. What is cached is not done again.

    Accuracies are those of the test split (for ImageNet the official validation images): the first ``images`` of its fixed order, intact
    and with one patch deleted, the same patch before and after. No epoch was chosen on them, unless ``held_out=0`` asks for just that.

    Args:
        settings: validated.
        progress: whether to show a bar with loss, accuracy and time left.

    Returns:
        One row per model, seed, stage (``before``, ``after``) and kind of images (``intact``, ``one patch deleted``): accuracy (share in
        [0, 1], higher is better), low and high (95 % interval over images, Wilson), count, checkpoint. Also in ``output/accuracy.csv``.
        With ``dry_run`` what remains to be done: see :func:`plan_table`.

    Raises:
        CheckpointError: for a file of ``checkpoints`` that cannot be read or does not fit, before anything is trained.
        ImageReadError: for an image that cannot be read, unless ``on_error="skip"`` leaves it out and counts it.
    """
    if settings.dry_run:
        return plan_table(settings)
    settings.check_checkpoints()
    rows: list[dict[str, Any]] = []
    for model in settings.models:
        for seed in settings.seeds:
            stage = settings.stage(model, seed)
            test = first(stage.split("test"), settings.images)
            if stage.start is not None:
                obtain(stage.start, machine=settings.machine, progress=progress)
            # The weights before are loaded anew: a stage that is cached may have been made long ago.
            before, after = stage.begin(), obtain(stage, machine=settings.machine, progress=progress)
            for when, net, path in (("before", before, stage.start.path if stage.start else stage.weights), ("after", after, stage.path)):
                facts = {"model": model, "seed": seed, "stage": when, "checkpoint": str(path)}
                rows += [{**facts, **row} for row in measure(net, test, stage.deletion, settings)]
    columns = ["model", "seed", "stage", "images", "accuracy", "low", "high", "count", "skipped", "checkpoint"]
    table = pd.DataFrame(rows)[columns]
    if is_main():
        with atomic(paths.resolve(settings.output) / "accuracy.csv") as partial:
            table.to_csv(partial, index=False)
    return table


def headline(table: pd.DataFrame) -> str:
    """One sentence on a table of :func:`finetune`: what a deleted patch costs before and after, and what happens to intact images."""
    accuracy = table.pivot_table(index=["model", "seed"], columns=["stage", "images"], values="accuracy")
    cost = {when: (accuracy[when]["intact"] - accuracy[when]["one patch deleted"]).mean() for when in ("before", "after")}
    change = (accuracy["after"]["intact"] - accuracy["before"]["intact"]).mean()
    return (
        f"One deleted patch costs {cost['before']:.1%} of accuracy before in-domain fine-tuning and {cost['after']:.1%} after it, "
        f"and intact images change by {change:+.1%} (means of {len(accuracy)} nets, {table['count'].max()} images each)."
    )


def measure(model: nn.Module, test: ImageDataset, deletion: Deletion | None, settings: FineTuneSettings) -> list[dict[str, Any]]:
    """Accuracy on intact images and on the same ones with one patch deleted, two rows."""
    kinds = {"intact": None, "one patch deleted": deletion}
    shares = launch(
        _measure,
        model,
        test,
        list(kinds.values()),
        settings.batch_size or 64,
        settings.workers,
        device=settings.device,
        devices=settings.devices,
        precision=settings.precision,
    )
    rows = []
    skipped = len(of_all(test.skipped))
    count = len(test) - skipped
    for kind, share in zip(kinds, shares, strict=True):
        interval = stats.binomtest(round(share * count), count).proportion_ci(method="wilson")
        facts = {"accuracy": share, "low": interval.low, "high": interval.high, "count": count, "skipped": skipped}
        rows.append({"images": kind, **facts})
    return rows


def _measure(
    fabric: Fabric, model: nn.Module, test: ImageDataset, deletions: Sequence[Deletion | None], batch: int, workers: int
) -> list[float]:
    model.to(fabric.device)
    mine = range(len(test))[fabric.global_rank :: fabric.world_size]
    size = max(1, batch // fabric.world_size)
    chosen = [mine[start : start + size] for start in range(0, len(mine), size)]
    loss = describe(model).loss
    return [accuracy(model, loader_of(test, chosen, workers), deletion, loss=loss, fabric=fabric)[0] for deletion in deletions]


def plan_table(settings: FineTuneSettings) -> pd.DataFrame:
    """What remains to be done, measured on three batches of each stage that is not cached; nothing is trained.

    Returns:
        One row per model, seed and stage: stage, cached, steps left, images_per_second (training, all devices), hours left, memory_gb (the
        largest of a device; on a CPU of the process).

    Raises:
        CheckpointError: for a file of ``checkpoints`` that cannot be read or does not fit.
    """
    settings.check_checkpoints()
    rows = []
    for model in settings.models:
        for seed in settings.seeds:
            stage = settings.stage(model, seed)
            for part in filter(None, (stage.start, stage)):
                name = "train" if part.deletion is None else "fine-tune in-domain"
                facts = {"model": model, "seed": seed, "stage": name, "cached": part not in stage.missing}
                nothing = {"steps": 0, "images_per_second": float("nan"), "hours": 0.0, "memory_gb": float("nan")}
                rows.append({**facts, **(nothing if facts["cached"] else asdict(rehearse_stage(part, machine=settings.machine)))})
    return pd.DataFrame(rows)


def read_params(path: str | Path, changes: Sequence[str] = ()) -> FineTuneSettings:
    """The settings of a params file, with ``key=value`` changes (values as in YAML)."""
    values = yaml.safe_load(Path(path).read_text()) or {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise ValueError(f"a change is key=value, not {change!r}")
        values[key] = yaml.safe_load(value)
    return FineTuneSettings(**values)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: a params file, then changes to it."""
    parser = argparse.ArgumentParser(prog="python -m idsds finetune", description="Fine-tune models in-domain.")
    parser.add_argument("params", help="a params file, such as params/imagenet/finetune.yaml")
    parser.add_argument("changes", nargs="*", metavar="key=value", help="settings to change, such as dry_run=true")
    given = parser.parse_args(arguments)
    table = finetune(read_params(given.params, given.changes))
    if is_main():
        print(table.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
