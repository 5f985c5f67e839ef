"""Model registry: how each model is built, its input normalisation, CAM layer, intrinsic explanation and loss.

A new model is one decorated function::

    @register_model(family="resnet", normalisation=IMAGENET, cam_layer="layer4")
    def resnet18(num_classes: int) -> nn.Module:
        return torchvision.models.resnet18(num_classes=num_classes)
"""

from __future__ import annotations

import inspect
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from idsds.common.normalisation import Normalisation
from idsds.common.registry import Registry, check_names

Loss = Literal["cross_entropy", "binary_cross_entropy", "distill"]
Channels = Literal["first", "last"]


@dataclass(frozen=True)
class ModelEntry:
    """One model in the registry.

    Args:
        build: ``build(num_classes=..., **options)`` returns a randomly initialised net that maps (B, 3, H, W) to logits (B, K).
        normalisation: normalisation of the input; None for the statistics of the data set that it is trained on.
        cam_layer: dotted name of the module whose output the CAM methods read; None if CAMs do not apply.
        cam_channels: layout of that layer's output, ``first`` for (B, K, h, w) or ``last`` for (B, h, w, K).
        intrinsic: method name of its built-in explanation.
        loss: ``cross_entropy``, or ``binary_cross_entropy`` on one-hot targets.
        num_classes: the default number of classes.
        input_size: pixels per side of the input.
        crop: fraction of the shorter side kept by the centre crop; None if the data set decides.
        interpolation: how images are resized before cropping, ``bilinear`` or another of torchvision's modes.
        squash: whether images are resized to a square regardless of their aspect ratio.
        patch: pixels per side of its patches or windows; the input size must be a multiple of it. 1 for none.
        packaged: whether ``pretrained=True`` reads weights from an installed package instead of downloading them.
        training: changes to the recipe of :mod:`idsds.training.loop` for training this model from scratch.
    """

    name: str
    build: Callable[..., nn.Module]
    family: str
    normalisation: Normalisation | None = None
    cam_layer: str | None = None
    cam_channels: Channels = "first"
    intrinsic: str | None = None
    loss: Loss = "cross_entropy"
    num_classes: int = 1000
    input_size: int = 224
    crop: float | None = None
    interpolation: str = "bilinear"
    squash: bool = False
    patch: int = 1
    packaged: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def view(self) -> tuple[Any, ...] | None:
        """How image files are read, see :func:`idsds.datasets.images.viewed`; None if the data set decides."""
        how = () if self.interpolation == "bilinear" and not self.squash else (self.interpolation, *([True] if self.squash else []))
        return None if self.crop is None else (self.input_size, self.crop, *how)

    @property
    def options(self) -> list[str]:
        """The keyword options that ``create_model`` takes for this model."""
        return [name for name in inspect.signature(self.build).parameters if name != "num_classes"]

    def __deepcopy__(self, memo: dict) -> ModelEntry:
        return self

    def __reduce__(self) -> tuple[Callable[[str], ModelEntry], tuple[str]]:
        # By name, so that a model can be pickled even if its builder is a local function.
        return _registered, (self.name,)


MODELS: Registry[ModelEntry] = Registry("model")


def _registered(name: str) -> ModelEntry:
    return MODELS[name]


def register_model(name: str | None = None, *, replace: bool = False, **entry: Any) -> Callable[[Callable[..., nn.Module]], Any]:
    """Register the decorated builder under ``name`` or its own name. Other arguments: see :class:`ModelEntry`."""
    return MODELS.registering(partial(ModelEntry, **entry), name, replace)


def list_models(library: str | None = None) -> list[str]:
    """Return the names of all models, for :func:`create_model`.

    Args:
        library: ``timm`` or ``torchvision`` for all of its models, as ``library/Name``; None for the package's own.

    Raises:
        UnknownNameError: for an unknown library.
    """
    return list(MODELS) if library is None else MODELS.names_of(library)


class _NoRandomNumbers(TorchFunctionMode):
    """Skip random initialisation: drawing the 138 million weights of a VGG only to replace them takes ten seconds."""

    RANDOM = (Tensor.normal_, Tensor.uniform_, nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)

    def __torch_function__(self, function: Callable, types: object, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if function in self.RANDOM:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def create_model(name: str, num_classes: int | None = None, checkpoint: str | os.PathLike[str] | None = None, **options: Any) -> nn.Module:
    """Build a model in eval mode.

    Args:
        name: one of :func:`list_models`.
        num_classes: K; None for the entry's default (1000 for the ImageNet models, 10 for the ``mini_*`` family).
        checkpoint: path of a ``.safetensors`` file of this package, a plain state_dict, or the authors' ``.pth.tar``; None for random
            weights.
        options: further options of the builder; ``pretrained=True``, where offered, downloads published weights.

    Returns:
        A module that takes float (B, 3, H, W), normalised as ``describe(model).normalisation`` says, and returns logits (B, K).

    Raises:
        UnknownNameError: for an unknown model or option, with the nearest match.
        ValueError: if ``num_classes`` is below 1, or both a checkpoint and ``pretrained`` are passed.
        CheckpointError: if the checkpoint does not fit; the message names the file and the first differences.
    """
    entry = MODELS[name]
    check_names(f"option of model {name!r}", options, entry.options)
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be at least 1, not {num_classes}")
    if checkpoint is not None and options.get("pretrained"):
        raise ValueError(f"model {name!r}: give either a checkpoint or pretrained=True, not both")
    with _NoRandomNumbers() if checkpoint is not None else nullcontext():
        model = entry.build(num_classes=entry.num_classes if num_classes is None else num_classes, **options)
    model.entry = entry  # type: ignore[assignment]
    if checkpoint is not None:
        from idsds.models.weights import load_checkpoint

        load_checkpoint(model, checkpoint)
    return model.eval()


def describe(model: nn.Module) -> ModelEntry:
    """Return the entry of a model made by :func:`create_model`; for any other net, an empty entry."""
    entry = getattr(model, "entry", None)
    return entry if isinstance(entry, ModelEntry) else ModelEntry(name=type(model).__name__, build=type(model), family="own")


@contextmanager
def frozen(model: nn.Module, *, parameters: bool = True) -> Iterator[nn.Module]:
    """Put the model into eval mode and freeze its parameters; modes and flags are restored afterwards.

    Attribution needs only the input gradient; skipping the parameters' saves about a third of a backward pass. A user's net receives
    copies of its inputs in the dtype of its weights, so its forward may modify them in place without affecting anything else.
    """
    training = {module: module.training for module in model.modules()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad] if parameters else []
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    outermost = parameters and model not in TRAINABLE
    if outermost:
        TRAINABLE[model] = trainable
    try:
        with own_inputs(model):
            yield model
    finally:
        if outermost:
            del TRAINABLE[model]
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, mode in training.items():
            module.training = mode


def precision_of(model: nn.Module, otherwise: torch.dtype = torch.float32) -> torch.dtype:
    """Return the dtype of a net's weights, in which it receives images; ``otherwise`` for a net without weights."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), otherwise)


#: The parameters to unfreeze again, by frozen net.
TRAINABLE: weakref.WeakKeyDictionary[nn.Module, list[nn.Parameter]] = weakref.WeakKeyDictionary()
_HOOKED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


@contextmanager
def own_inputs(model: nn.Module) -> Iterator[None]:
    """Forward pre-hook that gives a user's net a copy of every input tensor."""
    installed = getattr(describe(model).build, "__module__", "").startswith("idsds.")
    if installed or model in _HOOKED or isinstance(model, torch.jit.ScriptModule):
        yield
        return

    def own(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        convert = value.is_floating_point() and not torch.is_autocast_enabled(value.device.type)
        converted = value.to(precision_of(model, value.dtype)) if convert else value
        return converted.clone() if converted is value else converted

    def copy(_module: nn.Module, inputs: tuple, named: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return tuple(map(own, inputs)), {name: own(value) for name, value in named.items()}

    handle = model.register_forward_pre_hook(copy, prepend=True, with_kwargs=True)
    _HOOKED.add(model)
    try:
        yield
    finally:
        _HOOKED.discard(model)
        handle.remove()
