"""Protocols: pure functions that score each method on each image, given a model and a batch.

A new protocol is one decorated function; the engine finds it by name and stores the columns that it returns::

    @register_protocol(higher_is_better=True, range=(-1, 1), in_domain=True)
    def my_protocol(model, methods, batch, prepared, *, grid=4, **_):
        return {method.name: {"score": ...} for method in methods}

``methods`` explain ``model``, the ``batch`` is a :class:`Batch`, and ``prepared`` holds what the entry's ``prepare`` has computed of it.
Docstrings describe the settings, and these four only where a protocol asks more of them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from idsds.common.normalisation import Normalisation
from idsds.common.registry import Registry, UnknownNameError
from idsds.datasets.parts import Parts
from idsds.methods.base import Method, Passes, shared_passes
from idsds.models.base import describe

Level = Literal["image", "data set"]
#: What a protocol asks of a map: is it faithful, stable, dependent on model and class, well localised, simple?
Asks = Literal["right", "stable", "dependent", "localised", "simple"]
#: What ``prepare`` returns, and what a protocol returns: columns of length B by method name.
Prepared = dict[str, Tensor]
Columns = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Batch:
    """A batch: normalised images (B, 3, H, W), targets (B,), one id per image, and the normalisation if known.

    ``companions`` returns further images (N, 3, H, W) and their classes (N,), which depend on the data set and not on the batch;
    ``parts`` are the images' known parts, if any.
    """

    images: Tensor
    targets: Tensor
    image_ids: Sequence[str]
    normalisation: Normalisation | None = None
    companions: Callable[[], tuple[Tensor, Tensor]] | None = None
    parts: Parts | None = None


@dataclass(frozen=True)
class ProtocolEntry:
    """One protocol in the registry.

    Args:
        function: ``function(model, methods, batch, prepared, **settings)`` returns, by method name, columns of length B, including
            ``score``.
        in_domain: whether it needs a model fine-tuned in-domain, with deletions.
        masked_share: largest fraction of patches that this fine-tuning deletes; None for exactly one patch.
        prepare: ``prepare(model, batch, **settings)`` returns columns that do not depend on the method. They are computed once for all
            methods, stored, and passed to ``function`` as ``prepared``.
        prepare_passes: passes per image of ``prepare``, given the settings.
        passes: passes per image of ``function``, given the methods and settings.
        level: what it scores: each ``image``, or a method on a whole ``data set``, which has no per-image records. In the latter case
            ``function`` computes a method's score from its curve, and ``call`` replaces ``evaluate``.
        call: the public function to run a protocol of level ``data set``.
        asks: which property of a map it tests, see :data:`Asks`.
        parts: whether it needs images whose parts are known.
    """

    name: str
    function: Callable[..., Any]
    higher_is_better: bool
    range: tuple[float, float]
    in_domain: bool = False
    prepare: Callable[..., dict[str, Tensor]] | None = None
    prepare_passes: Callable[..., Passes] = lambda **_: Passes(0)
    passes: Callable[..., Passes] = lambda methods, **_: shared_passes(methods)
    source: str = ""
    level: Level = "image"
    call: str = ""
    masked_share: float | None = None
    asks: Asks = "right"
    parts: bool = False

    @property
    def direction(self) -> str:
        """The score's direction as shown in records and tables, ``higher is better`` or ``lower is better``."""
        return "higher is better" if self.higher_is_better else "lower is better"


PROTOCOLS: Registry[ProtocolEntry] = Registry("protocol")


def register_protocol(name: str | None = None, *, replace: bool = False, **entry: Any) -> Callable[[Callable], Callable]:
    """Register the decorated function under ``name`` or its own name. Other arguments: see :class:`ProtocolEntry`."""
    return PROTOCOLS.registering(partial(ProtocolEntry, **entry), name, replace)


def list_protocols(level: Level | None = None, library: str | None = None) -> list[str]:
    """Return the names of all protocols, optionally of one level or of a library.

    Protocols of level ``image`` score every image and run through ``evaluate(protocol=...)``. Those of level ``data set`` score a method
    on a whole data set; the entry's ``call`` names the function that runs them.

    Args:
        level: ``image`` or ``data set``; None: both.
        library: ``quantus``: its metrics, as ``quantus/Name``, all of level ``image``. None: the package's own.

    Raises:
        UnknownNameError: for an unknown level or library.
    """
    if level is not None and level not in get_args(Level):
        raise UnknownNameError("level", level, get_args(Level))
    if library is not None:
        return PROTOCOLS.names_of(library) if level != "data set" else []
    return [name for name, entry in PROTOCOLS.items() if level in (None, entry.level)]


def normalisation_of(model: nn.Module, batch: Batch) -> Normalisation:
    """Return the batch's normalisation, or that of the model's entry. Raises ValueError if neither is known."""
    found = batch.normalisation or describe(model).normalisation
    if found is None:
        raise ValueError(f"the normalisation of the images for {describe(model).name} is unknown: pass Batch(normalisation=...)")
    return found


def on_model(method: Method, model: nn.Module) -> Method:
    """Return the same method with the same settings and random numbers for another net.

    Raises:
        ValueError: for a user's own method, which explains the net that it was made with.
    """
    if method.entry.family == "own":
        raise ValueError(f"method {method.name!r} cannot be moved to another net: it is a callable of your own, which holds its net")
    return method.changed(model=model)


class MeanOverImages(Metric):
    """Metric that averages a per-image score over batches and processes; subclasses name the pure function that returns scores (B,)::

        class MyScore(MeanOverImages):
            higher_is_better = True
            function = staticmethod(my_score)

    ``update(*tensors, image_ids=None)`` passes the tensors to the function; ``compute`` returns the mean over distinct images. Ids
    (non-negative integers) identify images that a distributed sampler repeats to balance its ranks. ``count`` is the number of images in
    the mean, ``undefined`` the number left out because their score is NaN.

    Args:
        settings: keyword arguments for the function, such as ``normalise=True``, and for torchmetrics.
    """

    full_state_update = False
    is_differentiable = False
    function: Callable[..., Tensor]

    def __init__(self, **settings: Any) -> None:
        known = inspect.signature(self.function).parameters
        super().__init__(**{name: value for name, value in settings.items() if name not in known})
        self.settings = {name: value for name, value in settings.items() if name in known}
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("ids", default=[], dist_reduce_fx="cat")

    def update(self, *tensors: Tensor, image_ids: Tensor | None = None) -> None:
        """Add a batch: the arguments of the function, and (B,) integer ids if images may repeat."""
        scores = self.function(*tensors, **self.settings)
        if image_ids is None:
            first = -1 - sum(len(part) for part in self.ids)
            image_ids = torch.arange(first, first - len(scores), -1, device=scores.device)
        self.scores.append(scores)
        self.ids.append(image_ids.to(scores.device, torch.int64))

    def per_image(self) -> Tensor:
        """Return one score per distinct image, (N,), NaN where undefined."""
        scores, ids = dim_zero_cat(self.scores), dim_zero_cat(self.ids)
        order = ids.argsort(stable=True)
        ordered = ids[order]
        first = torch.ones_like(ordered, dtype=torch.bool)
        # Negative ids are placeholders made up per process, so none of them is a repetition.
        first[1:] = (ordered[1:] != ordered[:-1]) | (ordered[1:] < 0)
        return scores[order][first]

    def compute(self) -> Tensor:
        """Return the mean over images with a defined score; NaN if there is none."""
        return torch.nanmean(self.per_image())

    @property
    def count(self) -> int:
        """Number of images with a defined score."""
        return int((~self.per_image().isnan()).sum())

    @property
    def undefined(self) -> int:
        """Number of images whose score is undefined."""
        return int(self.per_image().isnan().sum())
