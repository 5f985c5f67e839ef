"""What the steps of :mod:`idsds.studies.how_infidelity_works.study` say: a table, and sentences of computed numbers.

Intervals are 95 % t intervals over the perturbations of one image. Two maps are compared by the differences of their squared errors under
the same perturbations, and one is called clearly lower where the interval of the mean difference leaves out 0 (each interval on its own;
that a map's best factor is estimated from the same perturbations is not in it). Where the perturbations are all that there are, nothing is
drawn: a mean is exact, and any difference counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import binomtest, spearmanr
from scipy.stats import t as student

from idsds.studies.how_infidelity_works.study import InfidelityWalk, Step

CONFIDENCE = 0.95
#: What the optimal map is compared with.
GRADIENT = "Gradient"
ZEROS = "a map of zeros"
#: Share of the infidelity of a map of zeros above which the squared mean change is told.
LARGE = 0.5


class Mean(NamedTuple):
    """A mean with its standard error and the ends of its interval."""

    mean: float
    se: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]" if self.se else f"{self.mean:.3g}"


def mean_of(values: np.ndarray, sampled: bool = True) -> Mean:
    """The mean of values (samples,) with its t interval; exact where nothing was drawn."""
    mean = float(values.mean())
    se = float(values.std(ddof=1)) / np.sqrt(len(values)) if sampled else 0.0
    half = se * float(student.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) if sampled else 0.0
    return Mean(mean, se, mean - half, mean + half)


def infidelity_of(step: Step, errors: np.ndarray) -> Mean:
    """The mean of squared errors (samples,) of one step; its interval does not go below 0."""
    found = mean_of(errors, step.sampled)
    return found._replace(low=max(found.low, 0.0))


def lower(step: Step, first: str, second: str, *, scaled: bool = False) -> bool:
    """Whether a map's infidelity is clearly below another's (or that of ``a map of zeros``), each as it is or scaled to its best."""
    errors = {**(step.scaled if scaled else step.errors), ZEROS: step.zero}
    return mean_of(errors[first] - errors[second], step.sampled).high < 0


def reordered(step: Step, given: list[str]) -> list[tuple[str, str]]:
    """Pairs of maps of which the first is clearly lower as they are, and the second with each scaled to its best."""
    pairs = [*combinations(given, 2), *combinations(given[::-1], 2)]
    return [(a, b) for a, b in pairs if lower(step, a, b) and lower(step, b, a, scaled=True)]


def winners_of(step: Step, given: list[str]) -> list[str]:
    """The map of least infidelity, and those that are not clearly above it."""
    best = min(given, key=lambda name: step.errors[name].mean())
    return [best, *(name for name in given if name != best and not lower(step, best, name))]


def likeness(found: np.ndarray, gradient: np.ndarray, cells: int) -> tuple[float, float]:
    """Cosine and rank correlation of two maps (H, W), each averaged over the cells of a grid; NaN for a constant map."""
    first, second = (_cell_means(values.astype(float), cells) for values in (found, gradient))
    norm = float(np.linalg.norm(first) * np.linalg.norm(second))
    constant = min(np.ptp(first), np.ptp(second)) == 0
    cosine = float(first @ second) / norm if norm else float("nan")
    return cosine, float("nan") if constant else float(spearmanr(first, second).statistic)


def _cell_means(values: np.ndarray, cells: int) -> np.ndarray:
    height, width = values.shape
    return values.reshape(cells, height // cells, cells, width // cells).mean(axis=(1, 3)).ravel()


def steps_table(walk: InfidelityWalk) -> pd.DataFrame:
    """One row per perturbation and map.

    Columns:
        ``perturbation``, ``map``; ``logit`` of the intact image, ``first_change`` and ``first_foretold`` of the first perturbation.
        ``infidelity`` with ``infidelity_se``, ``low`` and ``high``, and ``normalised`` (each map scaled to its best) with its own; in
        squared logits, lower is better. ``interval`` says what is covered.
        ``map_of_zeros``: its infidelity. ``mean_change`` of the logit with ``mean_change_se``; ``floor``: its square, which no map can go
        below for noise, whose mean is 0 (NaN for masks).
        ``fitted_to``: perturbations that the optimal map was fitted to, so many of them ``different`` (a noise and its opposite are one);
        ``seen``: how many of the ``perturbations``, which judge, are among them; ``ridge``: a multiple of the mean eigenvalue of E[I I^T].
        ``cosine_with_gradient``, ``spearman_with_gradient``: of the map with that of Gradient, cell by cell.
        ``wins_elsewhere`` of ``other_images``: on how many this map is the lowest of the given ones.
    """
    table = pd.DataFrame([row for step in walk.steps for row in _rows(walk, step)])
    return table.astype(dict.fromkeys(("fitted_to", "different", "seen", "wins_elsewhere"), "Int64"))


def _rows(walk: InfidelityWalk, step: Step) -> Iterator[dict[str, object]]:
    count, optimal = len(step.changes), walk.settings.optimal
    change = mean_of(step.changes, step.sampled)
    interval = f"95 % t over {count} perturbations of one image" if step.sampled else f"none: all {count} perturbations of one image"
    shared = {"map_of_zeros": step.zero.mean(), "mean_change": change.mean, "mean_change_se": change.se}
    shared |= {"floor": change.mean**2 if step.noise else np.nan, "perturbations": count, "interval": interval}
    gradient = walk.maps.get(GRADIENT)
    for name in step.foretold:
        own = name == optimal
        raw, scaled = (infidelity_of(step, errors[name]) for errors in (step.errors, step.scaled))
        found = step.optimal if own else walk.maps[name]
        cosine, rank = (np.nan, np.nan) if gradient is None else likeness(found, gradient, walk.settings.optimal_cells)
        yield {
            "perturbation": step.name,
            "map": name,
            "logit": step.logit,
            "first_change": step.changes[0],
            "first_foretold": step.foretold[name][0],
            "infidelity": raw.mean,
            "infidelity_se": raw.se,
            "low": raw.low,
            "high": raw.high,
            "normalised": scaled.mean,
            "normalised_se": scaled.se,
            "normalised_low": scaled.low,
            "normalised_high": scaled.high,
            **shared,
            "fitted_to": step.fitted if own else pd.NA,
            "different": step.different if own else pd.NA,
            "ridge": step.ridge if own else np.nan,
            "seen": step.seen if own else pd.NA,
            "cosine_with_gradient": cosine,
            "spearman_with_gradient": rank,
            "wins_elsewhere": pd.NA if own or not walk.winners[step.name] else walk.winners[step.name].count(name),
            "other_images": len(walk.winners[step.name]),
        }


def findings(walk: InfidelityWalk) -> list[str]:
    """What the steps say: the image, a few sentences per perturbation, and what all of them come to; every number is computed."""
    settings = walk.settings
    said = [
        f"One image: {walk.image_id} of {settings.dataset}, labelled {walk.label}; {settings.model} gives it a logit of "
        f"{walk.steps[0].logit:.2f}. Brackets hold 95 % t intervals over the perturbations, not over images."
    ]
    return [*said, *(_told(walk, step) for step in walk.steps), _in_all(walk), *_elsewhere(walk)]


def _told(walk: InfidelityWalk, step: Step) -> str:
    given = list(walk.maps)
    best, *ties = winners_of(step, given)
    worse = [name for name in given if lower(step, ZEROS, name)]
    first = ", ".join(f"{name} foretells {_movement(step.foretold[name][0])}" for name in step.products)
    sentences = [
        f"{step.name}: the {'first perturbation' if step.sampled else 'patch that matters most'} brings {_movement(step.changes[0])} of "
        f"the logit; {first}.",
        f"Of the given maps {best} has the lowest infidelity, {infidelity_of(step, step.errors[best])}"
        + (f", not clearly below {', '.join(ties)}." if ties else "."),
        f"A map of zeros has {infidelity_of(step, step.zero)}" + (f", clearly less than {', '.join(worse)}." if worse else "."),
        *_floor(step),
        _optimal(walk, step),
    ]
    return " ".join(sentences)


def _movement(change: float) -> str:
    return f"a {'fall' if change >= 0 else 'rise'} of {abs(change):.2g}"


def _floor(step: Step) -> list[str]:
    """Why no map helps against noise that always lowers the logit, where that is most of what there is to foretell."""
    change, zero = mean_of(step.changes), float(step.zero.mean())
    if not step.noise or change.mean**2 < LARGE * zero:
        return []
    return [
        f"The logit falls by {change} on average.",
        f"Noise has mean 0, and so has what a map foretells of it: the squared mean, {change.mean**2:.3g}, is the floor of every map, and "
        f"{change.mean**2 / zero:.0%} of what a map of zeros has.",
    ]


def _optimal(walk: InfidelityWalk, step: Step) -> str:
    name, count = walk.settings.optimal, len(step.changes)
    value = infidelity_of(step, step.errors[name])
    if step.by_construction:
        return (
            f"The {name} map is fitted to {step.different:,} different perturbations, no more than its {step.cells:,} unknowns, and "
            f"{step.seen} of the {count} that judge it are among them: its {value.mean:.1g} is so by construction."
        )
    others = f"{step.fitted:,}, {step.seen} of the {count} that judge it among them" if step.seen else f"{step.fitted:,} others"
    ridge = f" with a ridge of {step.ridge:.1g}" if step.ridge else ""
    text = f"The {name} map, fitted to {others}{ridge}, has {value}"
    if GRADIENT not in walk.maps:
        return f"{text}."
    cosine, rank = likeness(step.optimal, walk.maps[GRADIENT], walk.settings.optimal_cells)
    return f"{text}. Its cosine with {GRADIENT} is {cosine:.3f}, the rank correlation {rank:.3f}."


def _in_all(walk: InfidelityWalk) -> str:
    given, steps = list(walk.maps), walk.steps
    alone = [found[0] for step in steps if len(found := winners_of(step, given)) == 1]
    silent = sum(all(lower(step, ZEROS, name) for name in given) for step in steps)
    turned = {step.name: len(found) for step in steps if (found := reordered(step, given))}
    comparisons = len(steps) * len(given) * (len(given) - 1) // 2
    wins = ", ".join(f"{name} {alone.count(name)}" for name in dict.fromkeys(alone))
    where = ", ".join(f"{name}: {number}" for name, number in turned.items())
    return (
        f"{len(alone)} of {len(steps)} perturbations have a clear winner among the given maps{f' ({wins})' if wins else ''}. "
        f"A map of zeros is clearly below every given map for {silent} of {len(steps)}. "
        f"Scaling each map to its best clearly reverses {sum(turned.values())} of {comparisons} comparisons of two maps"
        f"{f' ({where})' if where else ''}."
    )


def _elsewhere(walk: InfidelityWalk) -> list[str]:
    """On how many other images the same map has the lowest infidelity, with the exact binomial interval."""
    count = walk.settings.others
    if not count:
        return ["No other image was looked at."]
    told = []
    for step in walk.steps:
        best = winners_of(step, list(walk.maps))[0]
        same = walk.winners[step.name].count(best)
        low, high = binomtest(same, count).proportion_ci(CONFIDENCE)
        told.append(f"{step.name}: {best} on {same} [{low:.0%}, {high:.0%}]")
    return [f"Of {count} other images, the same map is lowest (exact binomial 95 % interval over images) for {'; '.join(told)}."]
