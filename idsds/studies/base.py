"""Frozen, validated settings: the one place that says what a params file may contain.

Every name is checked against its registry and every number against its range when the object is made, so that a mistake ends a run
before any work is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

import pandas as pd
from pydantic import AfterValidator, Field, PositiveInt, model_validator

from idsds.common import paths
from idsds.common.devices import Device, Precision, _one_of, check_precision, chosen_device
from idsds.common.interventions import patch_size
from idsds.common.registry import UnknownNameError
from idsds.common.settings import Settings
from idsds.datasets.base import DATASETS
from idsds.evaluation.costs import _spell
from idsds.methods.base import split_name
from idsds.models.base import MODELS
from idsds.training.recipes import BaselineName


class NotebookSettings(Settings):
    """What every notebook takes: ``dry_run`` says what the run would cost, measured on a few batches, and stops there."""

    dry_run: bool = False

    @property
    def planning(self) -> Literal[True, "measure"]:
        """What :func:`idsds.evaluate` is asked for by ``dry_run=``: to count passes, or in a dry run to time some of them as well."""
        return "measure" if self.dry_run else True


def _is_method(value: str) -> str:
    split_name(value)
    return value


ModelName = Annotated[str, _one_of("model", MODELS)]
MethodName = Annotated[str, AfterValidator(_is_method)]
DatasetName = Annotated[str, _one_of("data set", DATASETS)]


def check_unique(settings: Settings, *names: str) -> None:
    """Raises ValueError where one of these lists of the settings names a thing twice."""
    for name in names:
        values = getattr(settings, name)
        if twice := sorted({str(value) for value in values if values.count(value) > 1}):
            raise ValueError(f"{name} lists {', '.join(twice)} more than once")


def check_output(output: str) -> None:
    """Raises ValueError, with the system's reason, where the output folder cannot be written to."""
    try:
        paths.check_writable(output)
    except OSError as error:
        raise ValueError(str(error)) from error


class RunSettings(NotebookSettings):
    """What every notebook that ranks or compares takes; the names are the same in all of them."""

    dataset: DatasetName
    models: Annotated[list[ModelName], Field(min_length=1)]
    methods: Annotated[list[MethodName], Field(min_length=1)]
    images: PositiveInt
    grid: PositiveInt = 4
    baseline: BaselineName = "zeros"
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    device: Device = "auto"
    precision: Precision = "32-true"
    output: str
    checkpoints: dict[str, str] = {}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        size = DATASETS[self.dataset].image_size
        patch_size(size, size, self.grid)
        check_unique(self, "models", "methods", "seeds")
        check_precision(self.precision, chosen_device(self.device).type)
        for name in self.checkpoints:
            if name not in self.models:
                raise UnknownNameError("model with a checkpoint", name, self.models)
        check_output(self.output)
        return self

    def evaluate(self) -> dict[str, Any]:
        """The keyword arguments of :func:`idsds.evaluate`."""
        values = self.model_dump(exclude={"dry_run"})
        values["seed"] = values.pop("seeds")
        return values


#: What is summed over the pieces of work, wherever a plan says it.
SUMS = ("epochs", "images_left", "forward", "backward", "steps", "seconds_left", "hours", "disk_mb")


def announce(plan: pd.DataFrame, settings: NotebookSettings, by: Sequence[str] = ("model",)) -> None:
    """Show in a notebook what a run will do; a dry run ends here.

    ``SystemExit`` ends a notebook without a fault: papermill stops at the cell and reports no error, and the kernel of JupyterLab goes on.

    Args:
        plan: one row per piece of work, with some of the columns :data:`SUMS`.
        settings: of the notebook; its ``dry_run`` decides.
        by: the columns whose groups get a row of sums.

    Raises:
        SystemExit: with code 0, in a dry run.
    """
    from IPython.display import display  # not needed, and slow to import, outside notebooks

    plan = once(plan)
    sums = [name for name in SUMS if name in plan]
    table = plan.groupby(list(by), sort=False)[sums].sum(min_count=1)
    display(table.dropna(axis=1, how="all"))
    print(f"In all: {spell_cost(plan)}.", flush=True)
    if settings.dry_run:
        print("A dry run: it ends here, nothing was computed.", flush=True)
        raise SystemExit(0)


def once(plan: pd.DataFrame) -> pd.DataFrame:
    """The plan with each training listed once: several runs may need the same net, which the first of them trains."""
    if "checkpoint" not in plan:
        return plan
    trained = plan["checkpoint"].fillna("") != ""
    return plan[~(trained & plan.duplicated("checkpoint"))]


def spell_cost(plan: pd.DataFrame) -> str:
    """The sums of a plan in words: passes, training, time and disk, as far as it says them; each training counts once."""
    plan = once(plan)
    total = {name: float(pd.to_numeric(plan[name]).sum()) for name in SUMS if name in plan}
    said = []
    if "forward" in plan:
        said.append(f"{total['forward']:,.0f} forward and {total['backward']:,.0f} backward passes")
        if "epochs" in plan and (stages := int(plan["epochs"].notna().sum())):
            said.append(f"{stages} training stage(s) that are not cached")
    elif "images_left" in plan:
        said.append(f"{total['images_left']:,.0f} images forward and backward in training")
    if total.get("steps"):
        said.append(f"{total['steps']:,.0f} steps of training")
    seconds = total.get("seconds_left", 0) + 3600 * total.get("hours", 0)
    if seconds:
        said.append(f"about {_spell(seconds)} left")
    if total.get("disk_mb"):
        said.append(f"{total['disk_mb']:,.1f} MB on disk")
    return ", ".join(said)
