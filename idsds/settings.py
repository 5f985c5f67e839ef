"""Frozen, validated settings: the one place that says what a params file may contain.

Every name is checked against its registry and every number against its range when the object is made, so that a mistake ends a run
before any work is done.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from idsds import paths
from idsds.datasets.base import DATASETS
from idsds.interventions import BASELINES, patch_size
from idsds.methods.base import split_name
from idsds.models.base import MODELS
from idsds.registry import UnknownNameError

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


class SettingsError(ValueError):
    """Settings that cannot be run. The message lists each fault: the key, the value, what is allowed and the nearest match."""


class Settings(BaseModel):
    """Base of all settings: frozen, no unknown keys, no silent conversion of a string into a number."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise SettingsError(self._explain(error)) from None

    @classmethod
    def from_notebook(cls, namespace: Mapping[str, Any]) -> Self:
        """The settings from a notebook's ``globals()``.

        Papermill only warns of a key that the parameters cell does not have, and goes on: whatever its injected cell assigns must be a
        setting here. Other variables of the notebook are none of its business, so that a cell can be run again.
        """
        injected = {name for source in namespace.get("In", ()) if source.lstrip().startswith("# Parameters") for name in _assigned(source)}
        return cls(**{name: namespace[name] for name in namespace if name in injected or name in cls.model_fields})

    @classmethod
    def _explain(cls, error: ValidationError) -> str:
        lines = [f"{len(error.errors())} fault(s) in {cls.__name__}:"]
        for fault in error.errors():
            key = ".".join(map(str, fault["loc"]))
            if fault["type"] == "extra_forbidden":
                lines.append(f"  {UnknownNameError('key', key, cls.model_fields)}")
            elif fault["type"] == "missing":
                lines.append(f"  {key}: missing")
            else:
                reason = fault["msg"].removeprefix("Value error, ")
                lines.append(f"  {key or 'settings'}: {reason}" + (f" (given: {fault['input']!r})" if key else ""))
        return "\n".join(lines)


class NotebookSettings(Settings):
    """What every notebook takes: ``dry_run`` says what the run would cost, measured on a few batches, and stops there."""

    dry_run: bool = False

    @property
    def planning(self) -> Literal[True, "measure"]:
        """What :func:`idsds.evaluate` is asked for by ``dry_run=``: to count passes, or in a dry run to time some of them as well."""
        return "measure" if self.dry_run else True


def _assigned(source: str) -> set[str]:
    """The names that a cell of plain assignments assigns."""
    return {
        target.id for statement in ast.parse(source).body for target in getattr(statement, "targets", ()) if isinstance(target, ast.Name)
    }


def _one_of(kind: str, allowed: Any) -> Any:
    def check(value: str) -> str:
        if value not in allowed:
            raise UnknownNameError(kind, value, allowed)
        return value

    return AfterValidator(check)


def _is_method(value: str) -> str:
    split_name(value)
    return value


def _is_available(value: str) -> str:
    if value not in DEVICES:
        raise UnknownNameError("device", value, DEVICES)
    if value == "cuda" and not torch.cuda.is_available():
        raise ValueError("no CUDA device is available here; use 'auto' or 'cpu'")
    if value == "mps" and not torch.backends.mps.is_available():
        raise ValueError("no MPS device is available here; use 'auto' or 'cpu'")
    return value


ModelName = Annotated[str, _one_of("model", MODELS)]
MethodName = Annotated[str, AfterValidator(_is_method)]
DatasetName = Annotated[str, _one_of("data set", DATASETS)]
BaselineName = Annotated[str, _one_of("baseline", BASELINES)]
Device = Annotated[str, AfterValidator(_is_available)]
Precision = Annotated[str, _one_of("precision", PRECISIONS)]


class Deletion(Settings):
    """What is deleted: one patch of a ``grid`` x ``grid`` grid, replaced by ``baseline``."""

    grid: PositiveInt = 4
    baseline: BaselineName = "zeros"


class Recipe(Settings):
    """How a model is trained.

    The defaults train a ``mini_*`` net from scratch; the paper's recipe for fine-tuning at full size is :data:`PAPER`.
    """

    epochs: PositiveInt = 3
    batch_size: PositiveInt = 64
    optimizer: Literal["sgd", "adamw"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 3e-3
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    schedule: Literal["one_cycle", "step"] = "one_cycle"
    step_epochs: PositiveInt = 10
    step_factor: Annotated[float, Field(gt=0)] = 0.1
    clip: Annotated[float, Field(ge=0)] = 1.0


PAPER = Recipe(epochs=30, batch_size=256, optimizer="sgd", lr=1e-3, momentum=0.9, weight_decay=1e-4, schedule="step", clip=0.0)


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


def check_precision(precision: str, device: str) -> None:
    """Raise SettingsError for half precision on a device (``cpu``, ``cuda`` or ``mps``) that does not have it."""
    if precision == "16-mixed" and device != "cuda":
        raise SettingsError(f"precision '16-mixed' needs a CUDA device, this is {device!r}; use 'bf16-mixed' or '32-true'")


class RankingSettings(RunSettings):
    """What ``params/*/rank_methods.yaml`` may say; ``columns`` is the width of the figure in columns of a paper."""

    columns: Literal[1, 2] = 2

    def run(self) -> dict[str, Any]:
        """The keyword arguments of :func:`idsds.evaluate`."""
        return {name: value for name, value in self.evaluate().items() if name != "columns"}


def chosen_device(device: str = "auto") -> torch.device:
    """The device that ``auto`` stands for: cuda, else mps, else cpu. Raises SettingsError for one that is not there."""
    try:
        _is_available(device)
    except ValueError as error:
        raise SettingsError(f"device: {error}") from error
    if device != "auto":
        return torch.device(device)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
