"""The published findings, put to the test on one's own records, each with its paired interval.

The findings are those of the poster of Hesse, Schaub-Meyer, Roth, NeurIPS 2024 (arXiv 2407.11910). ``python -m
idsds.studies.rank_methods`` writes those of the committed run into README.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from idsds.common import paths
from idsds.methods.base import ABSOLUTE
from idsds.statistics import paired_differences, rank
from idsds.studies.base import RunSettings

Treatment = tuple[str, str]  # model, method
COLUMNS = ["finding", "higher", "lower", "difference", "low", "high", "verdict", "count", "nan", "interval"]
START, END = "<!-- findings: start -->", "<!-- findings: end -->"


def published_findings(records: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Every comparison that the records allow for a published finding.

    Args:
        records: from :func:`idsds.evaluate`.
        confidence: of the intervals, each on its own (not corrected for the number of comparisons).

    Returns:
        One row per comparison: ``finding``, ``higher`` and ``lower`` (model and method that the finding puts first and second;
        for an intrinsic explanation the best of each model's other methods, picked on these very images, which favours it);
        ``difference`` of the means on the same images with ``low`` and ``high``, ``verdict``: ``shows`` where the whole interval is above
        0, ``reversed`` where it is below, else ``undecided``; ``count`` and ``nan`` of the images; ``interval``, what it covers.
    """
    rows = []
    for finding, first, second in _comparisons(records):
        found = _paired(records, first, second, confidence)
        verdict = "shows" if found["low"] > 0 else "reversed" if found["high"] < 0 else "undecided"
        names = {"higher": " ".join(first), "lower": " ".join(second)}
        rows.append({"finding": finding, **names, **found[["difference", "low", "high", "count", "nan", "interval"]], "verdict": verdict})
    return pd.DataFrame(rows, columns=COLUMNS)


def summary(findings: pd.DataFrame) -> pd.DataFrame:
    """Per finding, in how many comparisons it shows, is undecided and is reversed."""
    verdicts = ["shows", "undecided", "reversed"]
    table = pd.crosstab(findings["finding"], findings["verdict"]).reindex(columns=verdicts, fill_value=0)
    table = table.reindex(dict.fromkeys(findings["finding"])).rename_axis(columns=None)
    return table.assign(comparisons=table.sum(axis=1)).reset_index()


def _comparisons(records: pd.DataFrame) -> Iterator[tuple[str, Treatment, Treatment]]:
    """(finding, what it puts first, what it puts second) for all that the records hold."""
    table = rank(records, resamples=1)
    families = dict(zip(records["method"], records["family"], strict=True))
    table = table[table["mean"].notna()].assign(family=table["method"].map(families))
    has = {(row.model, row.method) for row in table.itertuples()}
    models = list(dict.fromkeys(records["model"]))

    for model, method in sorted(t for t in has if families[t[1]] == "intrinsic"):
        for other in models:
            rivals = table[(table["model"] == other) & (table["family"] != "intrinsic")]["method"]
            if len(rivals):
                yield "intrinsic explanations score best", (model, method), (other, rivals.iloc[0])
    for model, method in sorted(t for t in has if t[1].endswith(ABSOLUTE)):
        if (model, plain := method.removesuffix(ABSOLUTE)) in has:
            yield "absolute values impair", (model, plain), (model, method)
    for model, method in sorted(has):
        plain = "Grad-CAM++" if method == "SG-CAM++" else re.sub(r"-SG(-SQ|-VG)?$", "", method)
        if plain != method and (model, plain) in has:
            yield "SmoothGrad impairs", (model, plain), (model, method)
    for finding, first, second in _model_pairs(models):
        for method in dict.fromkeys(records["method"]):
            if {(first, method), (second, method)} <= has and families[method] != "control":
                yield finding, (first, method), (second, method)


def _model_pairs(models: list[str]) -> Iterator[tuple[str, str, str]]:
    """(finding, model that it puts first, model that it puts second) by the models' names."""
    depth = {m: (found[1], int(found[2])) for m in models if (found := re.fullmatch(r"(.*[a-z])(\d+)", m))}
    for first, (family, shallow) in depth.items():
        for second, (other, deep) in depth.items():
            if family == other and shallow < deep:
                yield "deeper is lower", first, second
    vgg, resnet, vit = ([m for m in models if re.fullmatch(f"(mini_)?{plain}", m)] for plain in (r"vgg\d+", r"resnet\d+", r"vit.*"))
    for finding, above, below in (("VGG is above ResNet", vgg, resnet), ("ResNet is above ViT", resnet, vit)):
        for first in above:
            for second in below:
                yield finding, first, second


def _paired(records: pd.DataFrame, first: Treatment, second: Treatment, confidence: float) -> pd.Series:
    parts = []
    for label, (model, method) in (("first", first), ("second", second)):
        rows = records[(records["model"] == model) & (records["method"] == method)]
        parts.append(rows.assign(model="both", method=label))
    table = paired_differences(pd.concat(parts), pairs=[("first", "second")], confidence=confidence, permutations=1)
    return table.iloc[0]


def headline(table: pd.DataFrame, findings: pd.DataFrame) -> str:
    """One sentence: each model's best method with its interval, and how often every published finding shows.

    Args:
        table: from :func:`idsds.rank`.
        findings: from :func:`published_findings`.
    """
    scored = table[table["mean"].notna()]
    best = scored.loc[scored.groupby("model", sort=False)["mean"].idxmax()]
    scores = [f"{row.method} on {row.model} ({row.mean:.2f} [{row.low:.2f}, {row.high:.2f}])" for row in best.itertuples()]
    claims = [f"{row.finding} in {row.shows} of {row.comparisons}" for row in summary(findings).itertuples()]
    return f"Best of each model: {', '.join(scores)}" + (f"; of the published findings {', '.join(claims)} comparisons." if claims else ".")


def markdown(findings: pd.DataFrame) -> str:
    """The findings as a markdown table, with the verdicts counted above it."""
    lines = []
    for row in summary(findings).itertuples():
        counts = f"shows in {row.shows} of {row.comparisons} comparisons, undecided in {row.undecided}, reversed in {row.reversed}"
        lines.append(f"- *{row.finding}*: {counts}.")
    lines += ["", "| finding | higher, says the finding | lower | difference [95 % interval] | verdict |", "|---|---|---|---|---|"]
    for row in findings.itertuples():
        interval = f"{row.difference:+.2f} [{row.low:+.2f}, {row.high:+.2f}]"
        lines.append(f"| {row.finding} | {row.higher} | {row.lower} | {interval} | {row.verdict} |")
    return "\n".join(lines)


def update_readme(readme: Path, findings: pd.DataFrame) -> None:
    """Put the findings between the two markers of the README."""
    text = readme.read_text()
    before, rest = text.split(START)
    readme.write_text(f"{before}{START}\n{markdown(findings)}\n{END}{rest.split(END)[1]}")


if __name__ == "__main__":
    update_readme(paths.root() / "README.md", pd.read_csv(paths.root() / "figures" / "mnist5k" / "rank_methods_findings.csv"))


class RankingSettings(RunSettings):
    """What ``params/*/rank_methods.yaml`` may say; ``columns`` is the width of the figure in columns of a paper."""

    columns: Literal[1, 2] = 2

    def run(self) -> dict[str, Any]:
        """The keyword arguments of :func:`idsds.evaluate`."""
        return {name: value for name, value in self.evaluate().items() if name != "columns"}
