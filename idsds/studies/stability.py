"""How much IDSDS and its ranking depend on training seed, baseline, grid and number of images.

For each baseline and each grid the net is fine-tuned in-domain with it, so that every score is in-domain. The claim under test is that of
Hesse, Schaub-Meyer, Roth, NeurIPS 2024 (arXiv 2407.11910): training seeds and baselines give consistent results.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Self

import numpy as np
import pandas as pd
from pydantic import Field, PositiveInt, model_validator

from idsds import plots
from idsds.common.registry import check_names
from idsds.statistics import nested_bootstrap
from idsds.statistics.intervals import percentile_ends, rng_for
from idsds.statistics.rankings import rank_agreement, rank_each, split_agreement
from idsds.statistics.scores import unit_of
from idsds.statistics.verdicts import verdicts
from idsds.studies.base import EvaluationStudy, Findings, ModelName, Result, check_grids, named_score
from idsds.studies.rank_methods import drops_said, with_drops
from idsds.training.checkpoints import starts_from_package, trains_from_scratch
from idsds.training.recipes import BaselineName

#: The panels: the varied setting, and the name of a variant.
KINDS = ("seed", "baseline", "grid", "images")
REFERENCE = "reference"


def means(records: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Return the mean IDSDS of every method under every variant, with an interval over images; for ``seed`` also over seeds and images.

    Args:
        options: ``confidence``, ``resamples``, ``seed`` of :func:`idsds.rank`.

    Returns:
        As :func:`idsds.statistics.rank_each`, with ``kind`` and ``variant``; rows with variant ``all`` are those of
        :func:`idsds.nested_bootstrap` over all training seeds, with ``seed_sd``, the standard deviation of the seeds' means.
    """
    parts = [rank_each(rows, "variant", **options).assign(kind=kind) for kind, rows in records.groupby("kind", sort=False)]
    nested = nested_bootstrap(records[records["kind"] == "seed"].drop(columns=["kind", "variant"]), **options)
    parts.append(nested.assign(kind="seed", variant="all"))
    names = ["kind", "variant", "model", "method", "mean", "low", "high", "count", "nan", "place", "place_low", "place_high", "seed_sd"]
    return pd.concat(parts, ignore_index=True)[[*names, "interval"]]


def agreement(records: pd.DataFrame, draws: int = 1_000, **options: Any) -> pd.DataFrame:
    """Measure how well each variant's ranking agrees with the reference's, without the controls, whose rank agrees trivially.

    Args:
        draws: number of random subsets for each number of images.
        options: ``confidence``, ``resamples``, ``seed`` of :func:`idsds.statistics.rank_agreement`.

    Returns:
        As :func:`idsds.statistics.rank_agreement`, with ``kind``: pairs of the variants and, on the diagonal, random halves of the images.
        For kind ``images`` one row per number, ``first``: how well random subsets of that size agree with the other images (``rest``).
    """
    records = records[records["family"] != "control"]
    parts = [rank_agreement(records[records["kind"] == kind], "variant", **options).assign(kind=kind) for kind in KINDS[:3]]
    reference = records[(records["kind"] == "seed") & (records["variant"] == records["variant"].iloc[0])]
    for count in [int(name) for name in dict.fromkeys(records.loc[records["kind"] == "images", "variant"])]:
        parts.append(_subsets(reference, count, draws, **options).assign(kind="images"))
    table = pd.concat(parts, ignore_index=True)
    return table[["kind", *(name for name in table.columns if name != "kind")]]


def _subsets(records: pd.DataFrame, count: int, draws: int, confidence: float = 0.95, seed: int = 0, **_: Any) -> pd.DataFrame:
    """Measure the agreement of random subsets of about ``count`` images, in whole groups, with the others; NaN if fewer are left."""
    table = records.pivot_table(index="image_id", columns="method", values="score", aggfunc="mean", dropna=False)
    of_image = records.drop_duplicates("image_id").set_index("image_id", drop=False)[unit_of(records)]
    group = np.unique(of_image.loc[table.index].to_numpy(dtype=str), return_inverse=True)[1]
    scores, units, rng = table.to_numpy(), int(group.max()) + 1, rng_for(seed, "subsets", len(table), count)
    row: dict[str, Any] = {"model": records["model"].iloc[0], "first": str(count), "second": "rest", "methods": scores.shape[1]}
    row |= {"count": count, "interval": f"{100 * confidence:g} % percentiles over random subsets of the images"}
    chosen = max(1, round(count * units / len(scores))) if 2 * count <= len(scores) else 0
    for name, (mean, drawn) in zip(("tau", "rho"), split_agreement(scores, group, chosen, units, draws, rng), strict=True):
        (low,), (high,) = percentile_ends(drawn[:, None], confidence)
        row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
    return pd.DataFrame([row])


def findings(table: pd.DataFrame, agreed: pd.DataFrame) -> Findings:
    """Judge each pair of variants by whether their rankings agree beyond chance, and state how much training seeds matter."""
    agreed = agreed[agreed["kind"].isin(KINDS[:3])]
    pairs = agreed[agreed["first"] != agreed["second"]].rename(columns={"tau_low": "low", "tau_high": "high"})
    least = pairs.loc[pairs.groupby("kind", sort=False)["tau"].idxmin()]
    lowest = "; ".join(f"{row.kind}s {row.tau:+.2f} [{row.low:+.2f}, {row.high:+.2f}]" for row in least.itertuples())
    halves = agreed[agreed["first"] == agreed["second"]].set_index(["kind", "first"])["tau"]
    alone = [min(halves[row.kind, row.first], halves[row.kind, row.second]) for row in pairs.itertuples()]
    claims = pairs.assign(verdict=verdicts(pairs["low"], pairs["high"]), below_halves=pairs["high"] < np.array(alone))
    every = table[table["variant"] == "all"].set_index("method")
    one = table[(table["kind"] == "seed") & (table["variant"] == table["variant"].iloc[0])].set_index("method")
    ratio = ((every["high"] - every["low"]) / (one["high"] - one["low"])).median()
    sentences = [
        f"Lowest Kendall's tau between two rankings of {table['model'].iloc[0]}: {lowest} (95 % over images).",
        f"Between training seeds a method's mean has a standard deviation of at most {every['seed_sd'].max():.3f}; an interval that covers"
        f" them too is {ratio:.1f} times as wide as one over images alone (median over methods).",
    ]
    names = {"kind": "varied", "first": "ranking with", "second": "ranks alike with", "below_halves": "less than halves of the images do"}
    columns = ["kind", "first", "second", "tau", "low", "high", "verdict", "below_halves"]
    return Findings(sentences, claims[columns].rename(columns=names))


def spreads(table: pd.DataFrame) -> pd.DataFrame:
    """Return the range of each method's mean (highest minus lowest) over the variants of each kind, from :func:`means`."""
    rows = table[table["kind"].isin(KINDS[:3]) & (table["variant"] != "all")]
    mean = rows.groupby(["kind", "method"], sort=False)["mean"]
    return (mean.max() - mean.min()).rename("spread").reset_index()


class Stability(EvaluationStudy):
    """Vary one setting at a time: training seed, baseline, grid or number of images.

    ``grid``, ``baseline`` and the first of ``seeds`` are the reference. ``variant_checkpoints`` are in-domain weights of the variants,
    ``seed 1``, ``baseline blur`` or ``grid 8``, if the package does not train the net itself; ``checkpoints`` are the reference's.
    """

    SCOPED = False

    PLAN_BY = ("label",)

    models: Annotated[list[ModelName], Field(min_length=1, max_length=1)]
    seeds: Annotated[list[int], Field(min_length=2)]
    baselines: Annotated[list[BaselineName], Field(min_length=1)]
    grids: Annotated[list[PositiveInt], Field(min_length=1)]
    counts: Annotated[list[PositiveInt], Field(min_length=1)]
    variant_checkpoints: dict[str, str] = {}

    @model_validator(mode="after")
    def _variants_can_be_had(self) -> Self:
        check_grids(self.dataset, *self.grids)
        if min(self.grids) < 2:
            raise ValueError("grids: a rank correlation needs a grid of at least 2")
        for key, reference in (("baselines", self.baseline), ("grids", self.grid)):
            if reference not in (values := getattr(self, key)):
                raise ValueError(f"{key} lacks the reference {reference!r}: {values}")
        if too_many := [count for count in self.counts if not 2 <= count <= self.images]:
            raise ValueError(f"counts must lie between 2 and images={self.images}, not {too_many}")
        variants = list(self.variants())[1:]  # without the reference
        check_names("variant with a checkpoint", self.variant_checkpoints, variants)
        missing = [name for name in variants if name not in self.variant_checkpoints]
        if missing and not (trains_from_scratch(self.models[0], self.dataset) or starts_from_package(self.models[0], self.dataset)):
            raise ValueError(f"variant_checkpoints: no in-domain weights of {self.models[0]!r} for {', '.join(map(repr, missing))}")
        return self

    def variants(self) -> dict[str, dict[str, Any]]:
        """Return by name what differs from the reference."""
        found: dict[str, dict[str, Any]] = {REFERENCE: {}}
        found |= {f"seed {seed}": {"seed": [seed]} for seed in self.seeds[1:]}
        found |= {f"baseline {name}": {"baseline": name} for name in self.baselines if name != self.baseline}
        return found | {f"grid {grid}": {"grid": grid} for grid in self.grids if grid != self.grid}

    def runs(self) -> dict[str, dict[str, Any]]:
        """The reference and each variant."""
        runs = {}
        for name, changes in self.variants().items():
            if name != REFERENCE:
                given = self.variant_checkpoints.get(name)
                changes["checkpoints"] = {self.models[0]: given} if given else {}
            runs[name] = self.arguments(**{"seed": self.seeds[:1], **changes, "output": f"{self.output}/{name.replace(' ', '_')}"})
        return runs

    def records(self, progress: bool = True) -> pd.DataFrame:
        """Score the reference and every variant.

        Returns:
            Records of :func:`idsds.evaluate` with ``kind``, one of :data:`KINDS`, and ``variant``, the value it has: the reference is in
            all of the kinds, and kind ``images`` takes the beginning of its images.
        """
        found = {name: rows.drop(columns="label") for name, rows in super().records(progress).groupby("label", sort=False)}
        reference, parts = found[REFERENCE], []
        chosen = {"seed": (self.seeds, self.seeds[0]), "baseline": (self.baselines, self.baseline), "grid": (self.grids, self.grid)}
        for kind, (values, own) in chosen.items():
            for value in (own, *(value for value in values if value != own)):  # the reference first, so that agreement is with it
                parts.append(found[REFERENCE if value == own else f"{kind} {value}"].assign(kind=kind, variant=str(value)))
        order = list(dict.fromkeys(reference["image_id"]))
        for count in sorted(self.counts):
            parts.append(reference[reference["image_id"].isin(order[:count])].assign(kind="images", variant=str(count)))
        return pd.concat(parts, ignore_index=True)

    def _run(self, progress: bool) -> Result:
        records = self.records(progress)
        every = records[records["kind"] == "seed"].assign(variant="all")
        table = with_drops(means(records), pd.concat([records, every]), ["kind", "variant"])
        agreed = agreement(records)
        families = dict(zip(records["method"], records["family"], strict=True))
        draw = partial(plots.stability, table, agreed, families, score=named_score(records, "IDSDS"), columns=self.columns)
        found = findings(table, agreed)
        said = Findings([*found.sentences, drops_said(table[table["variant"] == "all"])], found.verdicts)
        return Result(self.stem, {"": table, "agreement": agreed, "spreads": spreads(table)}, said, draw, records)
