"""Judging the judges: does a protocol put the exact map first, noise last, and maps with growing noise in order?

The known importance of a patch is the drop in the logit when it is deleted, so that single deletion has the right order by construction;
hence a second truth, Shapley values on a model where the two differ. Protocols that do not test whether a map is right (stability, sanity
checks) are run too, and called tests to pass. ROAR and KAR retrain on the known maps (:mod:`idsds.studies.metric_sanity.retraining`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from idsds.common.files import write_json
from idsds.common.hashing import code_digest, digest
from idsds.common.numbers import as_whole
from idsds.common.processes import Each
from idsds.datasets.synthetic import PatchModel
from idsds.methods.base import Passes
from idsds.protocols.base import PROTOCOLS, Asks, ProtocolEntry, list_protocols
from idsds.protocols.roar import SCORES
from idsds.statistics.intervals import jackknife, wilson
from idsds.studies.metric_sanity.known_maps import (
    LEVELS,
    Known,
    KnownMap,
    interfering_model,
    known_models,
    known_scores,
    model_shift,
    noisy_maps,
    orderings,
    properties,
)
from idsds.studies.metric_sanity.known_parts import parts_judged
from idsds.studies.metric_sanity.retraining import RETRAINING, KnownRetraining, known_areas


@dataclass(frozen=True)
class Reading:
    """One row of the table: a protocol with its settings.

    Args:
        name: of this row, if a protocol has several.
        settings: of the protocol, on known maps and on trained nets alike.
        known: further settings, for known maps only.
        truth: what the exact map holds.
        note: what the table does not show, or what the protocol tests instead of whether a map is right.
        test: whether it tests something else.
        applies: whether it can score a given map.
        most: maximum number of images, on trained nets half of them; None: as many as for others.
    """

    protocol: str
    name: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    known: Mapping[str, Any] = field(default_factory=dict)
    truth: Known = "deletion"
    note: str = ""
    test: bool = False
    applies: bool = True
    most: int | None = None

    def images(self, count: int, nets: bool = False) -> int:
        """Return how many of ``count`` images are used, on known maps or on trained ``nets``."""
        return min(count, (self.most + nets) // (1 + nets) if self.most else count)

    @property
    def on_known_maps(self) -> dict[str, Any]:
        """The settings on known maps."""
        return {**self.settings, **self.known}

    @property
    def label(self) -> str:
        """The protocol, and the reading."""
        return f"{self.protocol}, {self.name}" if self.name else self.protocol

    @property
    def entry(self) -> ProtocolEntry:
        """The protocol's. Raises UnknownNameError."""
        return PROTOCOLS[self.protocol]


EASY = "has it easy: the truth is the drop of a patch, which is what it measures"
STILL = "asks for a map that does not change with the image: noise that is drawn once per image does not"
FILTERS_ALONE = f"{STILL}, unless the image is turned; known maps are put to filters alone"
RANDOMISED = "asks for a map that changes with the model, as noise drawn once per image does not"
OF_A_CLASS = "asks for a map that changes with the class, as noise drawn once per image does not"
IN_DOMAIN = "a model in closed form needs no fine-tuning: a patch of zeros has no evidence"
SQUARES = {"perturbation": "square", "sigma": 0.25}
BY_RANKS = "retrains nets, which need a pass backward for each forward one; its unit is a repetition and not an image"
#: Protocols with settings of their own, or with a note.
READINGS = (
    Reading("idsds", note=f"{EASY}; on a model in closed form it is the same as single_deletion"),
    Reading("single_deletion", note=EASY),
    *(Reading(name, note=IN_DOMAIN) for name in ("in_domain_incremental_deletion", "in_domain_relevance_gain", "f_fidelity")),
    Reading("grid_pointing_game", note="the net finds evidence in the other images too, and an exact map shows it"),
    Reading("difull", note="on a model in closed form too, no evidence outside the cell counts"),
    # A map of contributions predicts the removal of squares, a gradient predicts noise: each is tested on what it can predict.
    Reading("infidelity", "squares", SQUARES, note="reads maps as contributions of removed squares"),
    Reading("infidelity", "squares, scaled", {**SQUARES, "normalise": True}, note="cannot tell a map from its opposite"),
    Reading("infidelity", "noise", truth="gradient", note="reads maps as gradients; on trained nets this is asked of all methods"),
    Reading("infidelity", "noise, scaled", {"normalise": True}, truth="gradient", note="reads maps as gradients; blind to their sign"),
    Reading("max_sensitivity", note=STILL, test=True),
    # A rotation turns stripes into patterns of no class and changes every probability by more than the threshold: no image would count.
    Reading("augmentation_robustness", known={"kind": "filters"}, note=FILTERS_ALONE, test=True),
    # The model has one layer: with more depths the first would change nothing.
    *(Reading(name, known={"depths": 1}, note=RANDOMISED, test=True) for name in ("sanity_check", "smooth_mprt")),
    Reading("efficient_mprt", note=RANDOMISED, test=True),
    Reading("random_logit", note=OF_A_CLASS, test=True),
    Reading("hyperparameter_sensitivity", note="a map that is given has no hyperparameters", applies=False),
    Reading("quantus/InputInvariance", note="shifts the bias of the first layer, which the nets here do not have", applies=False),
    *(Reading(name, note=BY_RANKS) for name in ("roar", "kar")),
)
#: What metrics test, in the order of the table.
GROUPS = get_args(Asks)
#: Metrics of libraries work image by image: they are judged on fewer images, and on half as many on trained nets.
ONE_BY_ONE = 12
COSTLY = dict.fromkeys((f"quantus/{name}" for name in ("NonSensitivity", "MonotonicityCorrelation", "SmoothMPRT")), 4)
RESOLVES = 1.0  # a protocol that can rank detects noise with a smaller spread than the importances
RANKS, SHIFTS = 0.5, 0.5  # minimum ordering of a protocol that can rank; maximum shift of a score by a change that does not concern the map
VERDICTS = (
    "ranks methods on one model, comparable between models",
    "ranks methods on one model",
    "neither",
    "neither: a test to pass, not a ranking",
    "does not apply",
)


def readings(protocols: Sequence[str | Reading] | None = None) -> list[Reading]:
    """Return the rows of the table, those that cannot be judged last.

    Args:
        protocols: names, or rows of your own; None for all.

    Raises:
        UnknownNameError: for an unknown protocol.
    """
    given = list_protocols() if protocols is None else protocols
    rows = [row for each in given for row in ([each] if isinstance(each, Reading) else _rows_of(PROTOCOLS[each].name))]
    return sorted(rows, key=lambda row: (not row.applies, GROUPS.index(row.entry.asks)))


def _rows_of(name: str) -> list[Reading]:
    """Return the rows of a protocol; a library's metric of stability or dependence is a test."""
    if own := [row for row in READINGS if row.protocol == name]:
        return own
    if PROTOCOLS[name].parts:
        return [Reading(name, note="needs images of known parts, which patches and photos are not: judged on sprites alone", applies=False)]
    if "/" not in name:
        return [Reading(name)]
    other = {"stable": STILL, "dependent": OF_A_CLASS if name == "quantus/RandomLogit" else RANDOMISED}.get(PROTOCOLS[name].asks, "")
    few = f"judged on {COSTLY[name]} images, for its cost" if name in COSTLY else ""
    return [Reading(name, test=bool(other), most=COSTLY.get(name, ONE_BY_ONE), note="; ".join(filter(None, (other, few))))]


def verdict(row: Mapping[str, Any]) -> str:
    """Return one of :data:`VERDICTS`, from a row of :func:`judge`'s table.

    A protocol ranks if the better map gets the better score (the interval of ``ordering`` is above 0.5), its mean separates the exact
    map from one with less noise than signal (``resolution`` below 1) and puts no noisier map clearly above it (``beaten`` 0), and the
    scale of a map, which each method chooses, changes a score by less than half as much as replacing the exact map by noise (the
    interval of ``scale_shift`` is below 0.5). It is comparable between models if, in addition, changing the model changes a score by
    less than that (the interval of ``model_shift`` is below 0.5; that of ``control_shift`` too, if trained nets were used). What an
    interval leaves open is not claimed. Shifts between models are ranges, which chance can only widen, so that "comparable" is harder
    to claim. A test to pass is neither, whatever order it finds.
    """
    if not row["applies"]:
        return VERDICTS[4]
    if row["test"]:
        return VERDICTS[3]
    right = row["ordering_low"] > RANKS and row["resolution"] < RESOLVES and row["beaten"] == 0
    if not (right and row["scale_shift_high"] < SHIFTS):
        return VERDICTS[2]
    asked = not np.isnan(row.get("control_shift", np.nan))
    steady = row["model_shift_high"] < SHIFTS and (not asked or row["control_shift_high"] < SHIFTS)
    return VERDICTS[0] if steady else VERDICTS[1]


def judge(
    protocols: Sequence[str | Reading] | None = None,
    *,
    images: int = 64,
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
    retraining: KnownRetraining = RETRAINING,
    parts: bool = False,
    folder: Path | None = None,
    report: Callable[[str], None] = lambda _: None,
    each: Each = map,
) -> pd.DataFrame:
    """Make the table, protocol by property.

    Args:
        protocols: names, or rows of your own; None for all.
        images: how many of the synthetic test split, in its fixed order.
        levels: of noise, rising from 0.
        seed: of the noise and of the protocols.
        retraining: how much is retrained for a protocol that scores a whole data set.
        parts: whether known parts of sprites are judged too, for which nets are trained once.
        folder: where each row is kept, so that an interrupted run resumes; None: nowhere.
        report: called with each row's label once it is made.
        each: how rows are made, see :func:`~idsds.common.processes.side_by_side`.

    Returns:
        One row per reading: ``label``, ``protocol``; the columns of :func:`~idsds.studies.metric_sanity.known_maps.properties`;
        :func:`~idsds.studies.metric_sanity.known_maps.model_shift` over :func:`~idsds.studies.metric_sanity.known_maps.known_models`;
        ``scale_shift`` and ``sign_shift``, how much the exact map's score changes when the map is multiplied by three or by minus one, in
        the same unit (0: blind to it; the sign has no part in the verdict, and none is known after retraining); ``shapley_first``, as
        ``exact_first`` for Shapley values on a model where they are not the drops (NaN where the truth is the gradient).
        ``exact_first``, ``random_last``, ``shapley_first`` (Wilson's), ``ordering``, ``separation``, ``model_shift``, ``scale_shift`` and
        ``sign_shift`` (jackknife, Student's t) have 95 % intervals over ``units`` (images or repetitions) in ``_low`` and ``_high``; so
        have ``parts_ordering`` and ``parts_first``, the same as ``ordering`` and ``exact_first`` for parts
        (:mod:`idsds.studies.metric_sanity.known_parts`). ``asks``: what the protocol tests. ``seconds`` it took. ``forward``, its own
        forward passes per image for one method; ``maps``, how many maps it needs from the method per image; ``applies``, ``test``;
        ``settings``, those that are not defaults; ``note``; ``verdict``. A property that does not apply is NaN.

    Raises:
        UnknownNameError: for an unknown protocol, before any work is done.
    """
    as_whole("images", images)
    rows = []
    how = {"images": images, "levels": tuple(levels), "seed": seed, "retraining": retraining, "parts": parts, "folder": folder}
    for row in each(partial(_row, **how), readings(protocols)):
        report(row["label"])
        rows.append(row)
    table = pd.DataFrame(rows).reindex(columns=COLUMNS)
    return table.assign(verdict=[verdict(row) for row in table.to_dict("records")])


def _row(reading: Reading, images: int, retraining: KnownRetraining, parts: bool, folder: Path | None, **how: Any) -> dict[str, Any]:
    """One row of the table."""
    row: dict[str, Any] = {name: getattr(reading, name) for name in ("label", "protocol", "applies", "test", "note")}
    if reading.applies or (parts and reading.entry.parts):
        row |= _kept(folder, reading, (reading.images(images), how["levels"], how["seed"], retraining), parts)
    settings = ", ".join(f"{key}={value}" for key, value in reading.on_known_maps.items())
    return {**row, **cost_of(reading, retraining), "asks": reading.entry.asks, "settings": settings}


def _kept(folder: Path | None, reading: Reading, how: tuple[Any, ...], parts: bool) -> dict[str, Any]:
    """What :func:`_judged` and :func:`~idsds.studies.metric_sanity.known_parts.parts_judged` find, read if it exists."""
    row: dict[str, Any] = {}
    asked = [(_judged, how)] * reading.applies + [(parts_judged, how[:3])] * parts
    for function, given in asked:
        key = digest([repr(reading), repr(given), function.__name__, code_digest(reading.entry.function), code_digest(function)])
        path = folder and folder / f"{key}.json"
        if path and path.is_file():
            found = json.loads(path.read_text(encoding="utf-8"))
        else:
            begun = time.perf_counter()
            found = function(reading, *given)
            found["seconds"] = time.perf_counter() - begun
            if path:
                write_json(path, found)
        row |= {**found, "seconds": row.get("seconds", 0.0) + found["seconds"]}
    return row


def _judged(reading: Reading, images: int, levels: Sequence[float], seed: int, retraining: KnownRetraining) -> dict[str, Any]:
    entry, better = reading.entry, reading.entry.higher_is_better

    def scores_on(model: PatchModel, truth: Known) -> Tensor:
        if entry.level == "data set":
            return known_areas(retrained_on(entry), model, levels, seed, truth, retraining)
        maps = noisy_maps(model, levels, seed, truth)
        return known_scores(entry, model, maps, images, seed, reading.on_known_maps)

    scores = [scores_on(model, reading.truth) for model in known_models().values()]
    row: dict[str, Any] = {"units": len(scores[0])} | properties(scores[0], better, levels) | {"model_shift": model_shift(scores)}
    stacked = torch.stack(scores, dim=1).numpy()  # (units, models, L + 1)
    first = scores[0].numpy()
    row |= _ends("ordering", jackknife(_mean, orderings(scores[0], better).numpy()))
    row |= _ends("separation", jackknife(lambda some: properties(torch.from_numpy(some), better, levels)["separation"], first))
    row |= _ends("model_shift", jackknife(lambda some: model_shift(list(torch.from_numpy(some).unbind(1))), stacked))
    row |= _share_ends(row, "exact_first") | _share_ends(row, "random_last")
    if reading.truth == "deletion":
        row["shapley_first"] = properties(scores_on(interfering_model(), "shapley"), better, levels)["exact_first"]
        row |= _share_ends(row, "shapley_first")
    return row | _shifts(reading, images, seed, first)


def _mean(values: np.ndarray) -> float:
    """Return the mean over defined values; NaN if there are none."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else np.nan


def retrained_on(entry: ProtocolEntry) -> Any:
    """Return what a protocol of a whole data set retrains on: ``remove`` or ``keep``."""
    return next(kind for kind, function in SCORES.items() if function is entry.function)


def _ends(name: str, ends: tuple[float, float]) -> dict[str, float]:
    return {f"{name}_low": ends[0], f"{name}_high": ends[1]}


def _share_ends(row: Mapping[str, Any], name: str) -> dict[str, float]:
    """Return Wilson's interval of a fraction of the units."""
    return _ends(name, wilson(round(row[name] * row["units"]), row["units"]))


def _shifts(reading: Reading, images: int, seed: int, scores: np.ndarray) -> dict[str, float]:
    """|mean score of the changed exact map - of the exact map| / |mean of exact - of noise alone| by change, with its interval."""
    if reading.entry.level == "data set":  # which pixels are replaced depends on their order in the map alone: a factor changes nothing
        return {"scale_shift": 0.0, **_ends("scale_shift", (0.0, 0.0))}
    model = next(iter(known_models().values()))
    changes = {"scale_shift": 3.0, "sign_shift": -1.0}
    maps = [KnownMap(model, 0.0, seed, reading.truth, scale=factor) for factor in changes.values()]
    found = known_scores(reading.entry, model, maps, images, seed, reading.on_known_maps).numpy()  # (B, 2)

    def shift(some: np.ndarray) -> float:
        exact, noise, changed = (_mean(some[:, column]) for column in range(3))
        return abs(changed - exact) / abs(exact - noise) if exact != noise else np.nan

    row = {}
    for name, changed in zip(changes, found.T, strict=True):
        each = np.column_stack([scores[:, 0], scores[:, -1], changed])
        row |= {name: shift(each), **_ends(name, jackknife(shift, each))}
    return row


def cost_of(reading: Reading, retraining: KnownRetraining) -> dict[str, float]:
    """Return the passes and maps per image and method that a reading takes."""
    if reading.entry.level == "data set":
        return {"forward": retraining.passes, "maps": 1}
    if "/" in reading.protocol:  # what a library's metric does with the net is not announced; its seconds are measured
        return {"forward": np.nan, "maps": np.nan}
    one = KnownMap(next(iter(known_models().values())))
    one.entry = replace(one.entry, passes=Passes(0, 1))  # a map counts as one backward pass, and nothing else does
    cost = reading.entry.passes([one], **reading.on_known_maps) + reading.entry.prepare_passes(**reading.on_known_maps)
    return {"forward": cost.forward, "maps": cost.backward}


def _with_ends(*names: str) -> list[str]:
    return [column for name in names for column in (name, f"{name}_low", f"{name}_high")]


COLUMNS = ["label", "protocol", "asks", *_with_ends("exact_first", "random_last", "ordering"), "resolution", "beaten"]
COLUMNS += _with_ends("separation", "model_shift", "scale_shift", "sign_shift", "shapley_first", "parts_ordering", "parts_first")
COLUMNS += ["parts_images", "units", "undefined", "seconds", "forward", "maps", "applies", "test", "settings", "note"]
