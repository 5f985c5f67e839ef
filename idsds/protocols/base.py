"""What a protocol is: a pure function from a model, methods and a batch to one score per image and method.

A new protocol is one decorated function; the benchmark engine finds it by name and stores whatever columns it returns::

    @register_protocol(higher_is_better=True, range=(-1, 1), in_domain=True)
    def my_protocol(model, methods, batch, prepared, *, grid=4, **_):
        return {method.name: {"score": ...} for method in methods}
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from idsds.methods.base import Passes, shared_passes
from idsds.registry import Registry


@dataclass(frozen=True)
class Batch:
    """Images (B, 3, H, W), normalised; targets (B,); one id per image."""

    images: Tensor
    targets: Tensor
    image_ids: Sequence[str]


@dataclass(frozen=True)
class ProtocolEntry:
    """One protocol of the registry.

    Args:
        name: the key.
        function: ``function(model, methods, batch, prepared, **settings)`` returns, by method name, columns of length B; one is
            ``score``.
        in_domain: whether it wants the model that was fine-tuned on deletions.
        higher_is_better: the direction of the score.
        range: lowest and highest possible score.
        prepare: ``prepare(model, batch, **settings)`` returns columns that do not depend on the method; computed once for all
            methods, stored, and handed to ``function`` as ``prepared``.
        prepare_passes: passes per image of ``prepare``, from the settings.
        passes: passes per image of ``function``, from the methods and the settings.
        source: the paper.
    """

    name: str
    function: Callable[..., dict[str, dict[str, Any]]]
    in_domain: bool
    higher_is_better: bool
    range: tuple[float, float]
    prepare: Callable[..., dict[str, Tensor]] | None = None
    prepare_passes: Callable[..., Passes] = lambda **_: Passes(0)
    passes: Callable[..., Passes] = lambda methods, **_: shared_passes(methods)
    source: str = ""


PROTOCOLS: Registry[ProtocolEntry] = Registry("protocol")


def register_protocol(name: str | None = None, *, replace: bool = False, **entry: Any) -> Callable[[Callable], Callable]:
    """Enter the decorated function under ``name`` or its own name; the other arguments are those of :class:`ProtocolEntry`."""

    def decorate(function: Callable) -> Callable:
        key = name or function.__name__
        PROTOCOLS.add(key, ProtocolEntry(name=key, function=function, **entry), replace=replace)
        return function

    return decorate


def list_protocols() -> list[str]:
    """Names of all protocols, for ``evaluate(protocol=...)``."""
    return list(PROTOCOLS)
