"""Training recipes, and the deletions of in-domain fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PositiveInt, model_serializer

from idsds.common.interventions import as_baseline
from idsds.common.settings import Settings

BaselineName = Annotated[str, AfterValidator(as_baseline)]


class Deletion(Settings):
    """Deletion of one patch of a ``grid`` x ``grid`` grid, or of a random number of them up to ``share``; ``baseline`` replaces them."""

    grid: PositiveInt = 4
    baseline: BaselineName = "zeros"
    share: Annotated[float, Field(gt=0, le=1)] | None = None

    @model_serializer(mode="wrap")
    def _without_default(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Omit ``share`` if None, so that checkpoints keep their addresses."""
        return {name: value for name, value in dump(self).items() if name != "share" or value is not None}

    @property
    def most(self) -> int:
        """The largest number of patches deleted from an image."""
        return 1 if self.share is None else math.ceil(self.share * self.grid**2)


class Recipe(Settings):
    """Optimiser, schedule, epochs and batch size.

    The defaults train a ``mini_*`` net from scratch; the paper's recipe for fine-tuning at full size is :data:`PAPER`. ``loss: distill``
    uses no labels: on images with deleted patches, the net learns to reproduce its original predictions for the intact images (KL
    divergence of class probabilities), and the epoch is chosen by agreement with the original net on intact validation images. A score on
    such a net is called IDSDS (distilled).
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
    loss: Literal["labels", "distill"] = "labels"

    @property
    def address(self) -> dict[str, Any]:
        """The fields that identify the recipe; a loss that uses labels is omitted, so that checkpoints keep their addresses."""
        return self.model_dump(exclude={"loss"} if self.loss == "labels" else None)


#: Self-distillation for unlabelled images.
DISTILL = Recipe(epochs=4, batch_size=32, optimizer="sgd", lr=3e-3, weight_decay=1e-4, loss="distill")
PAPER = Recipe(epochs=30, batch_size=256, optimizer="sgd", lr=1e-3, momentum=0.9, weight_decay=1e-4, schedule="step", clip=0.0)
