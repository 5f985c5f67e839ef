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
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from math import inf
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from idsds.common.randomness import generator, seeded
from idsds.methods.base import Method, shared_maps
from idsds.methods.libraries.base import MissingLibraryError
from idsds.models.base import frozen
from idsds.protocols.base import PROTOCOLS, Asks, Batch, Columns, Prepared, ProtocolEntry, on_model
from idsds.protocols.localisation import mosaics

#: Number of companions for metrics that compare images.
COMPANIONS = 31
#: Number of maps per call, at most.
ROWS = 64

#: Errors that Quantus raises where a score is undefined.
UNDEFINED = ("'float' object has no attribute 'shape'", "attribution vector are all equal to zero")


@dataclass(frozen=True)
class Metric:
    """A Quantus metric.

    Args:
        asks: what it asks of a map.
        options: arguments of the class that differ from its defaults.
        batched: what may be scored in one call with the scores of single calls: ``images`` of one method, ``maps`` of any, or nothing.
        direction: a note if Quantus states the opposite of its values' direction.
    """

    asks: Asks
    higher_is_better: bool
    range: tuple[float, float] = (0, 1)
    options: Mapping[str, Any] = field(default_factory=dict)
    batched: Literal["", "images", "maps"] = ""
    direction: str = ""


FEW = {"nr_samples": 10}
STEPS = {"features_in_step": 0}
UNBOUNDED = (0, inf)
#: By class name. ``features_in_step=0`` means a sixteenth of the pixels, ``k=0`` a quarter of a mosaic's.
METRICS: Mapping[str, Metric] = {
    "FaithfulnessCorrelation": Metric("right", True, (-1, 1)),
    "FaithfulnessEstimate": Metric("right", True, (-1, 1), STEPS, batched="maps"),
    "PixelFlipping": Metric("right", False, (0, 1), STEPS, batched="maps"),
    "RegionPerturbation": Metric(
        "right", True, (-1, 1), {"regions_evaluation": 16}, "maps", direction="drops of the probability, though it says lower"
    ),
    "Monotonicity": Metric("right", True, (0, 1), STEPS, batched="maps"),
    "MonotonicityCorrelation": Metric("right", True, (-1, 1), {"features_in_step": 0, "nr_samples": 10}),
    "Selectivity": Metric("right", False, (0, 1), batched="maps"),
    "Infidelity": Metric("right", False, UNBOUNDED, {"n_perturb_samples": 1}, "maps"),  # Quantus' ten are all alike
    "Sufficiency": Metric("right", True),
    "Completeness": Metric("right", True),
    "NonSensitivity": Metric("right", False, UNBOUNDED, batched="maps"),
    "InputInvariance": Metric("stable", True),
    "Continuity": Metric("stable", False, (-inf, inf), {"nr_steps": 8}),
    "LocalLipschitzEstimate": Metric("stable", False, UNBOUNDED, FEW),
    "MaxSensitivity": Metric("stable", False, UNBOUNDED, FEW),
    "AvgSensitivity": Metric("stable", False, UNBOUNDED, FEW),
    "Consistency": Metric("stable", True, direction="the fraction of images with the same map that have the same class; it says lower"),
    "RelativeInputStability": Metric("stable", False, UNBOUNDED, FEW),
    "RelativeOutputStability": Metric("stable", False, UNBOUNDED, FEW),
    "RelativeRepresentationStability": Metric("stable", False, UNBOUNDED, FEW),
    "MPRT": Metric("dependent", False, (-1, 1), batched="images"),
    "SmoothMPRT": Metric("dependent", False, (-1, 1), {"nr_samples": 4}),
    "EfficientMPRT": Metric("dependent", True, (-inf, inf), batched="images"),
    "RandomLogit": Metric("dependent", False, (-1, 1)),
    "PointingGame": Metric("localised", True, batched="maps"),
    "TopKIntersection": Metric("localised", True, options={"k": 0}, batched="maps"),
    "RelevanceMassAccuracy": Metric("localised", True, (-inf, inf), batched="maps"),
    "RelevanceRankAccuracy": Metric("localised", True, batched="maps"),
    "AttributionLocalisation": Metric("localised", True, batched="maps"),
    "AUC": Metric("localised", True, batched="maps"),
    "Focus": Metric("localised", True, batched="maps"),
    "Sparseness": Metric("simple", True, batched="maps"),
    "Complexity": Metric("simple", False, UNBOUNDED, batched="maps"),
    "EffectiveComplexity": Metric("simple", False, UNBOUNDED, batched="maps"),
}
#: Metrics of Quantus 0.6 that are not offered, and why.
LEFT_OUT: Mapping[str, str] = {
    "SensitivityN": "correlates over the images of a batch, so single images have no score; use sensitivity_n",
    "ROAD": "raises an IndexError for colour images with single-channel maps, and scores a whole data set; use road",
    "IROF": "raises an AssertionError for colour images with single-channel maps",
}


def entry_of(key: str) -> ProtocolEntry:
    """Return the entry of ``quantus/Name``.

    Raises:
        MissingLibraryError: if Quantus is not installed; the message names the extra.
    """
    name = key.partition("/")[2]
    if find_spec("quantus") is None:
        raise MissingLibraryError(f"{key!r} needs quantus, which is not installed: pip install 'idsds[quantus]'", name="quantus")
    metric = METRICS[name]

    def function(model: nn.Module, methods: Sequence[Method], batch: Batch, prepared: Prepared, **settings: Any) -> Columns:
        return quantus_scores(name, model, methods, batch, {**metric.options, **settings})

    function.__doc__ = f"Score with Quantus' {name}; {'higher' if metric.higher_is_better else 'lower'} is better."
    function.__qualname__ = f"quantus {version('quantus')} {name}"  # part of the records' addresses
    own = [inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=value) for option, value in metric.options.items()]
    taken = [parameter for parameter in inspect.signature(function).parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    function.__signature__ = inspect.Signature([*taken, *own])  # type: ignore[attr-defined]
    return ProtocolEntry(  # its passes are those for the maps alone; the metric's own are not counted
        name=key,
        function=function,
        higher_is_better=metric.higher_is_better,
        range=metric.range,
        source=f"Quantus 0.6: {name}",
        asks=metric.asks,
    )


PROTOCOLS.add_library("quantus", lambda: METRICS, entry_of)


def quantus_scores(name: str, model: nn.Module, methods: Sequence[Method], batch: Batch, options: Mapping[str, Any]) -> Columns:
    """Score maps with a Quantus metric: ``score`` (B,) by method, NaN for a map that is not finite or zero everywhere.

    Args:
        methods: methods on that net; registered ones if the metric explains other nets.
        batch: images, targets, ids, and companions if the metric needs other images.

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
    with frozen(judged):
        maps = shared_maps(methods, batch.images, batch.targets, batch.image_ids)
        scores = {method.name: torch.full((len(batch.images),), torch.nan, dtype=torch.float64) for method in methods}
        pairs = [(method, place) for method in methods for place in _defined(maps[method.name])]
        batched = metric.batched if options.keys() <= metric.options.keys() else ""  # other options may draw random numbers
        size = {"maps": ROWS, "images": len(batch.images), "": 1}[batched]
        calls = {method.name: _Call(name, judged, method, dict(options), others) for method in methods}
        softmax = isinstance(list(judged.modules())[-1], nn.Softmax)  # Quantus removes it by its name, which a wrapper would change
        for group in [pairs] if batched == "maps" else [[pair for pair in pairs if pair[0] is method] for method in methods]:
            for start in range(0, len(group), size):
                rows, some = zip(*group[start : start + size], strict=True)
                stacked = torch.stack([maps[method.name][place] for method, place in zip(rows, some, strict=True)])
                call = calls[rows[0].name]
                call.model = _Distinct(judged, some) if len({*some}) < len(some) and not softmax else judged
                found = call.scores(batch, stacked, some, None if masks is None else masks[list(some)])
                for method, place, score in zip(rows, some, found, strict=True):
                    scores[method.name][place] = score
    return {method.name: {"score": scores[method.name].to(maps[method.name].device)} for method in methods}


def _defined(maps: Tensor) -> list[int]:
    """Return which maps have a score: those that are finite and not zero everywhere."""
    flat = maps.flatten(1)
    return torch.nonzero(flat.isfinite().all(dim=1) & (flat != 0).any(dim=1))[:, 0].tolist()


class _Distinct(nn.Module):
    """A net for a batch that holds an image several times: while all its rows are the same, the net sees one of them.

    Args:
        net: the net.
        images: which image each row of the batch is.
    """

    def __init__(self, net: nn.Module, images: Sequence[int]) -> None:
        super().__init__()
        self.net, places = net, list(dict.fromkeys(images))
        self.first, self.of = [images.index(place) for place in places], [places.index(place) for place in images]
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        one = images[self.first]
        return self.net(one)[self.of] if torch.equal(one[self.of], images) else self.net(images)


def _companions(batch: Batch) -> Batch:
    if batch.companions is None:
        raise ValueError("the metric compares an image with others: a data set by its name, or Batch(companions=...)")
    images, targets = (found[:COMPANIONS].to(batch.images.device) for found in batch.companions())
    return Batch(images.to(batch.images), targets, [f"companion {number}" for number in range(len(images))])


class _Call:
    """A metric applied to one method."""

    def __init__(self, name: str, judged: nn.Module, method: Method, options: dict[str, Any], others: Batch | None) -> None:
        self.name, self.judged, self.method, self.options, self.others = name, judged, method, options, others
        self.model = judged
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
        """Return the scores of ``maps`` of some of the batch's images, in float64."""
        self.ids, self.device = [batch.image_ids[place] for place in some], batch.images.device
        images, targets = batch.images[list(some)], batch.targets[list(some)]
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
                    model=self.model, explain_func=self.explain, device=str(self.device), **arrays, **given
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
