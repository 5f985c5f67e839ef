"""Inspection of a user's net on two images before any work: what it returns, and in which memory layout and dtype it runs.

What cannot work raises an error that says what to change. What works but may not mean what the user expects (probabilities, outputs that
differ between calls) is noted, with one warning each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils.data import Dataset

from idsds.models.base import frozen, precision_of
from idsds.models.isolation import HALF, on_loan

#: Fraction of the logits' spread by which two calls may differ through rounding, by device, layout and batch size.
ROUNDING = 1e-3
SIGMOID = {torch.sigmoid, Tensor.sigmoid, torch.special.expit}


class Scripted(nn.Module):
    """Wrap a TorchScript net in a module that accepts hooks; its layers stay out of reach."""

    def __init__(self, net: torch.jit.ScriptModule) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        """The script's output."""
        return self.net(images)


def as_net(name: str, net: Any) -> Any:
    """Return the net to evaluate, without a wrapper by DataParallel or ``torch.compile``; any other object is returned unchanged.

    Raises:
        ValueError: for a net with uninitialised lazy layers, or a frozen TorchScript net.
    """
    while isinstance(net, (nn.DataParallel, nn.parallel.DistributedDataParallel)) or hasattr(net, "_orig_mod"):
        net = net._orig_mod if hasattr(net, "_orig_mod") else net.module
    if isinstance(net, torch.jit.ScriptModule):
        if not hasattr(net, "training"):
            raise ValueError(f"model {name!r} is a frozen TorchScript net: pass the script before torch.jit.freeze, or the nn.Module")
        return Scripted(net)
    if isinstance(net, nn.Module):
        for layer, module in net.named_modules():
            if any(map(is_lazy, (*module.parameters(recurse=False), *module.buffers(recurse=False)))):
                raise ValueError(
                    f"model {name!r} is not built yet: layer {layer!r}, a {type(module).__name__}, has uninitialized parameters. "
                    "Run the net on a batch of images once, and then load its weights"
                )
    return net


@dataclass(frozen=True)
class Facts:
    """What is known about a user's net.

    Args:
        layout: memory format of images and weights.
        dtype: dtype of its input images.
        gradient: whether its logits are differentiable with respect to the images.
        notes: what the user should know about it, one sentence each.
        kind: of what it returns: ``logits``, ``probabilities`` or ``log-probabilities``.
    """

    classes: int
    layout: torch.memory_format
    dtype: torch.dtype
    gradient: bool
    notes: tuple[str, ...] = ()
    kind: str = "logits"


def two_images(dataset: Dataset, indices: Sequence[int]) -> Tensor:
    """Return the first two readable images, (2, C, H, W); if there is only one, that image and its mirror image.

    Raises:
        ValueError: if no image can be read.
    """
    readable = (item[0] for index in indices if (item := dataset[index]) is not None)
    images = list(islice(readable, 2))
    if not images:
        raise ValueError(f"none of the {len(indices)} images can be read")
    return torch.stack(images if len(images) == 2 else [images[0], images[0].flip(-1)])


def examined(name: str, net: nn.Module, images: Tensor, device: str, channels_last: bool) -> Facts:
    """Inspect a net with a few passes of two images, (2, C, H, W), on the device of the evaluation.

    Raises:
        ValueError: if the net fails, does not return logits (B, K), or its logits for an image depend on the rest of the batch.
    """
    notes: list[str] = []
    plain = _tried(name, net, images, device, torch.contiguous_format)
    logits, layout = plain.logits, torch.contiguous_format
    if not plain.deterministic:
        notes.append(f"model {name!r} is not deterministic: two calls on the same images give different logits (active dropout?)")
    elif plain.alone is None or _differ(plain.alone, logits[:1], logits):
        raise ValueError(_of_batch(name, net))
    if channels_last:
        try:
            found = _tried(name, net, images, device, torch.channels_last)
            reason = "its logits differ there" if plain.deterministic and _differ(found.logits, logits, logits) else ""
        except ValueError as error:
            reason = str(error.__cause__ or error).splitlines()[0]
        if reason:
            notes.append(f"model {name!r} does not run in channels_last memory format and is evaluated with channels_last=False: {reason}")
        else:
            layout = torch.channels_last
    if logits.dtype in HALF:
        half = str(logits.dtype).removeprefix("torch.")
        notes.append(f"model {name!r} returns {half}: small drops are lost in rounding. Leave out the autocast in its forward")
    if kind := _probabilities(logits, plain.squashed):
        notes.append(f"model {name!r} returns {kind}, not logits, and scores refer to these. Remove the last layer to score logits")
    return Facts(logits.shape[1], layout, plain.dtype, plain.gradient, tuple(notes), kind or "logits")


@dataclass(frozen=True)
class _Tried:
    logits: Tensor
    deterministic: bool
    gradient: bool
    squashed: bool
    alone: Tensor | None
    dtype: torch.dtype


def _tried(name: str, net: nn.Module, images: Tensor, device: str, layout: torch.memory_format) -> _Tried:
    """Run two passes of two images, a backward pass and a pass of one image. Raises ValueError from the net's own error."""
    devices = [torch.cuda.current_device()] if device == "cuda" else []
    with torch.random.fork_rng(devices=devices), on_loan(net, device, layout) as model, frozen(model), torch.inference_mode(False):
        dtype = precision_of(model)
        batch = images.detach().to(device, dtype, copy=True).contiguous(memory_format=layout).requires_grad_()
        try:
            with torch.enable_grad():
                output = model(batch)
                logits = _as_logits(name, output, len(images))
                reached = logits.requires_grad and torch.autograd.grad(logits.sum(), batch, allow_unused=True)[0] is not None
            with torch.no_grad():
                with _Last() as last:
                    again = model(batch)
                kept = again.clone()
                model(batch.flip(0))
        except (RuntimeError, TypeError, AttributeError, IndexError, NotImplementedError) as error:
            given = f"images {tuple(batch.shape)} of {str(dtype).removeprefix('torch.')} on {device}"
            raise ValueError(f"model {name!r} fails on {given}: {type(error).__name__}: {error}") from error
        if not torch.equal(kept.nan_to_num(), again.nan_to_num()):
            raise ValueError(f"model {name!r} returns the same memory in every call, and so overwrites its last result: return a clone")
        try:
            with torch.no_grad():
                alone = _as_logits(name, model(batch[:1]), 1)
        except (RuntimeError, ValueError):
            alone = None
        same = not _differ(logits, again, logits)
        return _Tried(logits.detach(), same, reached, last.function in SIGMOID and last.result is again, alone, dtype)


class _Last(TorchFunctionMode):
    """Records the last function that ran and what it returned."""

    function: Any = None
    result: Any = None

    def __torch_function__(self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        self.function, self.result = func, func(*args, **(kwargs or {}))
        return self.result


def _differ(mine: Tensor, theirs: Tensor, logits: Tensor) -> bool:
    """Return whether logits differ by more than rounding, relative to their overall spread."""
    spread = (logits - logits.mean(dim=1, keepdim=True)).abs().max() + 1e-3 * logits.abs().max() + 1e-12
    return bool(((mine - theirs).abs() > ROUNDING * spread).any())


def _as_logits(name: str, output: Any, count: int) -> Tensor:
    if isinstance(output, Tensor) and output.ndim == 2 and len(output) == count and output.is_floating_point():
        return output
    if isinstance(output, Tensor):
        raise ValueError(
            f"{name!r} must return logits (B, K); for a batch of {count} images it returns {output.dtype} {tuple(output.shape)}"
        )
    what, parts = f"a {type(output).__name__}", {}
    if isinstance(output, Mapping):
        what, parts = f"{what} with {', '.join(map(repr, output))}", {f"[{key!r}]": value for key, value in output.items()}
    elif isinstance(output, (tuple, list)):
        what, parts = f"{what} of {len(output)}", {f"[{place}]": value for place, value in enumerate(output)}
    else:
        parts = {f".{key}": value for key, value in {"logits": getattr(output, "logits", None), **getattr(output, "__dict__", {})}.items()}
    fitting = [way for way, value in parts.items() if isinstance(value, Tensor) and value.ndim == 2 and len(value) == count]
    way = next((way for way in fitting if "logits" in way), fitting[0] if fitting else ".logits")
    raise ValueError(
        f"{name!r} must return logits (B, K); for a batch of {count} images it returns {what}. Wrap it, {{{name!r}: Logits(net)}}:\n"
        f"class Logits(torch.nn.Module):\n"
        f"    def __init__(self, net): super().__init__(); self.net = net\n"
        f"    def forward(self, images): return self.net(images){way}"
    )


def _of_batch(name: str, net: nn.Module) -> str:
    """Return the error for logits that depend on the batch, with its likely cause."""
    norms = [
        f"{layer!r} ({type(module).__name__})"
        for layer, module in net.named_modules()
        if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is None and "Instance" not in type(module).__name__
    ]
    layers = f": {', '.join(norms[:4])} normalise(s) by the batch's own statistics (track_running_stats=False)" if norms else ""
    return (
        f"model {name!r} is batch-dependent: its logits for an image depend on the other images of the batch{layers}; its scores would too"
    )


def _probabilities(outputs: Tensor, squashed: bool) -> str:
    """Return what kind of probabilities the outputs are; "" for logits."""
    if outputs.shape[1] < 2 or not outputs.isfinite().all():
        return ""
    if squashed or ((outputs >= 0).all() and any((outputs.sum(dim=1) / whole - 1).abs().max() < 1e-4 for whole in (1, 100))):
        return "probabilities"
    if (outputs <= 0).all() and outputs.logsumexp(dim=1).abs().max() < 1e-4:
        return "log-probabilities"
    return ""
