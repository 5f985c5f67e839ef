"""The effect of a design choice on attribution quality: the same methods on models that differ in one choice, image by image.

The choices and the direction of each are those of the poster of Hesse, Schaub-Meyer, Roth, *Benchmarking the Attribution Quality of Vision
Models*, NeurIPS 2024 (arXiv 2407.11910). Models are given as chains, the highest by the claim first; every pair of a chain is compared
under every method that applies to both. Verdicts are corrected by Holm for all comparisons of the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Annotated, Any, Self

import pandas as pd
from pydantic import Field, model_validator

from idsds import plots, published
from idsds.common.devices import one_of
from idsds.common.registry import check_names
from idsds.statistics import paired_differences, rank
from idsds.statistics.verdicts import CONTRADICTED, NOT_SUPPORTED, SUPPORTED, VERDICTS, count_verdicts
from idsds.studies.base import EvaluationStudy, Findings, ModelName, Result, named_score, takes_folder
from idsds.studies.rank_methods import drops_said, with_drops

POSTER = "Hesse, Schaub-Meyer, Roth, NeurIPS 2024, arXiv 2407.11910, poster"
QUANTITIES = ("logit", "probability")


@dataclass(frozen=True)
class Choice:
    """A design choice: the claim about it, and its source."""

    claim: str
    source: str = POSTER


CHOICES: Mapping[str, Choice] = {
    "depth": Choice("deeper is lower"),
    "width": Choice("wider is lower"),
    "batchnorm_bias": Choice("BatchNorm and bias terms impair"),
    "backbone": Choice("VGG is above ResNet, ResNet above ViT"),
    "softmax": Choice(
        "explaining the logit ranks above explaining the probability",
        "the paper compares outputs before and after the softmax; the direction is this package's reading",
    ),
}


def axis_of(model: str, quantity: str) -> str:
    """Name the axis of a model where two quantities are explained and judged."""
    return f"{model}, {quantity}"


@takes_folder
def differences(records: pd.DataFrame, chains: Sequence[Sequence[str]], confidence: float = 0.95) -> pd.DataFrame:
    """Compare every pair of axes of a chain under every method that both have, on the same images; controls are left out.

    Args:
        records: of all axes; ``model`` is the axis.
        chains: axes, the highest by the claim first.
        confidence: of the intervals, each on its own; verdicts are at its complement, corrected by Holm for all rows.

    Returns:
        One row per pair and method: ``higher``, ``lower`` (as the claim has it), ``method``, ``difference`` (mean of higher minus lower),
        ``low``, ``high``, ``p_holm``, ``verdict`` (:mod:`idsds.statistics.verdicts`, by ``p_holm``), ``count``, ``nan``, ``interval``.

    Raises:
        ValueError: if no two axes of a chain have a method in common.
    """
    pairs = [pair for chain in chains for pair in combinations(chain, 2)]
    table = paired_differences(
        records[records["family"] != "control"], by="model", pairs=pairs, confidence=confidence, resamples=9_999, nested=True
    )
    told_apart = table["p_holm"] <= 1 - confidence
    verdict = (table["difference"] > 0).map({True: SUPPORTED, False: CONTRADICTED}).where(told_apart, NOT_SUPPORTED)
    table = table.rename(columns={"a": "higher", "b": "lower"}).assign(verdict=verdict)
    table = pd.DataFrame(pairs, columns=["higher", "lower"]).merge(table.sort_values("method", kind="stable"), on=["higher", "lower"])
    return table[["higher", "lower", "method", "difference", "low", "high", "p_holm", "verdict", "count", "nan", "interval"]]


def findings(choice: str, table: pd.DataFrame) -> Findings:
    """State how many comparisons of a table of :func:`differences` support the claim; the verdicts are counted per pair of axes."""
    counts = table["verdict"].value_counts().reindex(VERDICTS, fill_value=0)
    said = f"supported by {counts[SUPPORTED]} of {len(table)} comparisons, contradicted by {counts[CONTRADICTED]}"
    test = "nested bootstrap" if table["interval"].str.contains("seeds and").any() else "sign-flip tests"
    sentences = [
        f"{CHOICES[choice].claim}: {said} ({test}, 5 %, Holm for all {len(table)}).",
        f"Source of the claim: {CHOICES[choice].source}.",
    ]
    return Findings(sentences, count_verdicts(table, ["higher", "lower"]))


def published_differences(chains: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Compare the published values likewise, for pairs with both models: higher, lower, method, difference, inferred."""
    pairs = pd.DataFrame([pair for chain in chains for pair in combinations(chain, 2)], columns=["higher", "lower"])
    first, second = (published.idsds_scores()[["model", "method", "score", "inferred"]].rename(columns={"model": name}) for name in pairs)
    both = pairs.merge(first, on="higher").merge(second, on=["lower", "method"])
    both = both.assign(difference=both["score_x"] - both["score_y"], inferred=both["inferred_x"] | both["inferred_y"])
    return both[["higher", "lower", "method", "difference", "inferred"]]


@takes_folder
def ranked(records: pd.DataFrame, chains: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Return :func:`idsds.rank`, nested, with the axes in the order of the chains."""
    order = {axis: number for number, axis in enumerate(axis for chain in chains for axis in chain)}
    return rank(records, nested=True).sort_values("model", key=lambda column: column.map(order), kind="stable", ignore_index=True)


class DesignChoice(EvaluationStudy):
    """Compare models that differ in one design choice, method by method on the same images.

    ``chains`` are lists of models, the highest by the claim first; none: ``models`` are one chain. For ``softmax`` each model is
    compared with itself.
    """

    choice: Annotated[str, one_of("design choice", CHOICES)]
    chains: list[Annotated[list[ModelName], Field(min_length=2)]] = []

    @model_validator(mode="after")
    def _chains_are_of_the_models(self) -> Self:
        if self.choice == "softmax":
            if self.chains:
                raise ValueError("chains: for 'softmax' each model is compared with itself; leave chains empty")
            return self
        if len(self.models) < 2:
            raise ValueError(f"models: {self.choice!r} compares models and needs at least two")
        listed = [name for chain in self.chains for name in chain]
        check_names("model of a chain", listed, self.models)
        if twice := [name for name in listed if listed.count(name) > 1]:
            raise ValueError(f"chains: {twice[0]!r} is listed more than once")
        if self.chains and (alone := [name for name in self.models if name not in listed]):
            raise ValueError(f"chains: {', '.join(alone)} of models is in no chain")
        return self

    @property
    def axes(self) -> list[list[str]]:
        """The chains of axes to compare, highest by the claim first."""
        if self.choice == "softmax":
            return [[axis_of(model, quantity) for quantity in QUANTITIES] for model in self.models]
        return self.chains or [self.models]

    def runs(self) -> dict[str, dict[str, Any]]:
        """One run or, for ``softmax``, one for each quantity."""
        if self.choice != "softmax":
            return super().runs()
        return {quantity: self.arguments(quantity=quantity, output=f"{self.output}/{quantity}") for quantity in QUANTITIES}

    def records(self, progress: bool = True) -> pd.DataFrame:
        """Return the records of all axes; ``model`` is the axis, for ``softmax`` the model and its quantity."""
        records = super().records(progress)
        if self.choice != "softmax":
            return records
        return records.assign(model=[axis_of(*pair) for pair in zip(records["model"], records["label"], strict=True)])

    def _run(self, progress: bool) -> Result:
        records = self.records(progress)
        table, compared = with_drops(ranked(records, self.axes), records), differences(records, self.axes)
        theirs = published.compare(table, self.dataset, self.grid, self.baseline)
        families = dict(zip(records["method"], records["family"], strict=True))
        looks = {"n_patches": self.grid**2, "columns": self.columns, "published": theirs, "score": named_score(records, "IDSDS")}
        draw = partial(plots.design_choice, table, compared, self.axes, families, **looks)
        tables = {"": table, "differences": compared, "published": theirs}
        if len(theirs):
            tables["published_differences"] = published_differences(self.axes)
        found = findings(self.choice, compared)
        return Result(self.stem, tables, Findings([*found.sentences, drops_said(table)], found.verdicts), draw, records)
