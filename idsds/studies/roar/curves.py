"""From the accuracies after retraining (:meth:`idsds.studies.roar.Roar.retrain`) to curves, areas and verdicts.

A score says something about pixels only if the positions of the replaced pixels do not reveal the class by themselves. Where they do,
they keep up the accuracy of a retrained net: ROAR's area is then too low, KAR's too high. A verdict in that direction is *confounded*:
it may be due to the positions alone. A verdict in the other direction holds in spite of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from idsds.protocols.roar import MASK, SCORES, mask_share
from idsds.statistics.intervals import covers_seeds, seed_interval, wilson
from idsds.statistics.paired import holm
from idsds.statistics.verdicts import CONTRADICTED, NOT_SUPPORTED, SUPPORTED
from idsds.studies.base import need_columns
from idsds.studies.result import listed

NAMES = {"remove": "ROAR", "keep": "KAR"}
#: The methods that, as Hooker et al. claim, are no better than random ranks and worse than an edge filter.
CLAIMED = ("Gradient", "IG", "Guided Backprop")
CLAIMS = {"Random": "no better than Random", "Edges": "worse than Edges"}
UNTESTED = "not tested"
ALPHA = 0.05


def retraining_curves(records: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Return the mean accuracy over training seeds at each fraction, for images without some pixels and for masks alone.

    Args:
        confidence: confidence of each interval, not corrected for multiple comparisons.

    Returns:
        One row per model, method, kind (``mask``: masks alone) and share: ``family``, ``mean``, ``low`` and ``high`` (over seeds,
        clipped to [0, 1]), ``top5`` (accuracy with five guesses), ``agreement`` with the explained net, its ``agreement_low`` and
        ``agreement_high`` (likewise), ``explained_accuracy`` and ``explained_top5`` (of that net), ``chance`` (fraction of the most
        frequent class), ``seeds``, ``count`` of test images;
        ``images_low`` and ``images_high``, ``agreement_images_low`` and ``agreement_images_high`` (over images, Wilson, seeds held
        fixed); ``p`` and ``p_holm`` of masks alone, else NaN; ``interval``, what the intervals over seeds cover.

    Nets that see only masks beat ``chance`` only if the masks reveal the class. The test is exact, binomial, one-sided,
    over test images, Holm-corrected for all masks of the records, including the control's. Of several training seeds the mean
    accuracy is taken for that of one net, whose correct answers vary over images no less than the mean's. A net may fail to learn what a
    mask reveals: a null result does not prove absence.
    """
    need_columns(records, "top5", "explained_top5")
    rows = []
    for (model, method, kind, share), part in records.groupby(["model", "method", "kind", "share"], sort=False):
        first, seeds = part.iloc[0], len(part)
        row = {"model": model, "method": method, "family": first["family"], "kind": kind, "share": share}
        row |= _in_range(part["accuracy"], ("mean", "low", "high"), confidence)
        row["top5"] = part["top5"].mean()
        row |= _in_range(part["agreement"], ("agreement", "agreement_low", "agreement_high"), confidence)
        row |= {name: first[name] for name in ("explained_accuracy", "explained_top5", "chance")}
        row |= {"seeds": seeds, "count": int(first["count"])}
        for name, right in (("", row["mean"]), ("agreement_", row["agreement"])):
            low, high = wilson(right * row["count"], row["count"], confidence)
            row |= {f"{name}images_low": low, f"{name}images_high": high}
        row["p"] = _above_chance(row["mean"], row["count"], row["chance"]) if kind == MASK else np.nan
        rows.append({**row, "interval": covers_seeds(seeds, confidence) + (", cut at 0 and 1" if seeds > 1 else "")})
    table = pd.DataFrame(rows)
    table.insert(table.columns.get_loc("p") + 1, "p_holm", holm(table["p"].to_numpy()))
    return table


def retraining_areas(records: pd.DataFrame, control: str | Sequence[str] = "Random", confidence: float = 0.95) -> pd.DataFrame:
    """Return the area between the control's curve and each method's, in accuracy averaged over the fractions; higher is better.

    The two curves of one training seed are compared with each other, as they share initial weights and the order of the images; the
    interval is over the seeds' areas. See :func:`idsds.protocols.roar.roar_score`. Masks alone have no score.

    Args:
        records: from :meth:`idsds.studies.roar.Roar.retrain`, at least two fractions.
        control: the method whose curve the others are compared with, or several; each pair is compared once.
        confidence: of the intervals, each on its own; 1 - ``confidence`` is the level of the verdicts.

    Returns:
        One row per model, control, kind and method, best first: ``area``, ``low``, ``high``, ``area_top5`` (the same of accuracy with
        five guesses), ``p`` (t test over seeds), ``p_holm``
        (corrected for all rows of the table), ``verdict`` by it on whether the method's area exceeds 0, ``leaking`` (which of the
        two have masks that alone reveal the class, joined by "and", empty for neither, or ``not tested``), ``confounded`` (whether
        leakage alone may explain the verdict; missing if it was not tested), ``seeds``, ``positive`` (seeds whose area is above 0),
        ``undefined`` and ``constant`` (maps without an order, out of ``explained``), ``interval``.

    Raises:
        ValueError: if the records lack a control, or ``top5``, as those of an earlier checkout do.
    """
    need_columns(records, "top5")
    controls = [control] if isinstance(control, str) else list(control)
    for name in controls:
        if name not in set(records["method"]):
            raise ValueError(f"the records hold no {name!r} to compare with, only {', '.join(dict.fromkeys(records['method']))}")
    scored, rows = records[records["kind"] != MASK], []
    for (model, kind), part in scored.groupby(["model", "kind"], sort=False):
        both = [part.pivot(index=["method", "seed"], columns="share", values=name).sort_index(axis=1) for name in ("accuracy", "top5")]
        shares = torch.tensor(both[0].columns.to_numpy(float))
        of, near = (  # (seeds, S) each
            {method: torch.tensor(curves.loc[method].to_numpy(float)) for method in dict.fromkeys(part["method"])} for curves in both
        )
        for number, name in enumerate(controls):
            for method in [method for method in of if method not in controls[: number + 1]]:
                areas = SCORES[kind](of[method], of[name], shares).numpy()
                facts = part[part["method"] == method].iloc[0]
                row = {"model": model, "control": name, "kind": kind, "method": method, "family": facts["family"]}
                row |= dict(zip(("area", "low", "high"), seed_interval(areas, confidence), strict=True))
                row["area_top5"] = float(SCORES[kind](near[method], near[name], shares).mean())
                row |= {"p": _differs_from_0(areas), "seeds": len(areas), "positive": int((areas > 0).sum())}
                row |= {column: int(facts[column]) for column in ("undefined", "constant", "explained")}
                rows.append({**row, "interval": covers_seeds(len(areas), confidence)})
    table = pd.DataFrame(rows)
    found = _verdicts(table, _leaks(retraining_curves(records, confidence), scored, 1 - confidence), 1 - confidence)
    for place, column in enumerate(found, start=table.columns.get_loc("p") + 1):
        table.insert(place, column, found[column])
    order = table.assign(control=table["control"].map(controls.index))
    order = order.sort_values(["model", "control", "kind", "area"], ascending=[True, True, False, False], kind="stable")
    return table.loc[order.index].reset_index(drop=True)


def claims_of(areas: pd.DataFrame) -> pd.DataFrame:
    """Judge the claim of Hooker et al. by the table of :func:`retraining_areas`.

    Returns:
        One row per model, kind, part of the claim and method of :data:`CLAIMED`: ``area``, ``low``, ``high``, ``area_top5``, ``p_holm``,
        ``confounded`` and the ``verdict`` on the claim, which is left open if leakage alone may explain the difference.
    """
    part = areas[areas["method"].isin(CLAIMED) & areas["control"].isin(CLAIMS)]
    below, above = (~part["confounded"].fillna(False).astype(bool) & (part["verdict"] == verdict) for verdict in (CONTRADICTED, SUPPORTED))
    found = np.select([below, above], [SUPPORTED, CONTRADICTED], NOT_SUPPORTED)
    columns = ["model", "kind", "claim", "method", "area", "low", "high", "area_top5", "p_holm", "confounded", "verdict"]
    return part.assign(claim=part["control"].map(CLAIMS), kind=part["kind"].map(NAMES), verdict=found)[columns].reset_index(drop=True)


def sentences(areas: pd.DataFrame, curves: pd.DataFrame) -> list[str]:
    """State the areas against the first control by kind, and whether the positions of the replaced pixels reveal the class."""
    told = []
    for kind, part in areas[areas["control"] == areas["control"].iloc[0]].groupby("kind", sort=False):
        values = (f"{row.method} on {row.model} {row.area:+.3f} [{row.low:+.3f}, {row.high:+.3f}]" for row in part.itertuples())
        told.append(f"{NAMES[str(kind)]}, area against {part['control'].iloc[0]}: {listed(values)}.")
    masks = curves[curves["kind"] == MASK]
    telling = masks[masks["p_holm"] <= ALPHA]
    methods = listed(dict.fromkeys(telling["method"])) or "none"
    leaks = (
        f"The positions of the replaced pixels alone reveal the class for {len(telling)} of {len(masks)} masks ({methods}; Holm-corrected)."
    )
    return [*told, leaks if len(masks) else f"Whether the positions of the replaced pixels reveal the class was {UNTESTED}."]


def _in_range(values: pd.Series, names: Sequence[str], confidence: float) -> dict[str, float]:
    """Return, by these names, the mean of fractions over seeds and its interval clipped to [0, 1]; NaN is kept."""
    mean, *ends = seed_interval(values.to_numpy(), confidence)
    return dict(zip(names, (mean, *np.clip(ends, 0, 1).tolist()), strict=True))


def _above_chance(share: float, count: int, chance: float) -> float:
    """Return the one-sided exact binomial p; fractions of an image are dropped."""
    return float(stats.binomtest(math.floor(share * count + 1e-9), count, chance, alternative="greater").pvalue)


def _differs_from_0(areas: np.ndarray) -> float:
    """Return the two-sided p of the t test over seeds; NaN for one seed, and where a few agree up to rounding, which is not certainty."""
    if len(areas) < 2 or np.ptp(areas) < 1e-12:
        return math.nan
    return float(stats.ttest_1samp(areas, 0).pvalue)


def _leaks(curves: pd.DataFrame, scored: pd.DataFrame, alpha: float) -> dict[tuple[str, str, str], bool]:
    """Return, by model, kind and method, whether a mask at one of its fractions reveals the class; empty where no mask was tested."""
    masks = curves[curves["kind"] == MASK]
    if masks.empty:
        return {}
    telling = {(row.model, row.method, round(row.share, 9)) for row in masks.itertuples() if row.p_holm <= alpha}
    shares = scored[["model", "kind", "method", "share"]].drop_duplicates()
    told = [(row.model, row.method, round(mask_share(row.share, row.kind), 9)) in telling for row in shares.itertuples()]
    return shares.assign(told=told).groupby(["model", "kind", "method"])["told"].any().to_dict()


def _verdicts(areas: pd.DataFrame, leaks: dict[tuple[str, str, str], bool], alpha: float) -> pd.DataFrame:
    """Return the columns of :func:`retraining_areas` that follow from the others."""
    corrected = holm(areas["p"].to_numpy())
    rows = []
    for row, p in zip(areas.itertuples(), corrected, strict=True):
        verdict = NOT_SUPPORTED if not p <= alpha else SUPPORTED if row.area > 0 else CONTRADICTED
        found: dict[str, Any] = {"p_holm": p, "verdict": verdict, "leaking": UNTESTED, "confounded": pd.NA}
        if leaks:
            method, control = (leaks[row.model, row.kind, name] for name in (row.method, row.control))
            # Leakage keeps accuracy high: the method's lowers its score under ROAR and raises it under KAR; the control's does the
            # opposite.
            lifted = {SUPPORTED: control, CONTRADICTED: method} if row.kind == "remove" else {SUPPORTED: method, CONTRADICTED: control}
            names = [name for name, leaks_it in ((row.method, method), (row.control, control)) if leaks_it]
            found |= {"leaking": " and ".join(names), "confounded": lifted.get(verdict, False)}
        rows.append(found)
    return pd.DataFrame(rows, index=areas.index).astype({"confounded": "boolean"})
