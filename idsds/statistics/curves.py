"""From the accuracies after retraining (:func:`idsds.retraining.roar`) to curves, and to the areas between them and Random's."""

from __future__ import annotations

import pandas as pd
import torch

from idsds.protocols.roar import SCORES
from idsds.statistics.seeds import covers_seeds, seed_interval


def retraining_curves(records: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Mean accuracy over training seeds at each share.

    Args:
        records: from :func:`idsds.retraining.roar`.
        confidence: of the intervals.

    Returns:
        One row per model, method, kind and share: ``family``, ``mean``, ``low`` and ``high`` (over seeds), ``seeds``, ``count`` of test
        images, and ``interval``, what it covers.
    """
    rows = []
    for (model, method, kind, share), part in records.groupby(["model", "method", "kind", "share"], sort=False):
        mean, low, high = seed_interval(part["accuracy"], confidence)
        facts = {"model": model, "method": method, "family": part["family"].iloc[0], "kind": kind, "share": share}
        facts |= {"mean": mean, "low": low, "high": high, "seeds": len(part), "count": int(part["count"].iloc[0])}
        rows.append({**facts, "interval": covers_seeds(len(part), confidence)})
    return pd.DataFrame(rows)


def retraining_areas(records: pd.DataFrame, control: str = "Random", confidence: float = 0.95) -> pd.DataFrame:
    """The area between the control's curve and each method's, in points of accuracy averaged over the shares; higher is better.

    The two curves of one training seed are compared with each other, as they share initial weights and the order of the images; the
    interval is over the seeds' areas. See :func:`idsds.protocols.roar.roar_score`.

    Args:
        records: from :func:`idsds.retraining.roar`, at least two shares.
        control: the method whose curve the others are compared with.
        confidence: of the intervals, each on its own.

    Returns:
        One row per model, kind and method, best first: ``area``, ``low``, ``high``, ``seeds``, ``positive`` (seeds whose area is above
        0), ``undefined`` and ``constant`` (maps that order nothing, of ``explained``), ``interval``.

    Raises:
        ValueError: where the records lack the control.
    """
    if control not in set(records["method"]):
        raise ValueError(f"the records hold no {control!r} to compare with, only {', '.join(dict.fromkeys(records['method']))}")
    rows = []
    for (model, kind), part in records.groupby(["model", "kind"], sort=False):
        curves = part.pivot(index=["method", "seed"], columns="share", values="accuracy").sort_index(axis=1)
        shares = torch.tensor(curves.columns.to_numpy(float))
        of_control = torch.tensor(curves.loc[control].to_numpy(float))  # (seeds, S)
        for method in dict.fromkeys(part["method"]):
            if method == control:
                continue
            areas = SCORES[kind](torch.tensor(curves.loc[method].to_numpy(float)), of_control, shares)
            area, low, high = seed_interval(areas.numpy(), confidence)
            facts = part[part["method"] == method].iloc[0]
            row = {"model": model, "kind": kind, "method": method, "family": facts["family"], "area": area, "low": low, "high": high}
            row |= {"seeds": len(areas), "positive": int((areas > 0).sum())}
            row |= {name: int(facts[name]) for name in ("undefined", "constant", "explained")}
            rows.append({**row, "interval": covers_seeds(len(areas), confidence)})
    return pd.DataFrame(rows).sort_values(["model", "kind", "area"], ascending=[True, False, False], ignore_index=True)


def retraining_findings(areas: pd.DataFrame, control: str = "Random") -> list[str]:
    """What the areas say, one sentence per model and kind, with their numbers; see :func:`retraining_areas`."""
    names = {"remove": "ROAR", "keep": "KAR"}
    sentences = []
    for (model, kind), part in areas.groupby(["model", "kind"], sort=False):
        ordered = ", ".join(f"{row.method} {row.area:+.3f} [{row.low:+.3f}, {row.high:+.3f}]" for row in part.itertuples())
        better, worse = part[part["low"] > 0]["method"].tolist(), part[part["high"] < 0]["method"].tolist()
        verdict = f"better than {control}: {', '.join(better) or 'none'}; worse: {', '.join(worse) or 'none'}"
        sentences.append(f"{names[kind]} on {model}, area against {control} [{part['interval'].iloc[0]}]: {ordered}; {verdict}.")
    return sentences


def mask_finding(records: pd.DataFrame, control: str = "Random", confidence: float = 0.95) -> str:
    """Whether the replaced pixels' places tell the class: methods whose removals leave more than no removal at all does.

    More means that the interval over seeds of the difference between the two accuracies of one seed, which share initial weights and the
    order of the images, lies above 0. One seed has no interval, and supports no claim.

    Args:
        records: from :func:`idsds.retraining.roar`, with the share 0.
        control: what is not counted among the methods.
        confidence: of the intervals, each on its own.

    Raises:
        ValueError: where the records lack the share 0.
    """
    removed = records[(records["kind"] == "remove") & (records["method"] != control)]
    intact = removed[removed["share"] == 0]
    if intact.empty:
        raise ValueError("the records lack the share 0, the accuracy on untouched images")
    accuracy = ", ".join(f"{mean:.3f} on {model}" for model, mean in intact.groupby("model", sort=False)["accuracy"].mean().items())
    seeds = removed["seed"].nunique()
    if seeds == 1:
        return f"Untouched images give an accuracy of {accuracy}; one training seed does not tell whether removals leave a higher one."
    keys = ["model", "method", "seed"]
    pairs = removed[removed["share"] > 0].merge(intact[[*keys, "accuracy"]], on=keys, suffixes=("", "_intact"))
    above = []
    for (_, method, share), part in pairs.groupby(["model", "method", "share"], sort=False):
        gain, low, high = seed_interval(part["accuracy"] - part["accuracy_intact"], confidence)
        if low > 0:
            above.append(f"{method} at {share:.0%} ({part['accuracy'].mean():.3f}, {gain:+.3f} [{low:+.3f}, {high:+.3f}])")
    return (
        f"Untouched images give an accuracy of {accuracy}; after the removal of what is called most important it is clearly higher "
        f"(paired differences, {covers_seeds(seeds, confidence)}), so that the places of the replaced pixels must tell the class, for: "
        f"{', '.join(above) or 'no method'}."
    )
