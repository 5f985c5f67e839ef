"""Verdicts on the study's claims from the correlations of metrics with the quality of models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from idsds.statistics.grouped import mean_of_groups, spearman
from idsds.statistics.verdicts import VERDICTS, verdicts
from idsds.studies.base import Findings
from idsds.studies.infidelity_sensitivity.correlations import CONTROL, GIVEN, LEVELS, WITHIN, correlations
from idsds.studies.train_fractions import IDENTITY

POOLED = next(iter(LEVELS))
#: What is claimed of the correlation of a measure with a quality (all measures: lower is better), and its sign.
CLAIMS = [
    ("raw", "change", "infidelity follows the squared change of the logit, whatever the map", 1),
    ("raw", "forecast", "infidelity follows the scale of the map", 1),
    ("raw", "accuracy", "better models have a lower infidelity", -1),
    ("raw", f"accuracy{GIVEN}", "better models have a lower infidelity, with the change of the logit held fixed", -1),
    ("normalised", "accuracy", "better models have a lower infidelity, with the scale of the map removed", -1),
    ("relative", "accuracy", "better models have a lower relative infidelity", -1),
    ("sensitivity", "accuracy", "better models have a lower max-sensitivity", -1),
]


def findings(judged: pd.DataFrame, parts: pd.DataFrame) -> Findings:
    """State the main correlations and the spread between methods (``parts``), with the verdicts on the claims over all models."""
    span = judged[(judged["models"] == "ours") & (judged["level"] == POOLED)].set_index("claim")
    span = {claim: f"{row.lowest:+.2f} to {row.highest:+.2f}" for claim, row in span.iterrows()}
    spans = {(measure, quality): span.get(claim, "undefined") for measure, quality, claim, _ in CLAIMS}
    sentences = [
        f"Spearman correlation of accuracy with infidelity over all models, by method: {spans['raw', 'accuracy']}; with the logit's change"
        f" held fixed {spans['raw', f'accuracy{GIVEN}']}.",
        f"With relative infidelity, which takes both scales out: {spans['relative', 'accuracy']}; with max-sensitivity:"
        f" {spans['sensitivity', 'accuracy']}. Lower is better for all of them.",
        spread_said(parts),
    ]
    shown = judged[(judged["level"] == POOLED) & judged["models"].isin(["ours", "the study's, weighted_precision"])]
    return Findings(sentences, shown.drop(columns="level"))


def spread_said(parts: pd.DataFrame) -> str:
    """State how much the methods' infidelities differ on the same model, from :meth:`InfidelitySensitivity.parts_of_maps`."""
    whole = parts[parts["architecture"] == "all"]
    said = [f"{row.models_of} at sigma {row.sigma:g} {1 + row.median_spread:.3g} ({row.verdict})" for row in whole.itertuples()]
    return f"Highest over lowest infidelity of the methods on the same model, in the median (claim: below 1.1): {', '.join(said)}."


def claims(table: pd.DataFrame, ours: pd.DataFrame, study: pd.DataFrame) -> pd.DataFrame:
    """Test the claims by the intervals of each method's correlations; for the middle level see the table of correlations.

    Args:
        table: of :meth:`idsds.studies.infidelity_sensitivity.InfidelitySensitivity.judge`.
        ours, study: from :func:`idsds.studies.infidelity_sensitivity.correlations.correlations`, of it and of the study's rows.

    Returns:
        One row per claim, models and level: ``lowest`` and ``highest`` Spearman correlation of the methods, the number of ``nets`` and of
        ``methods`` with a defined correlation, and the number of these with each verdict; a correlation without an interval supports
        nothing.
    """
    methods = list(dict.fromkeys(table.loc[table["family"] != "control", "method"]))
    parts = [("ours", ours[ours["method"].isin(methods)]), (f"ours, {CONTROL}", ours[ours["method"] == CONTROL])]
    # At chance: the accuracy is not significantly above 1 / classes.
    if "chance" in table and 0 < (low := table["accuracy_low"] <= table["chance"]).sum() < len(table):
        parts.append(("ours above chance", correlations(table[~low & table["method"].isin(methods)])))
    parts += [(f"the study's, {name}", _as_accuracy(study, name)) for name in ("weighted_precision", "weighted_f1")]
    rows = [
        {"claim": claim, "models": models, "level": level, **facts}
        for measure, quality, claim, sign in CLAIMS
        for models, found in parts
        for level, facts in _counted(found[(found["measure"] == measure) & (found["quality"] == quality)], sign)
    ]
    return pd.DataFrame([*rows, *_design(table)])


def _as_accuracy(study: pd.DataFrame, quality: str) -> pd.DataFrame:
    """Return the study's correlations with one of its qualities, which stand in for accuracy."""
    return study[study["quality"] == quality].assign(quality="accuracy")


def _counted(found: pd.DataFrame, sign: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return per level the range over methods and the verdicts."""
    for level in (POOLED, WITHIN):
        rows = found[found["level"] == level].dropna(subset="spearman")
        if len(rows):
            ends = (rows["low"], rows["high"]) if sign > 0 else (-rows["high"], -rows["low"])
            said = list(verdicts(*ends))
            facts = {"lowest": rows["spearman"].min(), "highest": rows["spearman"].max(), "nets": rows["models"].max()}
            yield level, {**facts, "methods": len(rows), **{verdict: said.count(verdict) for verdict in VERDICTS}}


def _design(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Images, steps of training and the scale of the logits go together by design."""
    if "train_images" not in table:
        return []
    models = table.drop_duplicates(list(IDENTITY))
    pair = models[["train_images", "change"]]
    own = np.array([spearman(pair.loc[rows], [0] * len(rows))[0, 1] for rows in models.groupby(["dataset", "model"]).groups.values()])
    mean, low, high = mean_of_groups(own)
    claim = {"claim": "the change of the logit grows with the number of training images", "models": "ours", "level": WITHIN}
    said = str(verdicts(low, high))
    facts = {"lowest": mean, "highest": mean, "nets": len(models), "methods": 1, **{verdict: int(said == verdict) for verdict in VERDICTS}}
    return [{**claim, **facts}]
