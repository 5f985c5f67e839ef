"""Attribution methods of the user's own that are not in the registry.

A method may be an object of captum, torchcam or pytorch-grad-cam, a ready :class:`~idsds.methods.base.Method`, any callable ``(images,
targets) -> maps``, or maps computed elsewhere, each optionally with further arguments for its call::

    methods = {
        "mine": lambda images, targets: images * 0 + 1,
        "DeepLift": captum.attr.DeepLift(net),
        "Occlusion": (captum.attr.Occlusion(net), {"sliding_window_shapes": (3, 8, 8)}),
        "Score-CAM": torchcam.methods.ScoreCAM(net, "layer4"),
        "Eigen-CAM": pytorch_grad_cam.EigenCAM(net, [net.layer4]),
        "stored": {"image 1": array, "image 2": another},
        "a folder of image_id.npy": Path("maps"),
    }

A callable that queries the deletions of a grid says so, ``mine.queries = {"grid": 4, "baseline": "zeros"}``, so that rankings mark it as a
ceiling where it is judged by these.

They receive as many images at a time as fit in memory and must explain each image independently of the others; one that does not gets one
image at a time. A method that takes ``image_ids`` receives them too. The net is in eval mode, its parameters keep the user's
``requires_grad``, and nothing that a method writes to the images or changes in the net affects anything else.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import Attribution, LayerAttribution
from torch import Tensor, nn

from idsds.common.hashing import digest, file_digest
from idsds.common.randomness import content_ids
from idsds.common.registry import UnknownNameError
from idsds.methods.base import Method, MethodEntry
from idsds.methods.binding import bound_elsewhere, library_of
from idsds.methods.cam import channels_of, resized
from idsds.methods.maps import as_tensor, is_map

Explain = Callable[..., Any]


class OwnMethod(Method):
    """A user's method with the interface of :class:`~idsds.methods.base.Method` and an unknown number of passes.

    Args:
        explain: maps images (B, C, H, W), targets (B,) and, if it takes them, ``image_ids`` to attributions (B, C, H, W) or (B, H, W).
        model: the net that it explains, in eval mode while it runs.
        seed: the run's seed; it does not control random numbers that ``explain`` draws itself.
        entry: more of its :class:`~idsds.methods.base.MethodEntry`.
    """

    def __init__(self, name: str, explain: Explain, model: nn.Module, seed: int = 0, **entry: Any) -> None:
        super().__init__(name, model, seed=seed, entry=MethodEntry(name=name, function=partial(_in_parts, explain), family="own", **entry))
        self._explain = explain

    @property
    def explain(self) -> Any:
        """The user's own object."""
        return getattr(self._explain, "thing", self._explain)

    def output_of(self, result: object) -> object:
        """Return the result unchanged: a dict is not a map."""
        return result


def _in_parts(explain: Explain, model: nn.Module, images: Tensor, targets: Tensor, *, image_ids: Sequence[str], batch: int) -> Any:
    """Explain ``batch`` images at a time; a result that is not a map is returned unchanged, for the engine to report."""
    parts = []
    takes_ids = "image_ids" in _parameters(explain)
    for start in range(0, len(images), batch):
        some = slice(start, start + batch)
        ids = {"image_ids": list(image_ids[some])} if takes_ids else {}
        found = as_tensor(explain(images[some].clone(), targets[some].clone(), **ids))
        if not is_map(found, images[some]):
            return found
        parts.append(found.detach().clone())  # it may be a buffer that the next call overwrites
    return torch.cat(parts)


def as_method(name: str, thing: Any, model: nn.Module, seed: int = 0) -> Method:
    """Wrap anything that explains as a method.

    Args:
        thing: a captum ``Attribution`` (called with ``target=``; channels are summed, layer attributions are resized to the image size),
            a torchcam extractor (raw maps are resized bilinearly to the image size; several layers are fused as torchcam does), a CAM of
            pytorch-grad-cam, a ready :class:`~idsds.methods.base.Method`, a callable ``(images, targets) -> maps``, maps by image id
            (arrays (H, W) or (C, H, W)), or a folder that holds them as ``<image id>.npy``. A pair ``(thing, {argument: value})`` passes
            further arguments to the call.

    Raises:
        TypeError: for anything else, a class instead of an instance, or a missing argument.
        UnknownNameError: for an unknown argument.
        ValueError: for an extractor whose hooks have been removed, or an object that explains another net.
    """
    options: dict[str, Any] = {}
    if isinstance(thing, tuple) and len(thing) == 2 and isinstance(thing[1], Mapping):
        thing, options = thing[0], dict(thing[1])
    if isinstance(thing, type):
        raise TypeError(f"method {name!r} is the class {thing.__name__}; pass an instance of it, such as {thing.__name__}(model)")
    if reason := bound_elsewhere(thing, model):
        raise ValueError(f"method {name!r} is for a net other than the one evaluated: {reason}")
    if isinstance(thing, Method):
        if options:
            raise TypeError(f"method {name!r} is already created: pass its options to create_method, not {options}")
        renamed = copy(thing)  # keeps its options and seed; only its name changes
        renamed.name = name
        return renamed
    if library := library_of(thing):
        more = {"queries": partial(queried, thing, options)} if library == "captum" else {}
        return OwnMethod(name, _OfLibrary(name, library, thing, options, model), model, seed, **more)
    thing = as_stored(name, thing)
    if isinstance(thing, StoredMaps):
        return OwnMethod(name, thing.of_one_net(), model, seed)
    if isinstance(thing, nn.Module) or not callable(thing):
        wanted = (
            "a captum Attribution, a torchcam extractor, a CAM of pytorch-grad-cam, a callable (images, targets) -> maps, a mapping from "
            "image id to map, or a folder of <image id>.npy"
        )
        what = f"{str(thing)!r}, which is no folder" if isinstance(thing, (str, Path)) else f"a {type(thing).__name__}"
        raise TypeError(f"method {name!r} is {what}; wanted {wanted}")
    _check_arguments(name, getattr(thing, "__name__", type(thing).__name__), thing, options)
    says = {"queries": lambda **_: thing.queries} if isinstance(getattr(thing, "queries", None), Mapping) else {}
    return OwnMethod(name, _With(thing, options) if options else thing, model, seed, **says)


def queried(attribution: Attribution, options: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the deletions that a captum object queries, see :func:`idsds.common.interventions.on_grid`; None if it queries none."""
    from idsds.methods.libraries.captum import Captum

    kinds = {kind.__name__ for kind in type(attribution).__mro__}
    if "FeaturePermutation" in kinds:  # a feature is replaced by another image's
        return None
    return next((Captum(name).queries(**options) for name in Captum.PERTURBING if name in kinds), None)


class _With:
    def __init__(self, thing: Callable, options: Mapping[str, Any]) -> None:
        self.thing, self.options = thing, options
        self.__signature__ = inspect.signature(partial(thing, **options))

    def __call__(self, images: Tensor, targets: Tensor, **ids: Any) -> Any:
        return self.thing(images, targets, **_moved(self.options, images), **ids)


def _moved(options: Mapping[str, Any], images: Tensor) -> dict[str, Any]:
    return {name: value.to(images.device) if isinstance(value, Tensor) else value for name, value in options.items()}


def _parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # built-in without a signature
        return {}


def _check_arguments(name: str, kind: str, function: Callable, options: Mapping[str, Any], known: Sequence[str] = ()) -> None:
    """Raise TypeError for missing arguments of a call, UnknownNameError for unknown ones; ``known`` are those that the package passes."""
    parameters = list(_parameters(function).values())
    if not parameters:
        return
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not known:
        if len(positional) < 2 and not any(p.kind is p.VAR_POSITIONAL for p in parameters):
            takes = ", ".join(p.name for p in parameters)
            raise TypeError(f"method {name!r} ({kind}) is called with (images, targets), but it takes ({takes})")
        known = ("image_ids", *(p.name for p in positional[:2]))
    rest = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in known}
    for option in options:
        if option not in rest and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            raise UnknownNameError(f"argument of method {name!r}", option, rest)
    if lacking := [p.name for p in rest.values() if p.default is p.empty and p.name not in options]:
        form = "{" + ", ".join(f"{argument!r}: ..." for argument in lacking) + "}"
        given = f"{{{name!r}: ({kind}(...), {form})}}"
        raise TypeError(f"method {name!r} ({kind}) needs a value for {', '.join(map(repr, lacking))}: give it in a pair, {given}")


class StoredMaps:
    """Maps computed elsewhere, by image id.

    Args:
        maps: arrays or tensors (H, W) or (C, H, W) by image id, or a folder that holds each as ``<image id>.npy``.
    """

    def __init__(self, name: str, maps: Mapping[Any, Any] | str | Path) -> None:
        self.name = name
        self.maps = {str(key): value for key, value in maps.items()} if isinstance(maps, Mapping) else None
        if isinstance(maps, Mapping) and len(self.maps) < len(maps):
            raise ValueError(f"method {name!r} has maps under ids that differ only in type, such as 1 and '1'")
        self.folder = None if isinstance(maps, Mapping) else Path(maps).resolve()
        # The address covers the files' content, because a recomputed map is a different map.
        self.content = digest(sorted((str(path), file_digest(path)) for path in self.folder.rglob("*.npy"))) if self.folder else ""
        self._seen: dict[str, str] = {}

    def of_one_net(self) -> StoredMaps:
        """Return the same maps, for the images as preprocessed for one net."""
        own = copy(self)
        own._seen = {}
        return own

    def check(self, image_ids: Sequence[str]) -> None:
        """Raise ValueError if any image has no map."""
        maps = self.maps
        if lacking := [i for i in image_ids if not (self._path(i).is_file() if maps is None else i in maps)]:
            has = f"those of {', '.join(map(repr, list(self.maps)[:3]))}, ..." if self.maps is not None else f"folder {str(self.folder)!r}"
            raise ValueError(f"method {self.name!r} has no map of {len(lacking)} images, the first is {lacking[0]!r}; there are {has}")

    def _path(self, image_id: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{image_id}.npy"

    def __call__(self, images: Tensor, targets: Tensor, image_ids: Sequence[str]) -> Tensor:
        """Return the maps of a batch, (B, 1, H, W). Raises ValueError for images without a map, and for modified images."""
        self.check(image_ids)
        for image_id, content in zip(image_ids, content_ids(images), strict=True):
            if self._seen.setdefault(image_id, content) != content:
                raise ValueError(f"stored maps are for the original images, but this protocol asks for a map of a modified {image_id!r}")
        return torch.stack([self._map(image_id, images) for image_id in image_ids])

    def _map(self, image_id: str, images: Tensor) -> Tensor:
        stored = self.maps[image_id] if self.maps is not None else np.load(self._path(image_id), allow_pickle=False)
        found = as_tensor(stored)
        if isinstance(found, Tensor):
            found = found.detach().to(images.device)
            found = found[None] if found.ndim == 2 else found[0] if found.ndim == 4 and len(found) == 1 else found
        if not isinstance(found, Tensor) or not is_map(found[None], images[:1]):
            shape = tuple(getattr(stored, "shape", ())) or type(stored).__name__
            height, width = images.shape[-2:]
            raise ValueError(
                f"the map of {image_id!r} is {shape}; wanted real numbers of shape ({height}, {width}) or (C, {height}, {width})"
            )
        return found.sum(dim=0, keepdim=True)


def as_stored(name: str, thing: Any) -> Any:
    """Return a mapping from image id to map, or a folder of maps, as :class:`StoredMaps`; anything else unchanged."""
    stored = isinstance(thing, Mapping) or (isinstance(thing, (str, Path)) and Path(thing).is_dir())
    return StoredMaps(name, thing) if stored else thing


class _OfLibrary:
    """Adapter for a captum, torchcam or pytorch-grad-cam object, ``(images, targets) -> maps``; checks its arguments when created."""

    def __init__(self, name: str, library: str, thing: Any, options: Mapping[str, Any], model: nn.Module) -> None:
        self.name, self.thing, self.options, self.model = name, thing, options, model
        self.run = {"captum": _captum, "torchcam": _torchcam, "pytorch-grad-cam": _grad_cam}[library]
        self.checked = False
        kind = type(thing).__name__
        if library == "captum":
            from idsds.methods.libraries.captum import check_of_all_images

            inner, known = getattr(thing, "attribution_method", None), ("inputs", "target")  # a noise tunnel's
            check_of_all_images([one.__name__ for one in (*type(thing).__mro__, *type(inner).__mro__)], options)
            parameters = _parameters(thing.attribute)
            if "target" not in parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                raise TypeError(f"method {name!r} ({kind}) does not explain a class: it takes {', '.join(parameters)}")
            _check_arguments(name, kind, thing.attribute, options, known)
            if isinstance(inner, Attribution):
                of_inner = {k: v for k, v in options.items() if k in _parameters(inner.attribute)}
                _check_arguments(name, kind, inner.attribute, of_inner, known)
        elif library == "torchcam":
            _check_arguments(name, kind, lambda scores, targets: None, options)  # the package passes all arguments of an extractor
            if not getattr(thing, "hook_handles", True):
                raise ValueError(
                    f"method {name!r} is a torchcam extractor without hooks: its 'with' block has ended, or remove_hooks() was called"
                )
        else:
            _check_arguments(name, kind, thing.__call__, options, ("input_tensor", "targets"))
            if not thing.activations_and_grads.handles:
                raise ValueError(f"method {name!r} is a pytorch-grad-cam object without hooks: its 'with' block has ended")

    def __call__(self, images: Tensor, targets: Tensor) -> Any:
        if not self.checked:
            if reason := misread_layer(self.thing, self.model, images[:1]):
                raise ValueError(reason)
            self.checked = True
        return self.run(self.thing, _moved(self.options, images), images, targets)


def misread_layer(thing: Any, model: nn.Module, image: Tensor) -> str | None:
    """Return why a library's object would misread its layer, whose output is not (B, K, h, w); None if it would not.

    Args:
        image: an image (1, C, H, W) to pass through the net.
    """
    thing = getattr(thing, "attribution_method", thing)
    layers = getattr(thing, "layer", None) or getattr(getattr(thing, "grad_cam", None), "layer", None)
    if library_of(thing) == "torchcam":
        layers = [] if thing._reshape_transform is not None else [thing.submodule_dict[name] for name in thing.target_names]
    elif library_of(thing) == "pytorch-grad-cam":
        layers = [] if thing.reshape_transform is not None else thing.target_layers
    names = {id(module): name for name, module in model.named_modules()}
    for layer in layers if isinstance(layers, (list, tuple)) else [layers]:
        if id(layer) not in names:
            continue
        outputs: list[Any] = []
        with torch.no_grad(), layer.register_forward_hook(lambda _module, _inputs, output, outputs=outputs: outputs.append(output)):
            model(image)
        (output,) = outputs[:1] or (None,)
        if not isinstance(output, Tensor) or output.ndim == 2:
            continue
        try:
            channels = channels_of(model, names[id(layer)], output, image)
        except ValueError as error:
            return str(error)
        if channels == "last":
            way = "the package's own, such as ('Grad-CAM', {'layer': ..., 'channels': 'last'})"
            way = way if isinstance(thing, Attribution) else f"reshape_transform=lambda x: x.permute(0, 3, 1, 2), or {way}"
            return f"its layer {names[id(layer)]!r} gives {tuple(output.shape)}, channels last, which it reads as (B, K, h, w): take {way}"
    return None


def _captum(attribution: Attribution, options: Mapping[str, Any], images: Tensor, targets: Tensor) -> Any:
    found = attribution.attribute(images.detach().clone().requires_grad_(), target=targets, **options)
    found = found[0] if isinstance(found, tuple) and len(found) == 1 else found
    if isinstance(attribution, LayerAttribution) and isinstance(found, Tensor) and found.ndim == 4:
        found = resized(found.detach(), images)
    return found


def _torchcam(extractor: Any, options: Mapping[str, Any], images: Tensor, targets: Tensor) -> Tensor:
    """Return a torchcam extractor's raw maps, (B, H, W). Its hooks are active only during its own pass and keep nothing afterwards."""
    enabled = extractor._hooks_enabled
    extractor.enable_hooks()
    try:
        scores = extractor.model(images.detach().clone().requires_grad_())
        maps = extractor(targets.tolist(), scores, normalized=False)
        cam = maps[0] if len(maps) == 1 else extractor.fuse_cams(maps)  # (B, h, w)
    finally:
        extractor.reset_hooks()
        extractor._hooks_enabled = enabled
    return resized(cam[:, None].detach(), images)[:, 0]


def _grad_cam(cam: Any, options: Mapping[str, Any], images: Tensor, targets: Tensor) -> Any:
    """Return a pytorch-grad-cam CAM's maps, (B, H, W), each stretched to [0, 1] by the library."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    device, cam.device = cam.device, images.device
    try:
        with _listening(cam.activations_and_grads):
            return cam(input_tensor=images, targets=[ClassifierOutputTarget(target) for target in targets.tolist()], **options)
    finally:
        cam.device = device


@contextmanager
def _listening(recorder: Any) -> Iterator[None]:
    """Activate the hooks of a pytorch-grad-cam object, which are inactive during an evaluation's other passes."""
    with ExitStack() as stack:
        stack.callback(vars(recorder).update, activations=[], gradients=[])
        for place, handle in enumerate(recorder.handles):
            hooks = handle.hooks_dict_ref()
            if hooks is not None and handle.id not in hooks:
                hooks[handle.id] = recorder.save_gradient if place % 2 else recorder.save_activation
                stack.callback(hooks.pop, handle.id, None)
        yield
