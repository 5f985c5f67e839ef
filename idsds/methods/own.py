"""Bring your own: score what is not in the registry.

A captum ``Attribution``, a torchcam extractor, a ready :class:`~idsds.methods.base.Method`, or any callable ``(images, targets) -> maps``::

    methods = {
        "mine": lambda images, targets: images * 0 + 1,
        "occlusion": functools.partial(occlude, captum.attr.Occlusion(net)),
        "DeepLift": captum.attr.DeepLift(net),
        "Score-CAM": torchcam.methods.ScoreCAM(net, "layer4"),
    }

They are given as many images at a time as fit in memory, and are expected to explain each image by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from captum.attr import Attribution, LayerAttribution
from torch import Tensor, nn

from idsds.methods.base import Method, MethodEntry, is_map

Explain = Callable[[Tensor, Tensor], Any]


class OwnMethod(Method):
    """A method of the user's with the interface of :class:`~idsds.methods.base.Method`; its passes are unknown.

    Args:
        name: what it is called in records and figures.
        explain: from images (B, C, H, W) and targets (B,) to maps (B, C, H, W) or (B, H, W).
        model: the net that it explains, which is kept in eval mode, with no gradient to its parameters, while it runs.
        seed: of the run; the randomness of ``explain`` is its own affair.
    """

    def __init__(self, name: str, explain: Explain, model: nn.Module, seed: int = 0) -> None:
        self.name, self.transform, self.model, self.seed, self.batch = name, "", model, seed, None
        self.options: dict[str, Any] = {}
        self.entry = MethodEntry(name=name, function=partial(_in_parts, explain), family="own")

    def output_of(self, result: object) -> object:
        """All of it: a dict is no map."""
        return result


def _in_parts(explain: Explain, model: nn.Module, images: Tensor, targets: Tensor, *, batch: int) -> Any:
    """What ``explain`` says of ``batch`` images at a time, or the first that is no map at all, for the engine to complain of."""
    parts = []
    for start in range(0, len(images), batch):
        some = slice(start, start + batch)
        parts.append(explain(images[some], targets[some]))
        if not is_map(parts[-1], images[some]):
            return parts[-1]
    return torch.cat(parts)


def as_method(name: str, thing: Any, model: nn.Module, seed: int = 0) -> Method:
    """Anything that explains, as a method.

    Args:
        name: what it is called in records and figures.
        thing: a captum ``Attribution`` (called with ``target=``; its channels are summed, a layer's map is resized to the image), a
            torchcam extractor (its raw maps are resized bilinearly to the image, several layers fused as torchcam does), a ready
            :class:`~idsds.methods.base.Method`, or a callable ``(images, targets) -> maps``.
        model: the net that is evaluated.
        seed: of the run.

    Raises:
        TypeError: for anything else, and for a class in place of an instance.
        ValueError: for an extractor whose hooks have been removed or that belongs to another net.
    """
    if isinstance(thing, Method):
        if thing.model is not model:
            raise ValueError(f"method {name!r} was made for another net than the one that is evaluated")
        renamed = copy(thing)  # its options and seed stay; only what it is called changes
        renamed.name = name
        return renamed
    if isinstance(thing, type):
        raise TypeError(f"method {name!r} is the class {thing.__name__}; pass an instance of it, such as {thing.__name__}(model)")
    if isinstance(thing, Attribution):
        return OwnMethod(name, partial(_captum, thing), model, seed)
    if _is_extractor(thing):
        _check_extractor(name, thing, model)
        return OwnMethod(name, partial(_torchcam, thing), model, seed)
    if isinstance(thing, nn.Module) or not callable(thing):
        wanted = "a captum Attribution, a torchcam extractor or a callable (images, targets) -> maps"
        raise TypeError(f"method {name!r} is a {type(thing).__name__}; wanted {wanted}")
    return OwnMethod(name, thing, model, seed)


def _captum(attribution: Attribution, images: Tensor, targets: Tensor) -> Any:
    """A captum attribution of the targets."""
    with torch.enable_grad():
        found = attribution.attribute(images.detach().clone().requires_grad_(), target=targets)
    found = found[0] if isinstance(found, tuple) and len(found) == 1 else found
    if isinstance(attribution, LayerAttribution) and isinstance(found, Tensor) and found.ndim == 4:
        found = _resized(found, images)
    return found


def _is_extractor(thing: object) -> bool:
    """Whether it is a torchcam extractor. Torchcam is imported by who made one."""
    return any(base.__module__.startswith("torchcam.") for base in type(thing).__mro__)


def _check_extractor(name: str, extractor: Any, model: nn.Module) -> None:
    if extractor.model is not model:
        raise ValueError(f"method {name!r} is a torchcam extractor of another net than the one that is evaluated")
    if not extractor.hook_handles:
        raise ValueError(f"method {name!r} is a torchcam extractor without hooks: its 'with' block has ended, or remove_hooks() was called")


def _torchcam(extractor: Any, images: Tensor, targets: Tensor) -> Tensor:
    """A torchcam extractor's raw maps, (B, H, W). Its hooks are on for its own pass only and keep nothing afterwards."""
    enabled = extractor._hooks_enabled
    extractor.enable_hooks()
    try:
        with torch.enable_grad():
            scores = extractor.model(images.detach().clone().requires_grad_())
            maps = extractor(targets.tolist(), scores, normalized=False)
        cam = maps[0] if len(maps) == 1 else extractor.fuse_cams(maps)  # (B, h, w)
    finally:
        extractor.reset_hooks()
        extractor._hooks_enabled = enabled
    return _resized(cam[:, None], images)[:, 0]


def _resized(maps: Tensor, images: Tensor) -> Tensor:
    """(B, C, h, w) -> (B, C, H, W), bilinear with half-pixel centres."""
    return F.interpolate(maps.detach(), size=images.shape[-2:], mode="bilinear", align_corners=False)
