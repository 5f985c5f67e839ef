"""From the accuracies after retraining (:func:`idsds.studies.roar.study.roar`) to curves, areas between them, and what follows from either.

A score says something about pixels only as far as the places of the replaced pixels do not tell the class by themselves. Where they do,
they hold up the accuracy of a retrained net: ROAR's area is then too low, KAR's too high. A verdict in that direction is *confounded*: it
may be due to the places alone. One in the other direction stands in spite of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats

from idsds.protocols.roar import MASK, SCORES, mask_share
from idsds.statistics.intervals import covers_seeds, seed_interval
from idsds.statistics.paired import holm

NAMES = {"remove": "ROAR", "keep": "KAR"}
#: The methods of which Hooker et al. claim to be no better than random ranks, and worse than an edge filter.
CLAIMED = ("Gradient", "IG", "Guided Backprop")
CLAIMS = {"Random": "no better than Random", "Edges": "worse than Edges"}
UNTESTED = "not tested"


def retraining_curves(records: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Mean accuracy over training seeds at each share, of images without some pixels and of masks alone.

    Args:
        records: from :func:`idsds.studies.roar.study.roar`.
        confidence: of the intervals, each on its own.

    Returns:
        One row per model, method, kind (``mask``: masks alone) and share: ``family``, ``mean``, ``low`` and ``high`` (over seeds, cut at 0
        and 1, beyond which there is no accuracy), ``agreement`` with the explained net, its ``agreement_low`` and ``agreement_high``
        (likewise), ``explained_accuracy`` (of that net), ``chance`` (share of the most frequent class), ``seeds``, ``count`` of test
        images, ``p`` and ``p_holm`` (of masks alone, else NaN: see :func:`mask_finding`), and ``interval``, what the intervals cover.
    """
    rows = []
    for (model, method, kind, share), part in records.groupby(["model", "method", "kind", "share"], sort=False):
        first, seeds = part.iloc[0], len(part)
        row = {"model": model, "method": method, "family": first["family"], "kind": kind, "share": share}
        row |= dict(zip(("mean", "low", "high"), _in_range(part["accuracy"], confidence), strict=True))
        ends = ("agreement", "agreement_low", "agreement_high")
        row |= dict(zip(ends, _in_range(part["agreement"], confidence), strict=True))
        row |= {"explained_accuracy": first["explained_accuracy"], "chance": first["chance"], "seeds": seeds, "count": int(first["count"])}
        row["p"] = _above_chance(row["mean"], row["count"], row["chance"]) if kind == MASK else np.nan
        rows.append({**row, "interval": covers_seeds(seeds, confidence) + (", cut at 0 and 1" if seeds > 1 else "")})
    table = pd.DataFrame(rows)
    table.insert(table.columns.get_loc("p") + 1, "p_holm", holm(table["p"].to_numpy()))
    return table


def retraining_areas(records: pd.DataFrame, control: str | Sequence[str] = "Random", confidence: float = 0.95) -> pd.DataFrame:
    """The area between the control's curve and each method's, in points of accuracy averaged over the shares; higher is better.

    The two curves of one training seed are compared with each other, as they share initial weights and the order of the images; the
    interval is over the seeds' areas. See :func:`idsds.protocols.roar.roar_score`. Masks alone have no score.

    Args:
        records: from :func:`idsds.studies.roar.study.roar`, at least two shares.
        control: the method whose curve the others are compared with, or several; each pair is compared once.
        confidence: of the intervals, each on its own; 1 less it is the level of the verdicts.

    Returns:
        One row per model, control, kind and method, best first: ``area``, ``low``, ``high``, ``p`` (t test over seeds), ``p_holm``
        (corrected for all rows of the table), ``verdict`` by it (``better``, ``worse`` or ``undecided``), ``leaking`` (those of the two
        whose masks alone tell the class, joined by "and", empty for neither, or ``not tested``), ``confounded`` (whether leakage alone
        may have given the verdict; missing where it was not tested), ``seeds``, ``positive`` (seeds whose area is above 0), ``undefined``
        and ``constant`` (maps that order nothing, of ``explained``), ``interval``.

    Raises:
        ValueError: where the records lack a control.
    """
    controls = [control] if isinstance(control, str) else list(control)
    for name in controls:
        if name not in set(records["method"]):
            raise ValueError(f"the records hold no {name!r} to compare with, only {', '.join(dict.fromkeys(records['method']))}")
    scored, rows = records[records["kind"] != MASK], []
    for (model, kind), part in scored.groupby(["model", "kind"], sort=False):
        curves = part.pivot(index=["method", "seed"], columns="share", values="accuracy").sort_index(axis=1)
        shares = torch.tensor(curves.columns.to_numpy(float))
        of = {method: torch.tensor(curves.loc[method].to_numpy(float)) for method in dict.fromkeys(part["method"])}  # (seeds, S) each
        for number, name in enumerate(controls):
            for method in [method for method in of if method not in controls[: number + 1]]:
                areas = SCORES[kind](of[method], of[name], shares).numpy()
                facts = part[part["method"] == method].iloc[0]
                row = {"model": model, "control": name, "kind": kind, "method": method, "family": facts["family"]}
                row |= dict(zip(("area", "low", "high"), seed_interval(areas, confidence), strict=True))
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


def retraining_findings(areas: pd.DataFrame) -> list[str]:
    """What the areas say, with their numbers: a sentence per model, control and kind, and one on the paper's claim per model and kind."""
    sentences = []
    for (model, control, kind), part in areas.groupby(["model", "control", "kind"], sort=False):
        ordered = ", ".join(f"{row.method} {_ends(row.area, row.low, row.high, '+')}" for row in part.itertuples())
        covers = part["interval"].iloc[0] + ("" if part["low"].isna().all() else ", each on its own")
        sentence = f"{NAMES[kind]} on {model}, area against {control} [{covers}]: {ordered}"
        if part["p"].isna().all():
            sentences.append(f"{sentence}; no verdict.")
            continue
        tests = f"t tests with Holm's correction for {len(areas)} comparison{'s' * (len(areas) > 1)}"
        sentences.append(f"{sentence}; by {tests} {_told(part)}{_caveat(part)}.")
    for (model, kind), part in areas.groupby(["model", "kind"], sort=False):
        claims = [found for control in CLAIMS if (found := _claim(part[part["control"] == control], control))]
        if claims:
            sentences.append(f"The claim of Hooker et al., by {NAMES[kind]} on {model}: {'; '.join(claims)}{_caveat(part)}.")
    return sentences


def mask_finding(records: pd.DataFrame, control: str = "Random", confidence: float = 0.95) -> str:
    """Whether the places of the replaced pixels tell the class by themselves, and how far retrained nets repeat the explained one.

    Nets that see nothing but masks know the class better than ``chance``, the share of the most frequent class among the test images, only
    if the masks tell it. The test is exact, binomial, one-sided, over test images, corrected by Holm for all masks of the records, those of
    the control among them. Of several training seeds the mean accuracy is taken for that of one net, whose correct answers vary over images
    no less than the mean's. A net may fail to learn what a mask tells: no finding is no proof of absence.

    Args:
        records: from :func:`idsds.studies.roar.study.roar`.
        control: whose masks tell nothing.
        confidence: of the intervals, each on its own; 1 less it is the level of the tests.
    """
    curves = retraining_curves(records, confidence)
    tests = int(curves["p"].notna().sum())
    told = [
        sentence
        for _, part in curves.groupby("model", sort=False)
        for sentence in (_repeats(part, confidence), _leakage(part, control, confidence, tests))
    ]
    return " ".join(told)


def _repeats(curves: pd.DataFrame, confidence: float) -> str:
    """How far the retrained nets of one model repeat the explained net."""
    first, scored = curves.iloc[0], curves[curves["kind"] != MASK]
    right = _with_wilson(first["explained_accuracy"], first["count"], confidence)
    each = [
        f"on untouched images {_with_wilson(row.agreement, row.images, confidence)}" for row in _rows(scored[scored["share"] == 0].head(1))
    ]
    most = scored[scored["share"] == scored.loc[scored["share"] < 1, "share"].max()]
    for (kind, share), part in most.groupby(["kind", "share"], sort=False):
        names = ", ".join(f"{row.method} {_with_wilson(row.agreement, row.images, confidence)}" for row in _rows(part))
        each.append(f"under {NAMES[kind]} at {share:.0%} {names}")
    return (
        f"The explained net, {first['model']}, is right on {right} of the test images; retrained nets predict the same as it does "
        f"[{_over_images(first, confidence)}]: {'; '.join(each)}."
    )


def _leakage(curves: pd.DataFrame, control: str, confidence: float, tests: int) -> str:
    """What nets learn from masks alone, for one model; ``tests`` were corrected for."""
    masks, first = curves[curves["kind"] == MASK], curves.iloc[0]
    if masks.empty:
        return f"Whether the places of the replaced pixels tell the class of {first['model']}'s images was {UNTESTED}."
    best = masks.loc[masks.groupby("method", sort=False)["mean"].idxmax()]
    each = [
        f"{row.method} {_with_wilson(row.accuracy, row.images, confidence)} at {row.share:.0%} (the same as the explained net: "
        f"{_with_wilson(row.agreement, row.images, confidence)})"
        for row in _rows(best)
    ]
    leaking = masks[masks["p_holm"] <= 1 - confidence].groupby("method", sort=False)["share"].apply(sorted)
    telling = [f"{method} ({', '.join(f'{share:.0%}' for share in shares)})" for method, shares in leaking.items()]
    silent = [method for method in dict.fromkeys(masks["method"]) if method not in leaking.index]
    warning = f" {control}'s masks tell it as well: something is wrong." if control in leaking.index else ""
    return (
        f"Nets that see nothing but which pixels are replaced are right, at the share that tells most, on "
        f"[{_over_images(first, confidence)}; chance is at most {first['chance']:.3f}]: {', '.join(each)}. "
        f"By exact binomial tests with Holm's correction for {tests} masks, the places of the replaced pixels tell the class for: "
        f"{_listed(telling)}; this is not found for: {_listed(silent)}.{warning}"
    )


def _in_range(values: pd.Series, confidence: float) -> tuple[float, float, float]:
    """The mean of shares over seeds, and the part of its interval that lies in [0, 1]; NaN stay."""
    mean, low, high = seed_interval(values.to_numpy(), confidence)
    return mean, float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1))


def _wilson(share: float, count: int, confidence: float) -> tuple[float, float]:
    """Wilson's interval for a share of ``count`` images, which need not be a whole number of them (a mean over seeds)."""
    z = stats.norm.ppf((1 + confidence) / 2)
    middle, half = share + z**2 / (2 * count), z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return (middle - half) / (1 + z**2 / count), (middle + half) / (1 + z**2 / count)


def _above_chance(share: float, count: int, chance: float) -> float:
    """One-sided exact binomial p; part of an image counts for nothing."""
    return float(stats.binomtest(math.floor(share * count + 1e-9), count, chance, alternative="greater").pvalue)


def _differs_from_0(areas: np.ndarray) -> float:
    """Two-sided p of the t test over seeds; NaN for one seed, and where a few agree but for rounding, which is no certainty."""
    if len(areas) < 2 or np.ptp(areas) < 1e-12:
        return math.nan
    return float(stats.ttest_1samp(areas, 0).pvalue)


def _leaks(curves: pd.DataFrame, scored: pd.DataFrame, alpha: float) -> dict[tuple[str, str, str], bool]:
    """By model, kind and method whether a mask of the kind's shares tells the class; empty where no mask was tested."""
    masks = curves[curves["kind"] == MASK]
    if masks.empty:
        return {}
    telling = {(row.model, row.method, round(row.share, 9)) for row in masks.itertuples() if row.p_holm <= alpha}
    found: dict[tuple[str, str, str], bool] = {}
    for model, kind, method, share in scored[["model", "kind", "method", "share"]].drop_duplicates().itertuples(index=False):
        key = (model, kind, method)
        found[key] = found.get(key, False) or (model, method, round(mask_share(share, kind), 9)) in telling
    return found


def _verdicts(areas: pd.DataFrame, leaks: dict[tuple[str, str, str], bool], alpha: float) -> pd.DataFrame:
    """The columns of :func:`retraining_areas` that are drawn from the others."""
    corrected = holm(areas["p"].to_numpy())
    rows = []
    for row, p in zip(areas.itertuples(), corrected, strict=True):
        verdict = "undecided" if not p <= alpha else "better" if row.area > 0 else "worse"
        found: dict[str, Any] = {"p_holm": p, "verdict": verdict, "leaking": UNTESTED, "confounded": pd.NA}
        if leaks:
            method, control = (leaks[row.model, row.kind, name] for name in (row.method, row.control))
            # Leakage holds up the accuracy: that of the method spoils its score under ROAR and lifts it under KAR, that of the control the
            # other way round.
            lifted = {"better": control, "worse": method} if row.kind == "remove" else {"better": method, "worse": control}
            names = [name for name, leaks_it in ((row.method, method), (row.control, control)) if leaks_it]
            found |= {"leaking": " and ".join(names), "confounded": lifted.get(verdict, False)}
        rows.append(found)
    return pd.DataFrame(rows, index=areas.index).astype({"confounded": "boolean"})


def _claim(part: pd.DataFrame, control: str) -> str:
    """Which of the claimed methods bear one part of the paper's claim out, on one model and kind; empty where none is there."""
    part = part[part["method"].isin(CLAIMED)]
    if part.empty:
        return ""
    confounded = part["confounded"].fillna(False).astype(bool)
    groups = {
        "shows for": part["verdict"].eq("worse") & ~confounded,
        "is reversed for": part["verdict"].eq("better") & ~confounded,
        "cannot be told from leakage for": confounded,
        "is undecided for": part["verdict"].eq("undecided"),
    }
    told = [f"{verdict} {', '.join(part.loc[chosen, 'method'])}" for verdict, chosen in groups.items() if chosen.any()]
    return f"'{CLAIMS[control]}' {', '.join(told)}"


def _told(part: pd.DataFrame) -> str:
    """The verdicts on one model, kind and control, and what leakage does to them."""
    decided, confounded = part["verdict"] != "undecided", part["confounded"].fillna(False).astype(bool)
    leaking = decided & ~confounded & ~part["leaking"].isin(["", UNTESTED])
    groups = {
        "{}": decided & ~confounded & ~leaking,
        "{} in spite of leakage": leaking,
        "{}, but leakage alone may do that, and nothing follows about pixels": confounded,
    }
    told = []
    for verdict in ("better", "worse"):
        for words, chosen in groups.items():
            if (found := chosen & part["verdict"].eq(verdict)).any():
                told.append(f"{words.format(verdict)}: {', '.join(part.loc[found, 'method'])}")
    if not decided.all():
        told.append(f"undecided: {', '.join(part.loc[~decided, 'method'])}")
    return "; ".join(told)


def _caveat(part: pd.DataFrame) -> str:
    return " (whether the places of the replaced pixels do this was not tested)" if part["leaking"].eq(UNTESTED).all() else ""


def _rows(curves: pd.DataFrame) -> Iterable[Any]:
    """The rows as named tuples, whose ``count`` is a method: the columns ``mean`` and ``count`` are called ``accuracy`` and ``images``."""
    return curves.rename(columns={"mean": "accuracy", "count": "images"}).itertuples()


def _with_wilson(share: float, images: int, confidence: float) -> str:
    return _ends(share, *_wilson(share, images, confidence))


def _over_images(row: pd.Series, confidence: float) -> str:
    held = "" if row["seeds"] == 1 else f", {row['seeds']} training seeds held fixed"
    return f"{100 * confidence:g} % Wilson over {row['count']} test images{held}"


def _ends(value: float, low: float, high: float, sign: str = "") -> str:
    """A number with its interval, if it has one."""
    ends = "" if math.isnan(low) else f" [{low:{sign}.3f}, {high:{sign}.3f}]"
    return f"{value:{sign}.3f}{ends}"


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
