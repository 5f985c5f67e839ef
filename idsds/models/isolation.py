"""Isolation of a net from users' code: nothing that such code does to the net affects anything else.

:func:`on_loan` surrounds a whole evaluation: the net works on copies of its tensors, and its original tensors, hooks, modes and flags are
restored afterwards. :func:`guarded` surrounds one call of a user's method: its changes are undone before anything else sees the net, and
reapplied when the same method is called again, so that the method runs as it would on its own.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from idsds.models.base import TRAINABLE, frozen

HALF = (torch.float16, torch.bfloat16)
#: By net in use, its tensors and copies of their values, made when the first user's method runs.
_VALUES: weakref.WeakKeyDictionary[nn.Module, list[tuple[Tensor, Tensor]]] = weakref.WeakKeyDictionary()
#: By id of a method's object: that object and the net's state after its last call, if it changed the net.
_LEFT: dict[int, tuple[Any, Snapshot]] = {}


class Snapshot:
    """The state of a net: attributes, children and hooks of its modules, its tensors with their storage and flags."""

    def __init__(self, net: nn.Module) -> None:
        self.attributes: list[tuple[nn.Module, dict[str, Any], list[tuple[Any, Any]]]] = []
        self.scripted: list[tuple[nn.Module, bool, dict[str, Tensor]]] = []
        tensors: dict[int, Tensor] = {}
        for module in net.modules():
            own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            if isinstance(module, torch.jit.ScriptModule):  # its attributes are in C++
                self.scripted.append((module, module.training, dict(module.named_buffers(recurse=False))))
            else:
                values = dict(vars(module))
                own += [value for value in values.values() if isinstance(value, Tensor)]
                containers = [(value, value.copy()) for value in values.values() if isinstance(value, (dict, list, set))]
                self.attributes.append((module, values, containers))
            tensors |= {id(tensor): tensor for tensor in own if not is_lazy(tensor)}
        self.tensors = list(tensors.values())
        self.data = [tensor.data for tensor in self.tensors]
        self.flags = [tensor.requires_grad for tensor in self.tensors]
        self.gradients = [tensor.grad if tensor.is_leaf else None for tensor in self.tensors]

    def restore(self) -> None:
        """Restore the net, except values written *into* its tensors."""
        self.rebuild()
        for scripted, mode, buffers in self.scripted:
            scripted.training = mode
            for name, buffer in buffers.items():
                scripted._buffers[name] = buffer
        for tensor, data, flag, gradient in zip(self.tensors, self.data, self.flags, self.gradients, strict=True):
            if not _is_in(tensor, data):
                tensor.data = data
            if tensor.is_leaf:
                if tensor.requires_grad != flag:
                    tensor.requires_grad_(flag)
                if tensor.grad is not gradient:
                    tensor.grad = gradient

    def rebuild(self, *, tensors: bool = True) -> None:
        """Restore the attributes, children and hooks of the modules and, if ``tensors``, their parameters and buffers."""
        for module, values, containers in self.attributes:
            kept = () if tensors else (vars(module)["_parameters"], vars(module)["_buffers"])
            vars(module).clear()
            vars(module).update(values)
            for container, content in containers:
                if any(container is one for one in kept):
                    continue
                container.clear()
                if isinstance(container, list):
                    container.extend(content)
                else:
                    container.update(content)

    def differs(self, other: Snapshot) -> bool:
        """Return whether the structure of the net differs; values of tensors and gradients are not compared."""
        if [id(tensor) for tensor in self.tensors] != [id(tensor) for tensor in other.tensors] or self.flags != other.flags:
            return True
        if not all(map(_is_in, self.tensors, other.data)) or len(self.attributes) != len(other.attributes):
            return True
        return any(
            mine is not theirs or not _same(values, others) or any(not _same(a, b) for (_, a), (_, b) in zip(held, kept, strict=False))
            for (mine, values, held), (theirs, others, kept) in zip(self.attributes, other.attributes, strict=True)
        )


def _same(mine: Any, theirs: Any) -> bool:
    """Return whether two dicts, lists or sets hold the same objects in the same order."""
    if isinstance(mine, dict):
        return list(mine) == list(theirs) and all(a is b for a, b in zip(mine.values(), theirs.values(), strict=True))
    return len(mine) == len(theirs) and all(a is b for a, b in zip(mine, theirs, strict=True))


def _is_in(tensor: Tensor, data: Tensor) -> bool:
    """Return whether two tensors share memory and layout."""
    where = [(t.dtype, t.device, t.shape, t.layout) for t in (tensor, data)]
    if where[0] != where[1] or tensor.layout != torch.strided:
        return where[0] == where[1] and tensor.layout != torch.strided
    return tensor.data_ptr() == data.data_ptr() and tensor.stride() == data.stride()


@contextmanager
def on_loan(net: nn.Module, device: str, layout: torch.memory_format) -> Iterator[nn.Module]:
    """Move a net to a device and memory layout; restore its tensors, gradients, modes, flags, devices, layout and hooks afterwards.

    Meanwhile the net works on copies of its tensors, with half precision converted to float32, the precision of its images.
    """
    before = Snapshot(net)
    _without_gradients(before.tensors)
    try:
        net.to(device, memory_format=layout)  # type: ignore[call-overload]
        originals = {data.data_ptr() for data in before.data}
        for tensor in Snapshot(net).tensors:
            if tensor.data_ptr() in originals:
                tensor.data = tensor.data.clone()
        widen(net)
        _VALUES[net] = []
        _mute(net)
        yield net
    finally:
        _VALUES.pop(net, None)
        before.restore()


def _without_gradients(tensors: list[Tensor]) -> None:
    """Set the gradients aside so that a backward pass does not add to them."""
    for tensor in tensors:
        if tensor.is_leaf:
            tensor.grad = None


def widen(net: nn.Module) -> None:
    """Convert half-precision tensors to float32, because rounding on the CPU would otherwise cause tied drops."""
    for tensor in Snapshot(net).tensors:
        if tensor.dtype in HALF:
            tensor.data = tensor.data.float()


def _mute(net: nn.Module) -> None:
    """Remove the hooks of pytorch-grad-cam's objects, which keep every forward pass's output until called (thousands for RISE)."""
    for module in net.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        for key, hook in list(module._forward_hooks.items()):
            if type(getattr(hook, "__self__", None)).__module__.startswith("pytorch_grad_cam."):
                del module._forward_hooks[key]


@contextmanager
def guarded(net: nn.Module, name: str, explain: Any = None) -> Iterator[nn.Module]:
    """Let a user's code run on a net in eval mode with its original requires_grad flags; only that code sees its changes.

    Args:
        explain: the user's own object. Changes that it made to the net, such as hooks added by its first call, are reapplied for its
            next.

    Warns:
        RuntimeWarning: if the values of weights or buffers changed; they are restored.
    """
    before = Snapshot(net)
    values = _VALUES.get(net) or [(tensor, data.clone()) for tensor, data in zip(before.tensors, before.data, strict=True)]
    if net in _VALUES:
        _VALUES[net] = values
    _without_gradients(before.tensors)
    left = _LEFT.get(id(explain))
    if left is not None and left[1].attributes[0][0] is net:
        left[1].rebuild(tensors=False)
    try:
        for parameter in TRAINABLE.get(net, ()):
            parameter.requires_grad_(True)
        with torch.enable_grad(), frozen(net, parameters=False):
            yield net
    finally:
        after = Snapshot(net)
        if explain is not None and after.differs(before):
            _LEFT[id(explain)] = (explain, after)
        before.restore()
        changed = [(tensor, value) for tensor, value in values if not _equal(tensor, value)]
        for tensor, value in changed:
            tensor.data.copy_(value)
        if changed:
            what = f"{len(changed)} of {len(values)} weights and buffers of the net that it explains"
            warnings.warn(f"method {name!r} changed {what}: they are restored", RuntimeWarning, stacklevel=3)


def _equal(tensor: Tensor, value: Tensor) -> bool:
    if torch.equal(tensor, value):
        return True
    return tensor.is_floating_point() and bool(torch.allclose(tensor, value, rtol=0, atol=0, equal_nan=True))
