"""What the adapters of all libraries share: imports, options and random numbers."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from idsds.common.randomness import Draws, seeded
from idsds.common.registry import check_name
from idsds.methods import graphs
from idsds.methods.base import LOGIT_ONLY, Passes
from idsds.methods.cam import Reading, cam_layer, channels_first, graph_from, no_cam_layer
from idsds.models.base import describe

#: By library: its module, its distribution, and the extra of this package that installs it ("": always installed).
SOURCES = {
    "captum": ("captum.attr", "captum", ""),
    "torchcam": ("torchcam.methods", "torchcam", ""),
    "zennit": ("zennit.composites", "zennit", "zennit"),
    "gradcam": ("pytorch_grad_cam", "grad-cam", "gradcam"),
    "saliency": ("saliency.core", "saliency", "saliency"),
}


class MissingLibraryError(ModuleNotFoundError):
    """An optional library that is not installed; the message names the extra that installs it."""


@cache
def library(name: str) -> ModuleType:
    """Import one of :data:`SOURCES`. Raises MissingLibraryError."""
    module, distribution, extra = SOURCES[name]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise MissingLibraryError(f"{distribution} is not installed: pip install 'idsds[{extra}]'", name=error.name) from error


@dataclass(frozen=True)
class LibraryMethod(ABC):
    """A library's class as a registered method, called as ``(model, images, targets, *, draws, batch, **options)``.

    Args:
        name: the class's name in the library.
    """

    name: str
    library: ClassVar[str]
    family: ClassVar[str] = "gradient"
    #: The library's classes that are methods here.
    NAMES: ClassVar[Sequence[str]]
    #: Parameters of the library's calls that users cannot set.
    GIVEN: ClassVar[Sequence[str]] = ()
    #: Methods that explain each image alone, most of them because they draw random numbers from global generators.
    RANDOM: ClassVar[Sequence[str]] = ()
    #: Why methods explain the logit alone, see :class:`idsds.models.quantity.Quantity`.
    OF_LOGIT: ClassVar[Mapping[str, str]] = {}
    #: The library's other attribution classes, and why they are not methods here.
    REFUSED: ClassVar[Mapping[str, str]] = {}

    @property
    def explains_not(self) -> dict[str, str]:
        """By kind of quantity, why it cannot be explained."""
        return dict.fromkeys(LOGIT_ONLY, self.OF_LOGIT[self.name]) if self.name in self.OF_LOGIT else {}

    @property
    def key(self) -> str:
        """``library/Name``."""
        return f"{self.library}/{self.name}"

    def __getattr__(self, name: str) -> str:
        if name == "__qualname__":  # part of a record's address, together with the source of this module
            return f"{self.key} {version(SOURCES[self.library][1])}"
        raise AttributeError(name)

    @property
    def __signature__(self) -> inspect.Signature:
        kind = inspect.Parameter.KEYWORD_ONLY
        taken = [p for call in self.calls() for p in inspect.signature(call).parameters.values() if p.name not in self.GIVEN]
        options = {p.name: p.default for p in taken if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)} | self.added()
        given = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("model", "images", "targets")]
        own = [inspect.Parameter(name, kind, default=default) for name, default in options.items()]
        return inspect.Signature([*given, *own, *(inspect.Parameter(name, kind) for name in ("draws", "batch"))])

    @property
    def cls(self) -> type:
        """The library's class."""
        return getattr(library(self.library), self.name)

    def calls(self) -> list[Callable[..., Any]]:
        """Return the library's calls, whose parameters are the options."""
        return [self.cls]

    def added(self) -> dict[str, Any]:
        """Return options added to the library's, or with a different default here."""
        return {}

    def passes(self, model: nn.Module, **options: Any) -> Passes | None:
        """Return the passes per image; None if unknown."""
        return None

    def queries(self, **options: Any) -> dict[str, Any] | None:
        """Return the deletions that it queries, see :func:`idsds.common.interventions.on_grid`; None if it queries none."""
        return None

    def inapplicable(self, model: nn.Module) -> str | None:
        """Return why it does not apply to a model; None if it does. Raises MissingLibraryError."""
        library(self.library)
        try:
            return self.refuses(model)
        except graphs.NotTraceableError as error:
            return str(error)

    def refuses(self, model: nn.Module) -> str | None:
        """Return why it does not apply to a model; None if it does. Raises NotTraceableError."""
        return None

    @abstractmethod
    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, *, draws: Draws, batch: int, **options: Any) -> Tensor:
        """Return maps, (B, C, H, W) or (B, H, W)."""

    def batched(self, explain: Callable[..., Tensor], images: Tensor, targets: Tensor, draws: Draws, size: int) -> Tensor:
        """Explain ``size`` images at a time, or each alone with the global generators seeded by (seed, method, image id)."""
        maps, alone = [], self.name in self.RANDOM
        for start in range(0, len(images), 1 if alone else size):
            some = slice(start, start + (1 if alone else size))
            drawn = Draws(draws.seed, draws.key, images[some], draws.image_ids[some])
            with seeded(draws.seed, draws.key, *drawn.image_ids, device=images.device) if alone else nullcontext():
                maps.append(explain(images[some], targets[some], drawn))
        return torch.cat(maps)


def gradients_needed(images: Tensor) -> Tensor:
    """Return a copy of the images that requires a gradient, because libraries modify their inputs."""
    return images.detach().clone().requires_grad_()


class CamMethod(LibraryMethod):
    """Base of the CAMs of torchcam and pytorch-grad-cam, which read a layer."""

    family = "CAM"
    #: Methods that cannot be told the layer's layout.
    CHANNELS_FIRST: ClassVar[tuple[str, ...]] = ()
    LAST = "it reads the CAM layer's second dimension as channels, but this model's are elsewhere"
    #: Methods that multiply the maps of several layers.
    OF_LAYERS: ClassVar[tuple[str, ...]] = ("RefineCAM",)

    def added(self) -> dict[str, Any]:
        return {"layer": None, "channels": None}

    def refuses(self, model: nn.Module) -> str | None:
        return no_cam_layer(model)

    def layers(self, model: nn.Module, layer: str | Sequence[str] | None) -> list[str]:
        """Return the names of the layers that it reads. Raises UnknownNameError, or TypeError for too few or too many."""
        names = [layer] if layer is None or isinstance(layer, str) else list(layer)
        if self.name in self.OF_LAYERS and len(names) < 2:
            raise TypeError(f"{self.key} multiplies the maps of layers: its option 'layer' needs two names or more")
        if self.name not in (*self.OF_LAYERS, "LeGrad") and len(names) > 1:
            raise TypeError(f"{self.key} reads one layer, not {', '.join(names)}")
        return [cam_layer(model, name) for name in names]

    def with_base(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options with ``base_method``, given by name, as a CAM class of the library. Raises UnknownNameError."""
        if not isinstance(base := options.get("base_method"), str):
            return dict(options)
        check_name(f"base_method of {self.key}", base, self.NAMES)
        return {**options, "base_method": getattr(library(self.library), base)}

    def reading(self, model: nn.Module, layers: Sequence[str], images: Tensor, channels: Reading) -> Callable[[Tensor], Tensor]:
        """Return a function that rearranges the layers' values to (B, K, h, w), in the images' dtype: only the model runs under autocast.

        Raises:
            ValueError: if layers have the same shape but different layouts, or the method can read only (B, K, h, w).
        """
        entry, orders = describe(model), {}
        if channels is None and list(layers) == [entry.cam_layer] and entry.cam_channels == "first":
            return lambda values: values.to(images.dtype)
        with torch.no_grad(), ExitStack() as stack:
            outputs = {layer: stack.enter_context(graph_from(model.get_submodule(layer))) for layer in layers}
            model(images[:1])
        for layer, (output, *_) in outputs.items():
            shape, ordered = tuple(output.shape[1:]), channels_first(model, layer, output.detach(), images, channels)
            if self.name in self.CHANNELS_FIRST and ordered(output) is not output:
                raise ValueError(f"{self.key} on {layer}: {self.LAST}")
            if orders.setdefault(shape, ordered)(output).shape != ordered(output).shape:
                raise ValueError(f"{self.key}: {', '.join(layers)} give {shape} with channels at different places; give channels=")
        return lambda values: orders[tuple(values.shape[1:])](values).to(images.dtype)
