"""The ranking of attribution methods, and tests of the published findings on the same records.

The findings are those of the poster of Hesse, Schaub-Meyer, Roth, NeurIPS 2024 (arXiv 2407.11910), each with its paired interval.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from idsds import plots, published
from idsds.common.devices import one_of
from idsds.evaluation.costs import load_costs
from idsds.evaluation.records import load_records
from idsds.evaluation.selection import images_said, select_images
from idsds.methods.base import ABSOLUTE, METHODS, split_name
from idsds.models.quantity import as_quantity
from idsds.statistics import paired_differences, rank
from idsds.statistics.means import rivals
from idsds.statistics.verdicts import CONTRADICTED, SUPPORTED, count_verdicts, verdicts
from idsds.studies.base import EvaluationStudy, Findings, QuantityName, Result, named_score, takes_folder
from idsds.studies.result import listed

Treatment = tuple[str, str]  # model, method
#: The protocols whose records hold drops and patch sums, and the names of their scores.
SCORES = {"idsds": "IDSDS", "single_deletion": "SDS"}
#: A patch whose drop is below this fraction of its image's largest absolute drop has no meaningful rank.
NOISE = 0.05
COLUMNS = ["finding", "higher", "lower", "difference", "low", "high", "verdict", "count", "nan", "interval"]


@takes_folder
def published_findings(records: pd.DataFrame) -> pd.DataFrame:
    """Make every comparison that the records allow for a published finding.

    With several training seeds, seeds are resampled with the images (:func:`idsds.nested_bootstrap`). Intervals are of 95 %, not corrected
    for the number of comparisons.

    Returns:
        One row per comparison: ``finding``, ``higher`` and ``lower`` (model and method that the finding puts first and second; for an
        intrinsic explanation the best of each model's other methods, selected on the same images, which favours it); ``difference`` of
        the means on the same images with ``low`` and ``high``, ``verdict`` (:mod:`idsds.statistics.verdicts`); ``count`` and ``nan`` of
        the images; ``interval``, what it covers.
    """
    rows = []
    table = rank(records, resamples=1)
    families = dict(zip(records["method"], records["family"], strict=True))
    for finding, first, second in _comparisons(table[table["mean"].notna()], families):
        found = _paired(records, first, second)
        names = {"higher": " ".join(first), "lower": " ".join(second)}
        rows.append({"finding": finding, **names, **found[["difference", "low", "high", "count", "nan", "interval"]]})
    table = pd.DataFrame(rows, columns=COLUMNS)
    return table.assign(verdict=verdicts(table["low"], table["high"]))


def poster_findings() -> pd.DataFrame:
    """Test the poster's findings on its own numbers: the same comparisons of published scores.

    Returns:
        One row per comparison: ``finding``, ``higher``, ``lower`` (model and method), ``difference``, its ``low`` and ``high`` by the error
        of reading two values from a figure, ``verdict``, ``inferred`` (whether the label of one of the two was inferred).
    """
    scores = published.idsds_scores()
    table = scores.rename(columns={"score": "mean"}).assign(ceiling=False).sort_values("mean", ascending=False, kind="stable")
    families = {name: METHODS[split_name(name)[0]].family for name in scores["method"]}
    values = scores.set_index(["model", "method"])
    rows, either = [], 2 * published.SCORE_READING
    for finding, first, second in _comparisons(table, families):
        both = values.loc[[first, second]]
        difference = both["score"].iloc[0] - both["score"].iloc[1]
        row = {"finding": finding, "higher": " ".join(first), "lower": " ".join(second), "difference": difference}
        rows.append({**row, "low": difference - either, "high": difference + either, "inferred": bool(both["inferred"].any())})
    found = pd.DataFrame(rows)
    return found.assign(verdict=verdicts(found["low"], found["high"]))


def beside_poster(claims: pd.DataFrame, ranked_apart: pd.DataFrame | None = None) -> pd.DataFrame:
    """Count the verdicts per finding, with what the poster's own numbers say beside them.

    Args:
        ranked_apart: the same, of the scores of :func:`above_noise`; None: they are left out.
    """
    table = count_verdicts(claims, "finding")
    others = {"in the poster's own numbers": poster_findings(), "only patches that count": ranked_apart}
    for name, other in others.items():
        if other is not None:
            own = count_verdicts(other, "finding").set_index("finding").astype(str)
            counts = own[SUPPORTED] + " of " + own["comparisons"] + ", contradicted " + own[CONTRADICTED]
            table[name] = [counts.get(finding, "none") for finding in table["finding"]]
    return table


def _comparisons(table: pd.DataFrame, families: Mapping[str, str]) -> Iterator[tuple[str, Treatment, Treatment]]:
    """Yield (finding, what it puts first, what it puts second) for all models and methods of a table, best first."""
    table = table.assign(family=table["method"].map(families))
    has = {(row.model, row.method) for row in table.itertuples()}
    models = list(dict.fromkeys(table["model"]))

    for model, method in sorted(t for t in has if families[t[1]] == "intrinsic"):
        for other in models:
            others = rivals(table[(table["model"] == other) & (table["family"] != "intrinsic")])["method"]
            if len(others):
                yield "intrinsic explanations score best", (model, method), (other, others.iloc[0])
    for model, method in sorted(t for t in has if t[1].endswith(ABSOLUTE)):
        if (model, plain := method.removesuffix(ABSOLUTE)) in has:
            yield "absolute values impair", (model, plain), (model, method)
    for model, method in sorted(has):
        plain = "Grad-CAM++" if method == "SG-CAM++" else re.sub(r"-SG(-SQ|-VG)?$", "", method)
        if plain != method and (model, plain) in has:
            yield "SmoothGrad impairs", (model, plain), (model, method)
    for finding, first, second in _model_pairs(models):
        for method in dict.fromkeys(table["method"]):
            if {(first, method), (second, method)} <= has and families[method] != "control":
                yield finding, (first, method), (second, method)


def _model_pairs(models: list[str]) -> Iterator[tuple[str, str, str]]:
    """Yield (finding, model that it puts first, model that it puts second) by the models' names."""
    depth = {m: (found[1], int(found[2])) for m in models if (found := re.fullmatch(r"(.*(?:net|vgg))(\d+)", m))}
    for first, second in itertools.product(depth, repeat=2):
        if depth[first][0] == depth[second][0] and depth[first][1] < depth[second][1]:
            yield "deeper is lower", first, second
    vgg, resnet, vit = ([m for m in models if re.fullmatch(f"(mini_)?{plain}", m)] for plain in (r"vgg\d+", r"resnet\d+", r"vit.*"))
    for finding, above, below in (("VGG is above ResNet", vgg, resnet), ("ResNet is above ViT", resnet, vit)):
        yield from ((finding, first, second) for first, second in itertools.product(above, below))


def _paired(records: pd.DataFrame, first: Treatment, second: Treatment) -> pd.Series:
    parts = []
    for label, (model, method) in (("first", first), ("second", second)):
        rows = records[(records["model"] == model) & (records["method"] == method)]
        parts.append(rows.assign(model="both", method=label))
    return paired_differences(pd.concat(parts), pairs=[("first", "second")], permutations=1, nested=True).iloc[0]


class RankingStudy(EvaluationStudy):
    """Base of the studies that rank methods by one protocol."""

    protocol: Annotated[str, one_of("protocol of a ranking", SCORES)] = "idsds"
    quantity: QuantityName = "logit"
    only: Literal["correct"] | None = None
    common: bool = False

    @property
    def score(self) -> str:
        """The name of the score, for nets not fine-tuned without labels."""
        return SCORES[self.protocol] + ("" if self.quantity == "logit" else f" of the {as_quantity(self.quantity)}")

    def published(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return the published values beside a ranking, see :func:`idsds.published.compare`; none if another quantity was judged."""
        same = self.protocol == "idsds" and self.quantity == "logit"
        return published.compare(table if same else table.head(0), self.dataset, self.grid, self.baseline)


class RankMethods(RankingStudy):
    """Rank attribution methods on models, and test the published findings."""

    def runs(self) -> dict[str, dict[str, Any]]:
        """One run of the protocol."""
        return {"": self.arguments(protocol=self.protocol, quantity=self.quantity)}

    def _above_noise(self, records: pd.DataFrame) -> pd.DataFrame:
        """Score a large run as :func:`above_noise` does, from its folder, a model and method at a time."""
        keys = ["model", "seed", "method", "image_id"]
        parts = (
            above_noise(load_records(self.output, models=[model], methods=[method], columns=[*keys, "drops", "patch_sums", "score"]))
            for model, method in records[["model", "method"]].drop_duplicates().astype(str).itertuples(index=False)
        )
        scores = pd.concat([part[[*keys, "score"]] for part in parts], ignore_index=True)
        return records.drop(columns="score").merge(scores, on=keys, how="left", validate="one_to_one")

    def _run(self, progress: bool) -> Result:
        everything = self.records(progress)
        records = select_images(everything, self.only, self.common)
        where = images_said(everything, records, self.only, self.common)
        table, claims = with_drops(rank(records, nested=True), records), published_findings(records)
        controls, drops = beside_controls(records), drops_of(records)
        apart = published_findings(above_noise(records) if "patch_sums" in records else self._above_noise(records))
        score = named_score(records, self.score)
        compared = self.published(table)
        families = dict(zip(records["method"], records["family"], strict=True))
        costs = load_costs(self.output).groupby(["model", "method"])[["milliseconds", "megabytes"]].mean().reset_index()
        table = table.merge(costs, on=["model", "method"], how="left").assign(**({"score": score} if score != self.score else {}))
        options = {"n_patches": self.grid**2, "score": score, "models": self.models, "published": compared, "where": where}
        pages = [
            partial(plots.rank_methods, table, families, columns=self.columns, **options),
            partial(plots.deletion_drops, drops, quantity=str(as_quantity(self.quantity)), columns=self.columns),
        ]
        tables = {"": table, "findings": claims, "controls": controls, "drops": summary_of(drops), "published": compared}
        tables |= {"findings_above_noise": apart, "poster": poster_findings()}
        findings = Findings([*best(table, score), *above(controls), *below_zero(table)], beside_poster(claims, apart))
        return Result(self.stem, tables, findings, pages, records)


@takes_folder
def beside_controls(records: pd.DataFrame) -> pd.DataFrame:
    """Compare every method with the best control of its model, on the same images; intervals are of 95 %, not corrected.

    Returns:
        One row per model and method other than the controls: ``control``, ``difference`` of the means, ``low``, ``high``, ``verdict`` on
        the claim that the method scores above the control, ``count`` and ``nan`` of the images. Empty without a control.
    """
    rows = []
    families = dict(zip(records["method"], records["family"], strict=True))
    table = rank(records, resamples=1)
    for model, scores in table[table["mean"].notna()].groupby("model", sort=False):
        is_control = scores["method"].map(families) == "control"
        best_control = scores.loc[is_control, "method"].head(1)  # none without a control
        for control, method in itertools.product(best_control, scores.loc[~is_control, "method"]):
            found = _paired(records, (str(model), method), (str(model), control))
            rows.append({"model": model, "method": method, "control": control, **found[["difference", "low", "high", "count", "nan"]]})
    found = pd.DataFrame(rows, columns=["model", "method", "control", "difference", "low", "high", "count", "nan"])
    return found.assign(verdict=verdicts(found["low"], found["high"]))


def above(controls: pd.DataFrame) -> list[str]:
    """Count the methods above and below the controls, from :func:`beside_controls`."""
    if controls.empty:
        return []
    counts = [int((controls["verdict"] == verdict).sum()) for verdict in (SUPPORTED, CONTRADICTED)]
    some = set(controls.loc[controls["verdict"] == SUPPORTED, "model"])
    none = [model for model in dict.fromkeys(controls["model"]) if model not in some]
    text = f"Of {len(controls)} pairs of model and method, {counts[0]} score above every control and {counts[1]} below the best one"
    return [text + (f"; none is above on {', '.join(none)}." if none and some else ".")]


def below_zero(table: pd.DataFrame) -> list[str]:
    """Name the methods whose whole interval is below 0, from a table of :func:`idsds.rank`: they rank patches wrongly."""
    rows = table[table["high"] < 0].sort_values("mean", kind="stable")
    scores = [f"{row.method} on {row.model} ({row.mean:.2f} [{row.low:.2f}, {row.high:.2f}])" for row in rows.itertuples()]
    return [f"The whole interval is below 0 for {listed(scores)}."] if scores else []


@takes_folder
def drops_of(records: pd.DataFrame) -> pd.DataFrame:
    """Return the drops of every patch, once per model and image.

    Returns:
        One row per model, seed, image and patch: ``drop`` (of the target logit) and ``share`` (of the image's largest absolute drop).
    """
    images = records.drop_duplicates(["model", "seed", "image_id"])
    drops = np.stack(images["drops"].to_numpy()).astype(float)  # (images, patches)
    largest = np.abs(drops).max(axis=1, keepdims=True)
    shares = np.divide(drops, largest, out=np.full_like(drops, np.nan), where=largest > 0)
    keys = images[["model", "seed", "image_id"]].loc[images.index.repeat(drops.shape[1])].reset_index(drop=True)
    return keys.assign(drop=drops.ravel(), share=shares.ravel())


def summary_of(drops: pd.DataFrame) -> pd.DataFrame:
    """Summarise the drops of each model: how much there is to rank.

    Returns:
        One row per model: ``median_largest``, the median over images of the largest drop (logits), ``share_above_noise``, the fraction of
        patches whose drop exceeds :data:`NOISE` of their image's largest absolute drop, ``images`` and ``patches``.
    """
    largest = drops.groupby(["model", "seed", "image_id"], sort=False)["drop"].max().groupby("model", sort=False)
    patches = drops.groupby("model", sort=False)["share"]
    columns = {"median_largest": largest.median(), "share_above_noise": patches.agg(lambda values: float((values > NOISE).mean()))}
    return pd.DataFrame({**columns, "images": largest.size(), "patches": patches.size()}).reset_index()


def with_drops(table: pd.DataFrame, records: pd.DataFrame, by: Sequence[str] = ()) -> pd.DataFrame:
    """Add each model's ``share_above_noise`` to a ranking, see :func:`summary_of`; NaN for a protocol without drops of patches.

    ``by`` names columns of both, such as the variant of a setting, for whose values it is counted apart.
    """
    keys = [*by, "model"]
    judged = records[records["drops"].notna()] if "drops" in records else records.iloc[:0]
    shares = {key: summary_of(drops_of(rows))["share_above_noise"].item() for key, rows in judged.groupby(keys, sort=False)}
    return table.assign(share_above_noise=[shares.get(key, np.nan) for key in table[keys].itertuples(index=False, name=None)])


def drops_said(table: pd.DataFrame) -> str:
    """Name each model's fraction of patches above the noise, from a table of :func:`with_drops`."""
    shares = listed(f"{model} {share:.0%}" for model, share in table.groupby("model", sort=False)["share_above_noise"].first().items())
    return f"Patches whose drop is above {NOISE:.0%} of their image's largest: {shares}."


def above_noise(records: pd.DataFrame) -> pd.DataFrame:
    """Score each map again on the patches whose absolute drop exceeds :data:`NOISE` of their image's largest.

    Patches that raise the logit when they are deleted stay: without them, absolute maps would be at an advantage.

    Returns:
        The records, with the Spearman correlation over those patches as ``score``; NaN where it was NaN, with fewer than three such
        patches, or if all their sums are equal.
    """
    drops, sums = (np.stack(records[name].to_numpy()).astype(float) for name in ("drops", "patch_sums"))  # (records, patches)
    kept = np.abs(drops) > NOISE * np.abs(drops).max(axis=1, keepdims=True)
    ranks = [rankdata(np.where(kept, values, np.nan), axis=1, nan_policy="omit") for values in (drops, sums)]
    middle = (kept.sum(axis=1, keepdims=True) + 1) / 2  # the mean of the ranks
    first, second = (np.where(kept, values - middle, 0) for values in ranks)
    product, size = (first * second).sum(axis=1), np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    defined = (kept.sum(axis=1) > 2) & (size > 0) & records["score"].notna().to_numpy()
    return records.assign(score=np.divide(product, size, out=np.full(len(records), np.nan), where=defined))


def best(table: pd.DataFrame, score: str = "IDSDS") -> list[str]:
    """Name each model's best method with its score and interval, from a table of :func:`idsds.rank`."""
    scored = rivals(table[table["mean"].notna()])
    rows = scored.loc[scored.groupby("model", sort=False)["mean"].idxmax()]
    scores = [f"{row.method} on {row.model} ({row.mean:.2f} [{row.low:.2f}, {row.high:.2f}])" for row in rows.itertuples()]
    return [f"Highest mean {score} of each model: {listed(scores)}."]
