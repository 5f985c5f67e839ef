"""Metrics of Quantus by name, such as ``quantus/Sparseness``: Quantus' own classes, with random numbers keyed by image.

The extra ``quantus`` installs it. A score is what the metric returns for one image: 1 or 0 for a truth value, the mean for a curve or for
values by layer. Localisation metrics, which need annotations, receive mosaics of four images and the position of the target class's image
(:mod:`idsds.protocols.localisation`). Metrics that compare an image with others receive companions from its data set. Settings are
Quantus' defaults except those in :data:`METRICS`, which make a metric affordable; all can be set through the protocol.

Source: Hedström et al., "Quantus: An Explainable AI Toolkit for Responsible Evaluation of Neural Network Explanations and Beyond",
JMLR 2023 (arXiv 2202.06861).
"""

from __future__ import annotations

import copy
import inspect
import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from idsds.common.randomness import generator, seeded
from idsds.methods.base import Method, shared_maps, shared_passes
from idsds.methods.libraries.base import MissingLibraryError
from idsds.models.base import frozen
from idsds.protocols.base import PROTOCOLS, Asks, Batch, ProtocolEntry, on_model
from idsds.protocols.localisation import mosaics

INFINITE = math.inf
#: Number of companions for metrics that compare images.
COMPANIONS = 31

#: Errors that Quantus raises where a score is undefined.
UNDEFINED = ("'float' object has no attribute 'shape'", "attribution vector are all equal to zero")


@dataclass(frozen=True)
class Metric:
    """A Quantus metric.

    Args:
        asks: what it asks of a map.
        higher_is_better: the direction of the scores that it returns.
        range: lowest and highest possible score.
        options: arguments of the class that differ from its defaults; a callable is called with the batch's images.
        batched: whether a batch gives the same scores as single images.
        direction: a note if Quantus states the opposite of its values' direction.
    """

    asks: Asks
    higher_is_better: bool
    range: tuple[float, float] = (0, 1)
    options: Mapping[str, Any] = field(default_factory=dict)
    batched: bool = False
    direction: str = ""


FEW = {"nr_samples": 10}
STEPS = {"features_in_step": 0}
UNBOUNDED = (0, INFINITE)
#: By class name. ``features_in_step=0`` means a sixteenth of the pixels, ``k=0`` a quarter of a mosaic's.
METRICS: Mapping[str, Metric] = {
    "FaithfulnessCorrelation": Metric("right", True, (-1, 1)),
    "FaithfulnessEstimate": Metric("right", True, (-1, 1), STEPS),
    "PixelFlipping": Metric("right", False, (0, 1), STEPS),
    "RegionPerturbation": Metric(
        "right", True, (-1, 1), {"regions_evaluation": 16}, direction="drops of the probability, though it says lower"
    ),
    "Monotonicity": Metric("right", True, (0, 1), STEPS),
    "MonotonicityCorrelation": Metric("right", True, (-1, 1), {"features_in_step": 0, "nr_samples": 10}),
    "Selectivity": Metric("right", False, (0, 1)),
    "Infidelity": Metric("right", False, UNBOUNDED),
    "Sufficiency": Metric("right", True),
    "Completeness": Metric("right", True),
    "NonSensitivity": Metric("right", False, UNBOUNDED),
    "InputInvariance": Metric("stable", True),
    "Continuity": Metric("stable", False, (-INFINITE, INFINITE), {"nr_steps": 8}),
    "LocalLipschitzEstimate": Metric("stable", False, UNBOUNDED, FEW),
    "MaxSensitivity": Metric("stable", False, UNBOUNDED, FEW),
    "AvgSensitivity": Metric("stable", False, UNBOUNDED, FEW),
    "Consistency": Metric("stable", True, direction="the share of images with the same map that have the same class, though it says lower"),
    "RelativeInputStability": Metric("stable", False, UNBOUNDED, FEW),
    "RelativeOutputStability": Metric("stable", False, UNBOUNDED, FEW),
    "RelativeRepresentationStability": Metric("stable", False, UNBOUNDED, FEW),
    "MPRT": Metric("dependent", False, (-1, 1), batched=True),
    "SmoothMPRT": Metric("dependent", False, (-1, 1), {"nr_samples": 4}),
    "EfficientMPRT": Metric("dependent", True, (-INFINITE, INFINITE), batched=True),
    "RandomLogit": Metric("dependent", False, (-1, 1)),
    "PointingGame": Metric("localised", True, batched=True),
    "TopKIntersection": Metric("localised", True, options={"k": 0}, batched=True),
    "RelevanceMassAccuracy": Metric("localised", True, (-INFINITE, INFINITE), batched=True),
    "RelevanceRankAccuracy": Metric("localised", True, batched=True),
    "AttributionLocalisation": Metric("localised", True, batched=True),
    "AUC": Metric("localised", True, batched=True),
    "Focus": Metric("localised", True, batched=True),
    "Sparseness": Metric("simple", True, batched=True),
    "Complexity": Metric("simple", False, UNBOUNDED, batched=True),
    "EffectiveComplexity": Metric("simple", False, UNBOUNDED, batched=True),
}
#: Metrics of Quantus 0.6 that are not offered, and why.
LEFT_OUT: Mapping[str, str] = {
    "SensitivityN": "correlates over the images of a batch, so single images have no score; use sensitivity_n",
    "ROAD": "raises an IndexError for colour images with single-channel maps, and scores a whole data set; use road",
    "IROF": "raises an AssertionError for colour images with single-channel maps",
}


def names() -> list[str]:
    """Return the names that may follow ``quantus/``."""
    return list(METRICS)


def entry_of(key: str) -> ProtocolEntry:
    """Return the entry of ``quantus/Name``.

    Raises:
        MissingLibraryError: if Quantus is not installed; the message names the extra.
    """
    name = key.partition("/")[2]
    if find_spec("quantus") is None:
        raise MissingLibraryError(f"{key!r} needs quantus, which is not installed: pip install 'idsds[quantus]'", name="quantus")
    metric = METRICS[name]

    def function(
        model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: dict[str, Tensor], **settings: Any
    ) -> dict[str, dict[str, Tensor]]:
        return quantus_scores(name, model, methods, batch, {**metric.options, **settings})

    function.__doc__ = f"Score with Quantus' {name}; {'higher' if metric.higher_is_better else 'lower'} is better."
    function.__qualname__ = f"quantus {version('quantus')} {name}"  # part of the records' addresses
    own = [inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=value) for option, value in metric.options.items()]
    taken = [parameter for parameter in inspect.signature(function).parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    function.__signature__ = inspect.Signature([*taken, *own])  # type: ignore[attr-defined]
    return ProtocolEntry(
        name=key,
        function=function,
        higher_is_better=metric.higher_is_better,
        range=metric.range,
        passes=lambda methods, **_: shared_passes(methods),  # passes for the maps alone; the metric's own are not counted
        source=f"Quantus 0.6: {name}",
        asks=metric.asks,
    )


PROTOCOLS.add_library("quantus", names, entry_of)


def quantus_scores(
    name: str, model: nn.Module, methods: Sequence[Method], batch: Batch, options: Mapping[str, Any]
) -> dict[str, dict[str, Tensor]]:
    """Score maps with a Quantus metric: ``score`` (B,) by method, NaN for a map that is not finite or zero everywhere.

    Args:
        name: one of :data:`METRICS`.
        model: the net.
        methods: methods on that net; registered ones if the metric explains other nets.
        batch: images, targets, ids, and companions if the metric needs other images.
        options: arguments of the metric's class.

    Raises:
        ValueError: if companions are needed and missing, or for an unknown option.
    """
    metric, seed = METRICS[name], methods[0].seed
    masks = None
    if metric.asks == "localised":
        images, cells = mosaics(batch, 2, seed)
        batch = Batch(images, batch.targets, batch.image_ids, batch.normalisation)
        masks = torch.eye(4, device=cells.device)[cells]  # (B, cells)
    others = _companions(batch) if name in ("Sufficiency", "Consistency") else None
    first = next((module for module in model.modules() if not list(module.children())), model)
    if name == "InputInvariance" and getattr(first, "bias", None) is None:
        raise ValueError(f"quantus/InputInvariance shifts the bias of the first layer, and that of this net, {first}, has none")
    # Quantus converts images to float32, so the net must be float32 too.
    judged = model if next(iter(model.parameters()), torch.zeros(())).dtype == torch.float32 else copy.deepcopy(model).float()
    columns = {}
    with frozen(judged):
        for method in methods:
            maps = shared_maps([method], batch.images, batch.targets, batch.image_ids)[method.name]
            call = _Call(name, judged, method, dict(options), others)
            scores = torch.full((len(maps),), torch.nan, dtype=torch.float64)
            flat = maps.flatten(1)
            defined = torch.nonzero(flat.isfinite().all(dim=1) & (flat != 0).any(dim=1))[:, 0].tolist()
            for some in [defined] if metric.batched else [[place] for place in defined]:
                if some:
                    scores[some] = call.scores(batch, maps, some, None if masks is None else masks[some])
            columns[method.name] = {"score": scores.to(maps.device)}
    return columns


def _companions(batch: Batch) -> Batch:
    if batch.companions is None:
        raise ValueError("the metric compares an image with others: a data set by its name, or Batch(companions=...)")
    images, targets = (found[:COMPANIONS].to(batch.images.device) for found in batch.companions())
    return Batch(images.to(batch.images), targets, [f"companion {number}" for number in range(len(images))])


class _Call:
    """A metric applied to one method."""

    def __init__(self, name: str, judged: nn.Module, method: Method, options: dict[str, Any], others: Batch | None) -> None:
        self.name, self.judged, self.method, self.options, self.others = name, judged, method, options, others
        self.of_others = None if others is None else shared_maps([method], others.images, others.targets, others.image_ids)[method.name]

    def metric(self, images: Tensor, image_id: object) -> Any:
        """Create the metric for images of one size."""
        quantus = import_module("quantus")
        options, pixels = dict(self.options), images.shape[-2] * images.shape[-1]
        if options.get("features_in_step") == 0:  # must divide the number of pixels
            options["features_in_step"] = max(step for step in range(1, max(2, pixels // 16 + 1)) if pixels % step == 0)
        if options.get("k") == 0:
            options["k"] = pixels // 4
        if self.name in ("MPRT", "SmoothMPRT", "EfficientMPRT"):
            options["seed"] = self.method.seed
        if self.name == "RandomLogit":
            with torch.inference_mode():
                options["num_classes"] = self.judged(images[:1].float()).shape[1]
            options["seed"] = int(torch.randint(2**31, (), generator=generator(self.method.seed, "quantus/RandomLogit", image_id)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return getattr(quantus, self.name)(disable_warnings=True, display_progressbar=False, **options)

    def explain(self, model: nn.Module, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
        """Explain other images or nets for Quantus; copies of an image keep its id."""
        method = self.method if model is self.judged else on_model(self.method, model)
        dtype = next(iter(method.model.parameters()), torch.zeros(())).dtype
        images = torch.as_tensor(np.asarray(inputs), device=self.device).to(dtype)
        ids = [self.ids[place % len(self.ids)] for place in range(len(images))]
        return shared_maps([method], images, torch.as_tensor(np.asarray(targets), device=self.device), ids)[method.name].cpu().numpy()

    def scores(self, batch: Batch, maps: Tensor, some: Sequence[int], masks: Tensor | None) -> Tensor:
        """Return the scores of a slice of the batch, in float64."""
        self.ids, self.device = [batch.image_ids[place] for place in some], batch.images.device
        images, targets, maps = batch.images[some], batch.targets[some], maps[some]
        given: dict[str, Any] = {}
        if masks is not None:
            height, width = (side // 2 for side in images.shape[-2:])
            cells = masks.view(-1, 1, 2, 2).repeat_interleave(height, dim=2).repeat_interleave(width, dim=3)
            given = {"custom_batch": masks.cpu().numpy()} if self.name == "Focus" else {"s_batch": cells.cpu().numpy()}
        if self.others is not None:
            images, targets = torch.cat([images, self.others.images]), torch.cat([targets, self.others.targets])
            maps = torch.cat([maps, self.of_others])
        arrays = {"x_batch": images.float().cpu().numpy(), "y_batch": targets.cpu().numpy(), "a_batch": maps.cpu().numpy()}
        with seeded(self.method.seed, f"quantus/{self.name}", *self.ids[:1], device=self.device), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            level = logging.root.manager.disable
            logging.disable(logging.WARNING)
            try:
                found = self.metric(images, self.ids[0])(
                    model=self.judged, explain_func=self.explain, device=str(self.device), **arrays, **given
                )
            except (AttributeError, AssertionError) as error:  # an undefined correlation, or a zero map of another image or net
                if not any(words in str(error) for words in UNDEFINED):
                    raise
                return torch.full((len(some),), torch.nan, dtype=torch.float64)
            finally:
                logging.disable(level)
        return as_scores(found, len(some))


def as_scores(found: Any, count: int) -> Tensor:
    """Convert a metric's results to (count,) float64, with the mean over a curve or over a randomised net's layers.

    Args:
        found: a value, a curve per image, or values by layer; ``original``, which is no layer, is left out.
        count: number of images; surplus values are ignored.
    """
    if isinstance(found, dict):
        found = np.mean([values for layer, values in found.items() if layer != "original"], axis=0)
    values = [float(np.mean(np.asarray(value, dtype=np.float64))) for value in list(found)[:count]]
    return torch.tensor(values, dtype=torch.float64)
