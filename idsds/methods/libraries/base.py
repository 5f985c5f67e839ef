"""What the adapters of all libraries share: imports, options and random numbers."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from idsds.common.randomness import Draws, seeded
from idsds.common.registry import UnknownNameError
from idsds.methods import graphs
from idsds.methods.base import Passes
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
    #: Parameters of the library's calls that users cannot set.
    GIVEN: ClassVar[frozenset[str]] = frozenset()
    #: By kind of :class:`idsds.models.quantity.Quantity`, why it cannot be explained.
    explains_not: ClassVar[Mapping[str, str]] = {}
    #: The library's other attribution classes, and why they are not methods here.
    REFUSED: ClassVar[Mapping[str, str]] = {}
    #: Options added to the library's, with their defaults.
    ADDED: ClassVar[Mapping[str, Any]] = {}

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
        options = {**{p.name: p.default for p in self.parameters() if self.is_option(p)}, **self.added()}
        given = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("model", "images", "targets")]
        own = [inspect.Parameter(name, kind, default=default) for name, default in options.items()]
        return inspect.Signature([*given, *own, *(inspect.Parameter(name, kind) for name in ("draws", "batch"))])

    @property
    def cls(self) -> type:
        """The library's class."""
        return getattr(library(self.library), self.name)

    def parameters(self) -> list[inspect.Parameter]:
        """Return the parameters of the library's calls."""
        return list(inspect.signature(self.cls).parameters.values())

    def is_option(self, parameter: inspect.Parameter) -> bool:
        """Return whether users may set a parameter."""
        variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        return not variadic and parameter.name not in self.GIVEN

    def added(self) -> dict[str, Any]:
        """Return options added to the library's, or with a different default here."""
        return dict(self.ADDED)

    def passes(self, model: nn.Module, **options: Any) -> Passes | None:
        """Return the passes per image; None if unknown."""
        return None

    def queries(self, **options: Any) -> dict[str, Any] | None:
        """Return the deletions that it queries, see :func:`idsds.common.interventions.on_grid`; None if it queries none."""
        return None

    def inapplicable(self, model: nn.Module) -> str | None:
        """Return why it does not apply to a model; None if it does. Raises MissingLibraryError."""
        library(self.library)
        return self.refuses(model)

    def refuses(self, model: nn.Module) -> str | None:
        """Return why it does not apply to a model; None if it does."""
        return None

    @abstractmethod
    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, *, draws: Draws, batch: int, **options: Any) -> Tensor:
        """Return maps, (B, C, H, W) or (B, H, W)."""


def one_by_one(explain: Callable[[Tensor, Tensor, Draws], Tensor], images: Tensor, targets: Tensor, draws: Draws) -> Tensor:
    """Explain each image alone, with the global generators seeded by (seed, method, image id)."""
    maps = []
    for number, image_id in enumerate(draws.image_ids):
        some = slice(number, number + 1)
        with seeded(draws.seed, draws.key, image_id, device=images.device):
            maps.append(explain(images[some], targets[some], Draws(draws.seed, draws.key, images[some], [image_id])))
    return torch.cat(maps)


def gradients_needed(images: Tensor) -> Tensor:
    """Return a copy of the images that requires a gradient, because libraries modify their inputs."""
    return images.detach().clone().requires_grad_()


def without_rules(model: nn.Module, has_rule: graphs.OfType) -> str | None:
    """Return why module-based rules do not apply to a model; None if they do."""
    try:
        return graphs.unruled(model, has_rule)
    except graphs.NotTraceableError as error:
        return str(error)


class CamMethod(LibraryMethod):
    """Base of the CAMs of torchcam and pytorch-grad-cam, which read a layer."""

    ADDED = {"layer": None, "channels": None}

    def refuses(self, model: nn.Module) -> str | None:
        return no_cam_layer(model)

    #: Methods that cannot be told the layer's layout.
    CHANNELS_FIRST: ClassVar[tuple[str, ...]] = ()
    LAST = "it reads the CAM layer's second dimension as channels, but this model's are elsewhere"
    #: Methods that multiply the maps of several layers.
    OF_LAYERS: ClassVar[tuple[str, ...]] = ("RefineCAM",)

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
        base = options.get("base_method")
        if not isinstance(base, str):
            return dict(options)
        if base not in self.NAMES:  # type: ignore[attr-defined]
            raise UnknownNameError(f"base_method of {self.key}", base, self.NAMES)  # type: ignore[attr-defined]
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
            outputs: dict[str, list[Tensor]] = {layer: [] for layer in layers}
            for layer, found in outputs.items():
                stack.enter_context(graph_from(model.get_submodule(layer), found))
            model(images[:1])
        for layer, (output, *_) in outputs.items():
            shape, ordered = tuple(output.shape[1:]), channels_first(model, layer, output.detach(), images, channels)
            if self.name in self.CHANNELS_FIRST and ordered(output) is not output:
                raise ValueError(f"{self.key} on {layer}: {self.LAST}")
            if orders.setdefault(shape, ordered)(output).shape != ordered(output).shape:
                raise ValueError(f"{self.key}: {', '.join(layers)} give {shape} with channels at different places; give channels=")
        return lambda values: orders[tuple(values.shape[1:])](values).to(images.dtype)
