"""What the steps of :mod:`idsds.studies.how_infidelity_works.study` say: two tables, and sentences of computed numbers.

Intervals are 95 % t intervals over the perturbations of one image. Two maps are compared by the differences of their squared errors under
the same perturbations, and one is called clearly lower if the interval of the mean difference excludes 0 (each interval on its own;
that a map's best factor is estimated from the same perturbations is not included). Where all perturbations are used and none is drawn, a
mean is exact and any difference counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest, spearmanr
from scipy.stats import t as student

from idsds.statistics.verdicts import verdicts

if TYPE_CHECKING:
    from idsds.studies.how_infidelity_works.study import Step, Walk

CONFIDENCE = 0.95
#: The map that the optimal map is compared with.
GRADIENT = "Gradient"
ZEROS = "a map of zeros"


class Mean(NamedTuple):
    """A mean with its standard error and its interval."""

    mean: float
    se: float
    low: float
    high: float


def mean_of(values: np.ndarray, sampled: bool = True) -> Mean:
    """Return the mean of values (samples,) with its t interval; exact where nothing was drawn."""
    mean = float(values.mean())
    se = float(values.std(ddof=1)) / np.sqrt(len(values)) if sampled else 0.0
    half = se * float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) if sampled else 0.0
    return Mean(mean, se, mean - half, mean + half)


def infidelity_of(step: Step, errors: np.ndarray) -> Mean:
    """Return the mean of squared errors (samples,) of one step; its interval does not go below 0."""
    found = mean_of(errors, step.sampled)
    return found._replace(low=max(found.low, 0.0))


def lower(step: Step, first: str, second: str, *, scaled: bool = False) -> bool:
    """Return whether a map's infidelity is clearly below another's (or that of ``a map of zeros``), each unscaled or scaled to its best."""
    errors = {**(step.scaled if scaled else step.errors), ZEROS: step.zero}
    return mean_of(errors[first] - errors[second], step.sampled).high < 0


def reordered(step: Step, given: list[str]) -> list[tuple[str, str]]:
    """Return pairs of maps of which the first is clearly lower unscaled, and the second with each scaled to its best."""
    pairs = [*combinations(given, 2), *combinations(given[::-1], 2)]
    return [(a, b) for a, b in pairs if lower(step, a, b) and lower(step, b, a, scaled=True)]


def winners_of(step: Step, given: list[str]) -> list[str]:
    """Return the map of least infidelity, and those not clearly above it."""
    best = min(given, key=lambda name: step.errors[name].mean())
    return [best, *(name for name in given if name != best and not lower(step, best, name))]


def similarity(found: np.ndarray, gradient: np.ndarray, cells: int) -> tuple[float, float]:
    """Return the cosine and the rank correlation of two maps (H, W), each averaged over the cells of a grid; NaN for a constant map."""
    first, second = (_cell_means(values.astype(float), cells) for values in (found, gradient))
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    constant = min(np.ptp(first), np.ptp(second)) == 0
    cosine = float(first @ second) / norm if norm else float("nan")
    return cosine, float("nan") if constant else float(spearmanr(first, second).statistic)


def _cell_means(values: np.ndarray, cells: int) -> np.ndarray:
    height, width = values.shape
    return values.reshape(cells, height // cells, cells, width // cells).mean(axis=(1, 3)).ravel()


def steps_table(walk: Walk) -> pd.DataFrame:
    """One row per perturbation and map.

    Columns:
        ``perturbation``, ``map``; ``logit`` of the intact image, ``first_change`` and ``first_predicted`` of the first perturbation.
        ``infidelity`` with ``infidelity_se``, ``low`` and ``high``, and ``normalised`` (each map scaled to its best) with its own; in
        squared logits, lower is better. ``interval`` says what is covered.
        ``map_of_zeros``: its infidelity. ``mean_change`` of the logit with ``mean_change_se``; ``floor``: its square, a lower bound for
        every map under noise, whose mean is 0 (NaN for masks).
        ``fitted_to``: how many perturbations the optimal map was fitted to, and how many of them ``different`` (a noise and its opposite
        count once);
        ``seen``: how many of the judging ``perturbations`` are among them; ``ridge``: a multiple of the mean eigenvalue of E[I I^T].
        ``cosine_with_gradient``, ``spearman_with_gradient``: of the map with that of Gradient, cell by cell.
        ``wins_elsewhere`` of ``other_images``: on how many this map has the lowest infidelity of the methods' maps.
    """
    table = pd.DataFrame([row for step in walk.steps for row in _rows(walk, step)])
    return table.astype(dict.fromkeys(("fitted_to", "different", "seen", "wins_elsewhere"), "Int64"))


def _rows(walk: Walk, step: Step) -> Iterator[dict[str, object]]:
    count, optimal = len(step.changes), walk.settings.optimal
    change = mean_of(step.changes, step.sampled)
    interval = f"95 % t over {count} perturbations of one image" if step.sampled else f"none: all {count} perturbations of one image"
    shared = {"map_of_zeros": step.zero.mean(), "mean_change": change.mean, "mean_change_se": change.se}
    shared |= {"floor": change.mean**2 if step.noise else np.nan, "perturbations": count, "interval": interval}
    gradient = walk.maps.get(GRADIENT)
    for name in step.predicted:
        own = name == optimal
        raw, scaled = (infidelity_of(step, errors[name]) for errors in (step.errors, step.scaled))
        found = step.optimal if own else walk.maps[name]
        cosine, rank = (np.nan, np.nan) if gradient is None else similarity(found, gradient, walk.settings.optimal_cells)
        row = {"perturbation": step.name, "map": name, "logit": step.logit}
        row |= {"first_change": step.changes[0], "first_predicted": step.predicted[name][0]}
        row |= {"infidelity": raw.mean, "infidelity_se": raw.se, "low": raw.low, "high": raw.high, "normalised": scaled.mean}
        row |= {f"normalised_{end}": getattr(scaled, end) for end in ("se", "low", "high")} | shared
        fit = (step.fitted, step.different, step.ridge, step.seen) if own else (pd.NA, pd.NA, np.nan, pd.NA)
        row |= dict(zip(("fitted_to", "different", "ridge", "seen"), fit, strict=True))
        won = walk.winners[step.name]
        row |= {"cosine_with_gradient": cosine, "spearman_with_gradient": rank}
        yield row | {"wins_elsewhere": pd.NA if own or not won else won.count(name), "other_images": len(won)}


def claims_table(walk: Walk) -> pd.DataFrame:
    """Judge, per perturbation, whether the optimal map has a lower infidelity than every method's map (proposition 2.1), and compare these.

    Returns:
        =============================== ==========================================================================================
        ``perturbation``                one row each
        ``lowest``, ``ties``            the method's map of least infidelity, and those not clearly above it
        ``zeros_below``                 the methods' maps that a map of zeros is clearly below
        ``reversed`` of ``comparisons`` pairs of methods' maps whose order reverses when each is scaled to its best
        ``same_elsewhere`` of ``other_images`` on how many the same map is lowest, with its exact binomial ``low`` and ``high``
        ``by_construction``             whether the optimal map was fitted exactly to the judging perturbations
        ``verdict``                     supported, not supported or contradicted
        =============================== ==========================================================================================
    """
    rows, given, optimal = [], list(walk.maps), walk.settings.optimal
    for step in walk.steps:
        best, *ties = winners_of(step, given)
        above = [mean_of(step.errors[name] - step.errors[optimal], step.sampled) for name in given]
        row = {"perturbation": step.name, "lowest": best, "ties": ", ".join(ties)}
        row |= {"zeros_below": ", ".join(name for name in given if lower(step, ZEROS, name))}
        row |= {"reversed": len(reordered(step, given)), "comparisons": len(given) * (len(given) - 1) // 2}
        row |= {"same_elsewhere": 0, "other_images": walk.settings.others, "low": np.nan, "high": np.nan}
        if walk.settings.others:
            same = walk.winners[step.name].count(best)
            interval = binomtest(same, walk.settings.others).proportion_ci(CONFIDENCE)
            row |= {"same_elsewhere": same, "low": interval.low, "high": interval.high}
        verdict = verdicts(min(one.low for one in above), min(one.high for one in above)).item()
        rows.append({**row, "by_construction": step.by_construction, "verdict": verdict})
    return pd.DataFrame(rows)


def sentences(walk: Walk, claims: pd.DataFrame) -> list[str]:
    """Name the image, and count clear winners, perturbations that a map of zeros wins, and orders that scaling reverses."""
    settings, given = walk.settings, list(walk.maps)
    clear = int((claims["ties"] == "").sum())
    silent = sum(all(lower(step, ZEROS, name) for name in given) for step in walk.steps)
    return [
        f"{settings.model} gives {walk.image_id} of {settings.dataset}, labelled {walk.label}, a logit of {walk.steps[0].logit:.2f}; "
        "intervals are over perturbations, not over images.",
        f"{clear} of {len(claims)} perturbations have a clear winner among the methods' maps; a map of zeros is clearly below all of them "
        f"for {silent}.",
        f"Scaling each map to its best clearly reverses {claims['reversed'].sum()} of {claims['comparisons'].sum()} comparisons.",
    ]
