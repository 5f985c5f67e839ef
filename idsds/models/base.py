"""What the package knows of a model: how to build it, its input normalisation, its CAM layer, its intrinsic explanation and its loss.

A new model is one decorated function::

    @register_model(family="resnet", normalisation=IMAGENET, cam_layer="layer4")
    def resnet18(num_classes: int) -> nn.Module:
        return torchvision.models.resnet18(num_classes=num_classes)
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from idsds.common.normalisation import Normalisation
from idsds.common.registry import Registry, UnknownNameError

Loss = Literal["cross_entropy", "binary_cross_entropy", "distill"]


@dataclass(frozen=True)
class ModelEntry:
    """One model of the registry.

    Args:
        name: the key.
        build: ``build(num_classes=..., **options)`` gives the net with fresh weights; it takes (B, 3, H, W) and returns logits (B, K).
        family: the architecture's family, which also names its file.
        normalisation: what its input must have gone through; None: the statistics of the data set it is trained on.
        cam_layer: dotted name of the module whose output the CAM methods read, None where CAMs do not apply.
        intrinsic: the name of its built-in explanation in the method registry.
        loss: ``cross_entropy``, or ``binary_cross_entropy`` on one-hot targets.
        num_classes: the default number of classes.
        input_size: pixels of a side at which it is used.
        packaged: whether ``pretrained=True`` reads weights from an installed package instead of downloading them.
        training: what this model's training from scratch changes of the recipe in :mod:`idsds.training.loop`.
        source: the paper.
    """

    name: str
    build: Callable[..., nn.Module]
    family: str
    normalisation: Normalisation | None = None
    cam_layer: str | None = None
    intrinsic: str | None = None
    loss: Loss = "cross_entropy"
    num_classes: int = 1000
    input_size: int = 224
    packaged: bool = False
    training: dict[str, Any] = field(default_factory=dict)
    source: str = ""

    @property
    def options(self) -> list[str]:
        """The keyword options that ``create_model`` takes for this model."""
        return [name for name in inspect.signature(self.build).parameters if name != "num_classes"]

    def __deepcopy__(self, memo: dict) -> ModelEntry:
        return self

    def __reduce__(self) -> tuple[Callable[[str], ModelEntry], tuple[str]]:
        # By name, so that a model can be sent to another process although its builder may be a local function.
        return _registered, (self.name,)


MODELS: Registry[ModelEntry] = Registry("model")


def _registered(name: str) -> ModelEntry:
    return MODELS[name]


def register_model(name: str | None = None, *, replace: bool = False, **entry: Any) -> Callable[[Callable[..., nn.Module]], Any]:
    """Enter the decorated builder under ``name`` or its own name; the other arguments are those of :class:`ModelEntry`."""

    def decorate(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        key = name or build.__name__
        MODELS.add(key, ModelEntry(name=key, build=build, **entry), replace=replace)
        return build

    return decorate


def list_models() -> list[str]:
    """Names of all models, for :func:`create_model`."""
    return list(MODELS)


class _NoRandomNumbers(TorchFunctionMode):
    """Within it no tensor is filled with random numbers: drawing 138 million weights of a VGG only to replace them takes ten seconds."""

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
        num_classes: K; None takes the entry's own (1000 for the ImageNet models, 10 for the ``mini_*`` family).
        checkpoint: path of the authors' ``.pth.tar``, a plain state_dict, or our own ``.safetensors``; None leaves fresh weights.
        options: what the model's builder takes beyond that; ``pretrained=True``, where it is offered, downloads published weights.

    Returns:
        A module that takes float (B, 3, H, W), normalised as ``describe(model).normalisation`` says, and returns logits (B, K).

    Raises:
        UnknownNameError: for an unknown model or option, naming the nearest.
        ValueError: for a ``num_classes`` below 1, or a checkpoint together with ``pretrained``.
        CheckpointError: for a checkpoint that does not fit, naming the file and the first differences.
    """
    entry = MODELS[name]
    for option in options:
        if option not in entry.options:
            raise UnknownNameError(f"option of model {name!r}", option, entry.options)
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
    """The entry of a model made by :func:`create_model`; for any other net an entry that knows nothing of it."""
    entry = getattr(model, "entry", None)
    return entry if isinstance(entry, ModelEntry) else ModelEntry(name=type(model).__name__, build=type(model), family="own")


@contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode with no gradient to its parameters; modes and flags are put back afterwards.

    Attribution needs the gradient at the input only, and skipping the parameters' part saves about a third of a backward pass.
    """
    training = {module: module.training for module in model.modules()}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield model
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, mode in training.items():
            module.training = mode


@contextmanager
def on_loan(net: nn.Module, device: str, layout: torch.memory_format) -> Iterator[nn.Module]:
    """A user's net on a device and in a layout; afterwards it has the very tensors, modes and devices that it came with.

    The tensors that it came with are kept meanwhile: on the CPU its convolutions have their weights twice, on an accelerator the others
    are where they were.
    """
    parameters = [(parameter, parameter.data) for parameter in net.parameters()]
    gradients = [(parameter.grad, parameter.grad.data) for parameter in net.parameters() if parameter.grad is not None]
    buffers = [(module, name, buffer) for module in net.modules() for name, buffer in module._buffers.items()]
    modes = [(module, module.training) for module in net.modules()]
    try:
        yield net.to(device, memory_format=layout)  # type: ignore[call-overload]
    finally:
        for tensor, data in (*parameters, *gradients):
            tensor.data = data
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
        for module, mode in modes:
            module.training = mode
