"""Attribution methods, and the computations they share.

A method is a plain function ``(model, images, targets, *, draws, **options)`` that returns signed maps: (B, C, H, W), summed over
channels, or (B, H, W). One function may compute several methods at once and return a dict from name to map. Besides its own options it
may take ``draws`` (keyed random numbers) and ``batch`` (images per internal pass, halved when memory runs out). A new method is::

    @register_method(family="gradient", passes=Passes(1, 1))
    def Mine(model, images, targets): ...

or a class that is instantiated once, ``Mine(model, **options)``, and then called, ``mine(images, targets)``; a bare ``@register_method``
works too. ``NAME abs``, ``NAME relu`` and ``NAME x10`` exist for every name: the absolute value, the positive part, and ten times the
channel-summed map (the reference applies the first two only to captum's methods). For methods that are not registered see
:mod:`idsds.methods.own`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn

from idsds.common.batching import default_batch, halving, out_of_memory
from idsds.common.randomness import Draws
from idsds.common.registry import Registry, check_name, check_names
from idsds.methods.maps import Channels, as_map, check_batch, listed
from idsds.models.base import describe, frozen, precision_of
from idsds.models.isolation import guarded

FAMILIES = ("gradient", "CAM", "perturbation", "transformer", "intrinsic", "control", "own")
ABSOLUTE, POSITIVE, TENFOLD = " abs", " relu", " x10"
#: Suffixes of names, and the function that they apply to the channel-summed map. ``x10`` keeps the order of pixels and so shows which
#: metrics depend on a map's scale.
TRANSFORMS: dict[str, Callable[[Tensor], Tensor]] = {ABSOLUTE: Tensor.abs, POSITIVE: Tensor.relu, TENFOLD: lambda maps: 10 * maps}
#: Why a method defined by the logit does not explain other quantities.
LOGIT_ONLY: Mapping[str, str] = dict.fromkeys(("probability", "contrast"), "it is defined by the logit alone")
ENGINE = ("draws", "batch", "image_ids")  # arguments that the engine provides, not options of the method


class Passes(NamedTuple):
    """Passes through the model per image. A backward pass runs from the logits to the input or an inner layer."""

    forward: int
    backward: int = 0

    def __add__(self, other: object) -> Passes:  # type: ignore[override]
        other = Passes(*other) if isinstance(other, tuple) else Passes(0)
        return Passes(self.forward + other.forward, self.backward + other.backward)

    def times(self, factor: int) -> Passes:
        """Return the passes for ``factor`` images or samples."""
        return Passes(self.forward * factor, self.backward * factor)


def _asked(function: Callable) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a method's call; for a class, of its instances' call."""
    return inspect.signature(function.__call__ if isinstance(function, type) else function).parameters  # type: ignore[operator]


@dataclass(frozen=True)
class MethodEntry:
    """One method in the registry.

    Args:
        function: computes the map, or a class; see this module's docstring.
        family: one of :data:`FAMILIES`; determines the marker in figures.
        output: this method's key in the dict that the function returns; "" for its name.
        options: values of the function's options that define this method.
        passes: passes per image, or a function ``(model, **options)`` that returns them; None if unknown.
        noise: key of the random numbers; methods with the same key share their noise. "" for the function's first name.
        inapplicable: returns the reason why the method does not apply to a model, or None if it does.
        explains_not: by kind of :class:`idsds.models.quantity.Quantity`, why the method cannot explain it.
        queries: returns, from the options, the ``grid`` and ``baseline`` of the patch deletions that the method queries, or None; see
            :func:`idsds.common.interventions.on_grid`.
        refused: why the method applies to no model at all; "" otherwise.
    """

    name: str
    function: Callable[..., Tensor | dict[str, Tensor]]
    family: str
    output: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    passes: Passes | Callable[..., Passes] | None = None
    noise: str = ""
    inapplicable: Callable[[nn.Module], str | None] = lambda _model: None
    source: str = ""
    queries: Callable[..., Mapping[str, Any] | None] = lambda **_options: None
    explains_not: Mapping[str, str] = field(default_factory=dict)
    refused: str = ""

    def settings(self, **given: Any) -> dict[str, Any]:
        """Return the function's options: defaults, replaced by those of this entry and then by ``given``. Raises UnknownNameError."""
        parameters = inspect.signature(self.function).parameters.values()
        known = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in ENGINE}
        check_names(f"option of method {self.name!r}", given, known)
        settings = {**known, **self.options, **given}
        for option, value in settings.items():
            if value is inspect.Parameter.empty:
                raise TypeError(f"method {self.name!r} needs a value for its option {option!r}")
        return settings


METHODS: Registry[MethodEntry] = Registry("method")


def register_method(
    *names: Any, family: str = "own", variants: Mapping[str, Mapping[str, Any]] | None = None, replace: bool = False, **entry: Any
) -> Any:
    """Register the decorated function or class under ``names`` or its own name.

    Args:
        names: none, one or several; for ``@register_method`` without brackets, the function itself.
        variants: more names, each with its own values for some options.
        entry: the other fields of :class:`MethodEntry`.

    Raises:
        UnknownNameError: for an unknown family.
        ValueError: if a name is taken, or ends in `` abs`` or `` relu``, which denotes a version of another method.
    """
    check_name("method family", family, FAMILIES)
    if len(names) == 1 and callable(names[0]):
        return register_method(family=family, variants=variants, replace=replace, **entry)(names[0])

    def decorate(function: Callable) -> Callable:
        given = {**{name: {} for name in names or (function.__name__,)}, **(variants or {})}
        shared = entry
        if "draws" in _asked(function) and not entry.get("noise"):
            # All names of a function share their noise: a result must not depend on the name under which it is requested.
            before = [known.noise for known in METHODS.values() if known.function is function]
            shared = {**entry, "noise": (before or list(given))[0]}
        for name, options in given.items():
            if suffix := next((suffix for suffix in TRANSFORMS if name.endswith(suffix)), ""):
                what = {ABSOLUTE: "absolute values", POSITIVE: "positive part", TENFOLD: "tenfold"}[suffix]
                raise ValueError(f"a method cannot be called {name!r}: {suffix!r} at the end asks for the {what} of another")
            fields = {**shared, "options": {**entry.get("options", {}), **options}}
            METHODS.add(name, MethodEntry(name=name, function=function, family=family, **fields), replace=replace)
        return function

    return decorate


class MethodNames(list[str]):
    """Names of methods; ``excluded`` maps each of the others to the reason why it does not apply."""

    def __init__(self, names: Sequence[str], excluded: Mapping[str, str]) -> None:
        super().__init__(names)
        self.excluded = dict(excluded)


def list_methods(model: nn.Module | None = None, library: str | None = None) -> MethodNames:
    """Return the names of all methods, or of those that apply to ``model``; ``.excluded`` maps each of the others to the reason.

    Every name also exists as ``NAME abs`` and ``NAME relu``.

    Args:
        model: a net; None for every method that applies to some model.
        library: captum, torchcam, zennit, gradcam or saliency, for its methods as ``library/Name`` and by plain name, including those
            that need an extra of this package; None for the package's own and plain names that need no extra.

    Raises:
        UnknownNameError: for an unknown library, with the nearest match.
    """
    entries = dict(METHODS)
    if library is not None:
        plain = {**METHODS, **METHODS.unlisted}
        entries = {name: METHODS[name] for name in METHODS.names_of(library)}
        entries |= {name: entry for name, entry in plain.items() if getattr(entry.function, "library", None) == library}
    reasons = {name: entry.refused if model is None else reason_against(entry, model) for name, entry in entries.items()}
    excluded = {name: reason for name, reason in reasons.items() if reason}
    return MethodNames([name for name in entries if name not in excluded], excluded)


def reason_against(entry: MethodEntry, model: nn.Module) -> str | None:
    """Return why a method does not apply to a model, including a missing library; None if it does."""
    try:
        return entry.inapplicable(model)
    except ModuleNotFoundError as error:
        return str(error)


def split_name(name: str) -> tuple[str, str]:
    """Split ``"IG abs"`` into ``("IG", " abs")`` and ``"IG"`` into ``("IG", "")``. Raises UnknownNameError, with the nearest match."""
    suffix = next((suffix for suffix in TRANSFORMS if str(name).endswith(suffix)), "")
    base = str(name).removesuffix(suffix)
    if base not in METHODS:
        raise METHODS.unknown(name, suffix)
    return base, suffix


class MethodError(RuntimeError):
    """An exception inside a user's method; the message names the method, the net, the images and the exception."""


class Method:
    """An attribution method on a model: ``maps = method(images, targets)``.

    Args:
        name: one of :func:`list_methods`, with or without `` abs`` or `` relu``.
        model: a net that returns logits (B, K).
        seed: seed of the method's random numbers, which otherwise depend only on the method and the image's id.
        batch: images per internal pass; None to bound it by memory.
        noise: standard normal numbers (B, samples, C, H, W) for SmoothGrad and related methods, for one batch, instead of random ones.

    Raises:
        UnknownNameError: for an unknown method or option.
        ValueError: if the method does not apply to the model, with the reason.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        *,
        seed: int = 0,
        batch: int | None = None,
        noise: Tensor | None = None,
        entry: MethodEntry | None = None,
        **options: Any,
    ) -> None:
        base, self.transform = split_name(name) if entry is None else (name, "")
        self.name, self.entry = name, entry or METHODS[base]
        if reason := self.entry.inapplicable(model):
            fitting = ", ".join(list_methods(model))
            raise ValueError(f"{name} does not apply to {describe(model).name}: {reason}. Methods that do: {fitting}")
        self.model, self.seed, self.batch = model, seed, batch
        asked = _asked(self.entry.function)
        if noise is not None and ("draws" not in asked or "noise" in asked):  # draws none, or has an option of this name
            options["noise"], noise = noise, None
        self.noise, self.options = noise, self.entry.settings(**options)
        self.model_name = describe(model).name

    @property
    def is_the_packages(self) -> bool:
        """Whether it is computed by this package rather than by a user's function, registered or passed in."""
        return getattr(self.entry.function, "__module__", "").startswith("idsds.")

    @property
    def explain(self) -> Any:
        """The user's own object; for registered methods, the function."""
        return self.entry.function

    @property
    def passes(self) -> Passes | None:
        """Forward and backward passes per image; None if unknown."""
        passes = self.entry.passes
        return passes(self.model, **self.options) if callable(passes) else passes

    @cached_property
    def function(self) -> Callable[..., Tensor | dict[str, Tensor]]:
        """The function that computes the maps of ``(images, targets)``; a user's class is instantiated here once."""
        if isinstance(self.entry.function, type):
            return self.entry.function(self.model, **self.options)
        return partial(self.entry.function, self.model, **self.options)

    @property
    def computation(self) -> Hashable:
        """A key, equal for methods that share a computation."""
        options = tuple((key, id(value) if isinstance(value, Tensor) else repr(value)) for key, value in self.options.items())
        return id(self.model), self.entry.function, self.entry.noise, self.seed, id(self.noise), options

    def changed(self, **attributes: Any) -> Method:
        """Return a copy with other attributes, such as ``model`` or ``seed``."""
        other = copy.copy(self)
        other.__dict__.pop("function", None)  # bound to the old attributes; rebuilt when needed
        other.__dict__.update(attributes)
        return other

    def output_of(self, result: object) -> object:
        """Return this method's map from its function's result. Raises UnknownNameError for a dict without it."""
        if not isinstance(result, dict):
            return result
        output = self.entry.output or self.entry.name
        check_name(f"output of the function of method {self.name!r}", output, result)
        return result[output]

    def __call__(self, images: Tensor, targets: Tensor, image_ids: Sequence[object] | None = None) -> Tensor:
        """Explain a batch.

        Args:
            images: float (B, 3, H, W), normalised for the model.
            targets: (B,) class indices.
            image_ids: one id per image, which keys random numbers; None for a hash of the image.

        Returns:
            Signed attribution maps (B, 1, H, W), summed over channels, not rescaled.
        """
        return shared_maps([self], images, targets, image_ids)[self.name]


def create_method(name: str, model: nn.Module, *, seed: int = 0, **options: Any) -> Method:
    """Return an attribution method on a model, see :class:`Method`."""
    return Method(name, model, seed=seed, **options)


def shared_maps(
    methods: Sequence[Method],
    images: Tensor,
    targets: Tensor,
    image_ids: Sequence[object] | None = None,
    channels: Channels = "summed",
) -> dict[str, Tensor]:
    """Return the maps of several methods by name, (B, 1, H, W) each; each distinct computation runs once.

    With ``channels="each"`` a map has the channels that its method gives: (B, 3, H, W), or (B, 1, H, W) for CAMs.

    Raises:
        ValueError: if two different methods have the same name, or for unknown ``channels``.
    """
    check_name("channels", channels, get_args(Channels))
    check_batch(images, targets, image_ids)
    groups: dict[Hashable, list[Method]] = {}
    computations: dict[str, Hashable] = {}
    for method in methods:
        if computations.setdefault(method.name, method.computation) != method.computation:
            raise ValueError(f"two methods with different settings are called {method.name!r}: ask for one at a time")
        groups.setdefault(method.computation, []).append(method)
    maps: dict[str, Tensor] = {}
    with torch.inference_mode(False):  # the caller may have disabled gradients
        images, targets = (value.clone() if value.is_inference() else value for value in (images, targets))
        images, targets = images.detach() if images.requires_grad else images, targets.long()
        for group in groups.values():
            result = _compute(group[0], images, targets, image_ids)
            for method in group:
                draws = Draws(method.seed, method.name, images, image_ids)
                found = as_map(method.name, method.output_of(result), images, draws, channels)
                maps[method.name] = TRANSFORMS[method.transform](found) if method.transform else found
    return {method.name: maps[method.name] for method in methods}


def shared_passes(methods: Sequence[Method]) -> Passes:
    """Return the passes per image of :func:`shared_maps`, omitting methods whose passes are unknown."""
    distinct = {method.computation: method.passes or Passes(0, 0) for method in methods}
    return sum(distinct.values(), Passes(0, 0))


def _compute(method: Method, images: Tensor, targets: Tensor, image_ids: Sequence[object] | None) -> object:
    """Call a method's function. A user's function gets copies that it may modify in place.

    Raises:
        MethodError: for any exception in a user's method other than running out of memory.
    """
    entry, function = method.entry, method.function
    asked = _asked(entry.function)
    draws = Draws(method.seed, entry.noise or entry.name, images, image_ids, given=method.noise)
    if "draws" in asked:
        function = partial(function, draws=draws)
    if "image_ids" in asked:
        function = partial(function, image_ids=draws.image_ids)

    def explain(**options: int) -> object:
        if method.is_the_packages:
            with frozen(method.model):
                return function(images, targets, **options)
        with guarded(method.model, method.name, method.explain):
            return function(images.to(precision_of(method.model, images.dtype), copy=True), targets.clone(), **options)

    try:
        if "batch" not in asked:
            return explain()
        result, method.batch = halving(lambda batch: explain(batch=batch), method.batch or default_batch(images))
        return result
    except Exception as error:
        if method.is_the_packages or out_of_memory(error):
            raise
        where = f"method {method.name!r} on {method.model_name!r} raised {type(error).__name__} for {listed(draws.image_ids)}"
        raise MethodError(f"{where}: {error}") from error
