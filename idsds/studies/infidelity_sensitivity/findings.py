"""Short sentences on the numbers of :mod:`idsds.studies.infidelity_sensitivity.study`; every number is computed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from idsds.statistics.grouped import mean_of_groups, spearman
from idsds.studies.infidelity_sensitivity.correlations import CONTROL, FOLLOWS, GIVEN, LEVELS, WITHIN, beside_random, correlations

POOLED = next(iter(LEVELS))
#: In the sentences the levels in between are left out.
SAID = {POOLED: f"over {POOLED}", WITHIN: WITHIN}
NAMES = {"raw": "infidelity", "normalised": "normalised infidelity", "relative": "relative infidelity", "sensitivity": "max-sensitivity"}
STUDY = {"weighted_precision": "weighted precision (its accuracy)", "macro_f1": "F1"}


def findings(table: pd.DataFrame, ours: pd.DataFrame, study: pd.DataFrame) -> list[str]:
    """What the numbers say, one or two short sentences each.

    Args:
        table: from :func:`idsds.studies.infidelity_sensitivity.study.judge`.
        ours, study: from :func:`idsds.studies.infidelity_sensitivity.correlations.correlations`, of it and of the study's rows.
    """
    knowing = table[table["family"] != "control"]
    names = list(dict.fromkeys(knowing["method"]))
    said = []
    if names:
        mine = ours[ours["method"].isin(names)]
        said += [_what_there_is(knowing), _about_ten_times(knowing), _about_change(mine), _about_forecast(mine)]
        said += [_about_quality("raw", mine), _about_partial(mine), _about_controls(ours, mine), *_about_random(table)]
        said += [_about_quality("relative", mine), _about_quality("sensitivity", mine), *_about_chance(knowing, mine), _about_design(table)]
    said += [_about_study(study, measure) for measure in ("raw", "sensitivity")]
    return [sentence for sentence in said if sentence]


def _what_there_is(table: pd.DataFrame) -> str:
    """How many models in how many groups, and which methods do not apply to all of them."""
    models = table.drop_duplicates(["dataset", "model", "fraction", "seed"])
    cells = table.groupby("method", sort=False).apply(lambda rows: (len(rows), rows.groupby(["dataset", "model"]).ngroups))
    fewer = {method: counts for method, counts in cells.items() if counts[0] < len(models)}
    groups = models.groupby(["dataset", "model"]).ngroups
    rest = "".join(f"; {name}: {count} in {some}" for name, (count, some) in fewer.items())
    lost = f"; {table['nan'].sum()} undefined scores of images" if "nan" in table else ""
    return f"{len(models)} models in {groups} groups (an architecture on a data set){rest}{lost}."


def _about_ten_times(table: pd.DataFrame) -> str:
    factor = table["raw_x10"] / table["raw"]
    moved = (table["normalised_x10"] / table["normalised"] - 1).abs()
    return (
        f"A map times ten orders the pixels alike: its infidelity is {factor.median():.3g} times as high in the median, "
        f"its normalised infidelity differs by {moved.max():.1g} at the most."
    )


def _about_change(found: pd.DataFrame) -> str:
    here = _pick(found, "raw", "change", POOLED)
    follows = here["spearman"] > FOLLOWS
    beside = ", ".join(f"{row.method} ({row.spearman:+.2f})" for row in here[~follows].itertuples())
    return (
        f"Raw infidelity and the squared change of the logit, in which no map plays a part, correlate by "
        f"{_levels(found, 'raw', 'change')}. Over {POOLED} it is above {FOLLOWS} for {follows.sum()} of {len(here)} methods"
        f"{f'; not for {beside}' if beside else ''}."
    )


def _about_forecast(found: pd.DataFrame) -> str:
    if "forecast" not in set(found["quality"]):
        return ""
    return (
        f"Raw infidelity and the map's own scale (the mean square of what it foretells) correlate by {_levels(found, 'raw', 'forecast')}."
    )


def _about_quality(measure: str, found: pd.DataFrame) -> str:
    rows = _pick(found, measure, "accuracy", POOLED, WITHIN)
    dropped = f" {rows['dropped'].max()} models at the most lack a value." if rows["dropped"].any() else ""
    direction = _direction(_pick(found, measure, "accuracy", POOLED))
    return (
        f"{direction} by {NAMES[measure]} (lower is better): it and accuracy correlate by {_levels(found, measure, 'accuracy')}.{dropped}"
    )


def _direction(rows: pd.DataFrame) -> str:
    """What correlations with a quality, of something of which less is better, say of the better models: a sign that all share."""
    above, below = (rows["low"] > 0).any(), (rows["high"] < 0).any()
    if above and (rows["spearman"] > 0).all():
        return "Better models look worse"
    if below and (rows["spearman"] < 0).all():
        return "Better models look better"
    return "Better models look neither clearly better nor clearly worse"


def _about_partial(found: pd.DataFrame) -> str:
    quality = f"accuracy{GIVEN}"
    if quality not in set(found["quality"]):
        return ""
    return f"Given that change, raw infidelity and accuracy correlate (partial rank correlation) by {_levels(found, 'raw', quality)}."


def _about_controls(ours: pd.DataFrame, knowing: pd.DataFrame) -> str:
    """The normalised infidelity of a map that knows nothing follows accuracy as well."""
    here = _pick(ours[ours["method"] == CONTROL], "normalised", "accuracy", POOLED)
    if here.empty:
        return ""
    others = _levels(knowing, "normalised", "accuracy", [POOLED])
    return (
        f"Normalised infidelity and accuracy correlate by {_one(next(here.itertuples()))} over {POOLED} for {CONTROL}, which knows nothing "
        f"of the model; for the methods by {others}."
    )


def _about_random(table: pd.DataFrame) -> list[str]:
    """Which methods foretell more than a map that knows nothing, on the same models."""
    beside = beside_random(table)
    if beside.empty:
        return []
    control = table.loc[table["method"] == CONTROL, "relative"]
    known = f"{1 - 1 / table['samples'].iloc[0]:.2g} is expected" if "samples" in table else "less than 1 is expected"
    families = dict(zip(table["method"], table["family"], strict=True))
    beside = beside[beside["method"].map(families) != "control"]
    below = beside["high"] < 0
    lists = [_differences(beside[chosen]) for chosen in (below, ~below)]
    said = f"The relative infidelity of {CONTROL} is {control.mean():.2f} in the mean; {known} of a map that knows nothing."
    better = f"Below it, paired over models: {lists[0]}." if lists[0] else "No method is below it by its interval."
    return [said, better + (f" Not told apart from it, or above: {lists[1]}." if lists[1] else "")]


def _differences(rows: pd.DataFrame) -> str:
    ends = (f"[{row.low:+.2f}, {row.high:+.2f}]" if np.isfinite(row.low) else "no interval" for row in rows.itertuples())
    return ", ".join(f"{row.method} ({row.difference:+.2f} {said})" for row, said in zip(rows.itertuples(), ends, strict=True))


def at_chance(table: pd.DataFrame) -> pd.Series:
    """Which rows are of models whose accuracy cannot be told from 1 / classes, or is below it."""
    return table["accuracy_low"] <= table["chance"]


def _about_chance(table: pd.DataFrame, found: pd.DataFrame) -> list[str]:
    if "chance" not in table:
        return []
    low = at_chance(table)
    identity = ["dataset", "model", "fraction", "seed"]
    count, total = (len(rows.drop_duplicates(identity)) for rows in (table[low], table))
    if not count or count == total:
        return [f"{count} of {total} models are at chance (their accuracy is not clearly above 1 / classes)."]
    rest = correlations(table[~low])
    raw, relative = (_levels(rest, measure, "accuracy") for measure in ("raw", "relative"))
    return [
        f"{count} of {total} models are at chance (their accuracy is not clearly above 1 / classes). Without them accuracy correlates with "
        f"raw infidelity by {raw}.",
        f"Without them accuracy correlates with relative infidelity by {relative}.",
    ]


def _about_design(table: pd.DataFrame) -> str:
    """Images, steps and the scale of the logits go together."""
    if not {"train_images", "epochs"} <= set(table):
        return ""
    models = table.drop_duplicates(["dataset", "model", "fraction", "seed"])
    pair = models[["train_images", "change"]]
    own = np.array([spearman(pair.loc[rows], [0] * len(rows))[0, 1] for rows in models.groupby(["dataset", "model"]).groups.values()])
    mean, low, high = mean_of_groups(own)
    ends = f" [{max(low, -1):+.2f}, {min(high, 1):+.2f}]" if np.isfinite(low) else ""
    alike = models["epochs"].nunique() == 1
    epochs = f"all train for {models['epochs'].iloc[0]} epochs" if alike else "the number of epochs is fixed beforehand"
    return (
        f"By design {epochs}, so that fewer images are fewer steps as well; within architecture and data set the squared change of the "
        f"logit goes with the number of training images by {mean:+.2f}{ends}."
    )


def _about_study(study: pd.DataFrame, measure: str) -> str:
    parts = []
    for quality, name in STUDY.items():
        rows = _pick(study, measure, quality, POOLED, WITHIN)
        parts.append(f"{name} by " + ", ".join(f"{_one(row)} {SAID[row.level]}" for row in rows.itertuples()))
    direction = _direction(pd.concat([_pick(study, measure, quality, POOLED) for quality in STUDY]))
    lead = f"The study's {study['models'].max()} models: {direction[0].lower()}{direction[1:]} by {NAMES[measure]}"
    return f"{lead}; it correlates with {'; with '.join(parts)}."


def _pick(found: pd.DataFrame, measure: str, quality: str, *levels: str) -> pd.DataFrame:
    rows = found[(found["measure"] == measure) & (found["quality"] == quality) & found["level"].isin(levels)]
    return rows.dropna(subset="spearman")


def _levels(found: pd.DataFrame, measure: str, quality: str, levels: Iterable[str] = tuple(SAID)) -> str:
    """Of each level the correlation of the one method, or the extent over the methods with the intervals that tell it from 0."""
    parts = []
    for level in levels:
        here = _pick(found, measure, quality, level)
        if len(here) == 1:
            parts.append(f"{_one(next(here.itertuples()))} {SAID[level]}")
        elif len(here):
            bounded = here.dropna(subset=["low", "high"])
            above, below = (bounded["low"] > 0).sum(), (bounded["high"] < 0).sum()
            sides = ", ".join(
                f"{count} of {len(bounded)} intervals {side} 0" for count, side in ((above, "above"), (below, "below")) if count
            )
            told = (sides or f"all {len(bounded)} intervals include 0") if len(bounded) else "no intervals"
            parts.append(f"{here['spearman'].min():+.2f} to {here['spearman'].max():+.2f} {SAID[level]} ({told})")
    return ", ".join(parts) or "nothing that is defined"


def _one(row: Any) -> str:
    ends = f"(no interval: {row.groups} groups)" if np.isnan(row.low) else f"[{row.low:+.2f}, {row.high:+.2f}]"
    return f"{row.spearman:+.2f} {ends}"
