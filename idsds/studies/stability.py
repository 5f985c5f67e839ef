"""How far IDSDS and its ranking depend on what was chosen along the way: training seed, baseline, grid, number of images.

For each baseline and each grid the net is fine-tuned in-domain with that baseline and that grid, so that each score is in its own domain.
The claim under test is that of Hesse, Schaub-Meyer, Roth, NeurIPS 2024 (arXiv 2407.11910): training seeds and baselines give
consistent results.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import Field, PositiveInt, model_validator

from idsds.common.interventions import patch_size
from idsds.common.registry import UnknownNameError
from idsds.datasets.base import DATASETS
from idsds.evaluation.evaluate import evaluate
from idsds.statistics import nested_bootstrap
from idsds.statistics.intervals import percentile_ends, rng_for
from idsds.statistics.rankings import CHUNK, kendall, rank_agreement, rank_each, spearman, weighted_means
from idsds.studies.base import ModelName, RunSettings
from idsds.training.checkpoints import starts_from_package, trains_from_scratch
from idsds.training.recipes import BaselineName

#: The panels: what is varied, and what a variant is called.
KINDS = ("seed", "baseline", "grid", "images")
REFERENCE = "reference"


class StabilitySettings(RunSettings):
    """What ``params/*/stability.yaml`` may say.

    ``grid``, ``baseline`` and the first of ``seeds`` are the reference, from which one thing at a time is varied. ``variant_checkpoints``
    are in-domain weights of the variants, ``seed 1``, ``baseline blur`` or ``grid 8``, where the package does not train the net itself;
    ``checkpoints`` are those of the reference.
    """

    columns: Literal[1, 2] = 2  # width of the figure in columns of a paper
    models: Annotated[list[ModelName], Field(min_length=1, max_length=1)]
    seeds: Annotated[list[int], Field(min_length=2)]
    baselines: Annotated[list[BaselineName], Field(min_length=1)]
    grids: Annotated[list[PositiveInt], Field(min_length=1)]
    counts: Annotated[list[PositiveInt], Field(min_length=1)]
    variant_checkpoints: dict[str, str] = {}

    @model_validator(mode="after")
    def _variants_can_be_had(self) -> Self:
        side = DATASETS[self.dataset].image_size
        for grid in self.grids:
            patch_size(side, side, grid)
            if grid < 2:
                raise ValueError("grids: a rank correlation needs a grid of at least 2")
        for key, reference in (("baselines", self.baseline), ("grids", self.grid)):
            values = getattr(self, key)
            if twice := sorted({str(value) for value in values if values.count(value) > 1}):
                raise ValueError(f"{key} lists {', '.join(twice)} more than once")
            if reference not in values:
                raise ValueError(f"{key} lacks the reference {reference!r}: {values}")
        if too_many := [count for count in self.counts if not 2 <= count <= self.images]:
            raise ValueError(f"counts must lie between 2 and images={self.images}, not {too_many}")
        variants = [name for name in self.variants() if name != REFERENCE]
        for name in self.variant_checkpoints:
            if name not in variants:
                raise UnknownNameError("variant with a checkpoint", name, variants)
        missing = [name for name in variants if name not in self.variant_checkpoints]
        if missing and not (trains_from_scratch(self.models[0], self.dataset) or starts_from_package(self.models[0], self.dataset)):
            raise ValueError(f"variant_checkpoints: no in-domain weights of {self.models[0]!r} for {', '.join(map(repr, missing))}")
        return self

    def variants(self) -> dict[str, dict[str, Any]]:
        """By name what differs from the reference."""
        found: dict[str, dict[str, Any]] = {REFERENCE: {}}
        found |= {f"seed {seed}": {"seed": [seed]} for seed in self.seeds[1:]}
        found |= {f"baseline {name}": {"baseline": name} for name in self.baselines if name != self.baseline}
        return found | {f"grid {grid}": {"grid": grid} for grid in self.grids if grid != self.grid}

    def arguments(self, variant: str) -> dict[str, Any]:
        """The keyword arguments of :func:`idsds.evaluate` for one of :meth:`variants`."""
        values = {name: value for name, value in self.evaluate().items() if name in {*RunSettings.model_fields, "seed"}}
        values["seed"] = self.seeds[:1]
        if variant != REFERENCE:
            given = self.variant_checkpoints.get(variant)
            values["checkpoints"] = {self.models[0]: given} if given else {}
        return {**values, **self.variants()[variant], "output": f"{self.output}/{variant.replace(' ', '_')}"}


def vary(settings: StabilitySettings, *, progress: bool = True) -> pd.DataFrame:
    """Score the reference and every variant.

    Returns:
        Records of :func:`idsds.evaluate` with ``kind``, one of :data:`KINDS`, and ``variant``, the value it has: the reference is in all of
        the kinds, and of kind ``images`` are its first so many images.
    """
    found = {name: evaluate(**settings.arguments(name), progress=progress) for name in settings.variants()}
    parts = []
    for kind, values, reference in (
        ("seed", settings.seeds, settings.seeds[0]),
        ("baseline", settings.baselines, settings.baseline),
        ("grid", settings.grids, settings.grid),
    ):
        # The reference comes first, so that agreement is with it.
        for value in sorted(values, key=lambda value, reference=reference: value != reference):
            parts.append(found[REFERENCE if value == reference else f"{kind} {value}"].assign(kind=kind, variant=str(value)))
    order = list(dict.fromkeys(found[REFERENCE]["image_id"]))
    for count in sorted(settings.counts):
        parts.append(found[REFERENCE][found[REFERENCE]["image_id"].isin(order[:count])].assign(kind="images", variant=str(count)))
    return pd.concat(parts, ignore_index=True)


def cost(settings: StabilitySettings) -> pd.DataFrame:
    """What :func:`vary` will do: :func:`idsds.evaluate`'s plan for the reference and every variant."""
    plans = [
        evaluate(**settings.arguments(name), dry_run=settings.planning, progress=False).assign(variant=name) for name in settings.variants()
    ]
    table = pd.concat(plans, ignore_index=True)
    return table[["variant", *(name for name in table.columns if name != "variant")]]


def means(records: pd.DataFrame, **options: Any) -> pd.DataFrame:
    """Mean IDSDS of every method under every variant, with an interval over images; for kind ``seed`` also over seeds and images.

    Args:
        records: from :func:`vary`.
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
    """How far each variant ranks the methods as the reference does, without the controls, whose place agrees for free.

    For the number of images it is the agreement of random subsets of that size with the images that are not in them.

    Args:
        records: from :func:`vary`.
        draws: random subsets for each number of images.
        options: ``confidence``, ``resamples``, ``seed`` of :func:`idsds.statistics.rank_agreement`.

    Returns:
        As :func:`idsds.statistics.rank_agreement`, with ``kind``: pairs of the variants and, on the diagonal, random halves of the images.
        For kind ``images`` one row per number with ``first`` the number and ``second`` ``rest``.
    """
    records = records[records["family"] != "control"]
    parts = []
    for kind in KINDS[:3]:
        rows = records[records["kind"] == kind]
        parts.append(rank_agreement(rows, "variant", **options).assign(kind=kind))
    reference = records[(records["kind"] == "seed") & (records["variant"] == records["variant"].iloc[0])]
    for count in [int(name) for name in dict.fromkeys(records.loc[records["kind"] == "images", "variant"])]:
        parts.append(_subsets(reference, count, draws, **options).assign(kind="images"))
    table = pd.concat(parts, ignore_index=True)
    return table[["kind", *(name for name in table.columns if name != "kind")]]


def _subsets(records: pd.DataFrame, count: int, draws: int, confidence: float = 0.95, seed: int = 0, **_: Any) -> pd.DataFrame:
    """Agreement of random subsets of ``count`` images with the rest of the images; NaN where fewer than that are left."""
    scores = records.pivot_table(index="image_id", columns="method", values="score", aggfunc="mean", dropna=False).to_numpy()
    images, methods = scores.shape
    row: dict[str, Any] = {"model": records["model"].iloc[0], "first": str(count), "second": "rest", "methods": methods, "count": count}
    row |= {"interval": f"{100 * confidence:g} % percentiles over random subsets of the images"}
    found = {"tau": np.full(1, np.nan), "rho": np.full(1, np.nan)}
    if 2 * count <= images and methods > 1:
        rng, drawn_means = rng_for(seed, "subsets", images, count), []
        for start in range(0, draws, CHUNK):  # all at once would take gigabytes for 50,000 images
            chosen = rng.random((min(CHUNK, draws - start), images)).argsort(1) < count
            drawn_means.append([weighted_means(scores, part.astype(float)) for part in (chosen, ~chosen)])
        parts = [np.concatenate(side) for side in zip(*drawn_means, strict=True)]
        found = {"tau": kendall(*parts), "rho": spearman(*parts)}
    for name, drawn in found.items():
        (low,), (high,) = percentile_ends(drawn[:, None], confidence)
        row |= {name: float(np.nanmean(drawn)) if np.isfinite(drawn).any() else np.nan, f"{name}_low": low, f"{name}_high": high}
    return pd.DataFrame([row])


def sentences(table: pd.DataFrame, agreed: pd.DataFrame) -> list[str]:
    """What the numbers say about each panel; each number is computed.

    Args:
        table: from :func:`means`.
        agreed: from :func:`agreement`.
    """
    lines = []
    for kind in KINDS[:3]:
        rows = table[(table["kind"] == kind) & (table["variant"] != "all")]
        pairs = agreed[(agreed["kind"] == kind) & (agreed["first"] != agreed["second"])]
        if pairs.empty:
            continue
        means_of = rows.pivot(index="method", columns="variant", values="mean")
        spread = means_of.max(axis=1) - means_of.min(axis=1)
        consistent, worst = int((pairs["tau_low"] > 0).sum()), pairs.loc[pairs["tau"].idxmin()]
        alone = agreed[(agreed["kind"] == kind) & (agreed["first"] == agreed["second"])].set_index("first")["tau"]
        changed = int((pairs["tau_high"] < np.minimum(pairs["first"].map(alone), pairs["second"].map(alone))).sum())
        lines.append(
            f"{kind.capitalize()}s ({', '.join(dict.fromkeys(rows['variant']))}): in {consistent} of {len(pairs)} pairs the rankings agree"
            f" beyond chance, in {changed} less than two halves of the same images do; least for"
            f" {worst['first']} and {worst['second']}, Kendall's tau {worst['tau']:+.2f}"
            f" [{worst['tau_low']:+.2f}, {worst['tau_high']:+.2f}]. The mean IDSDS moves by up to {spread.max():.2f} ({spread.idxmax()}),"
            f" in the median by {spread.median():.2f}."
        )
    nested = table[table["variant"] == "all"].set_index("method")
    one = table[(table["kind"] == "seed") & (table["variant"] != "all")]
    first = one[one["variant"] == one["variant"].iloc[0]].set_index("method")
    ratio = ((nested["high"] - nested["low"]) / (first["high"] - first["low"])).median()
    lines.append(f"An interval that covers training seeds too is {ratio:.1f} times as wide as one over images alone (median over methods).")
    few = agreed[(agreed["kind"] == "images") & agreed["tau"].notna()]
    if len(few):
        ends = [f"{row['tau']:+.2f} [{row['tau_low']:+.2f}, {row['tau_high']:+.2f}] with {row['count']}" for _, row in few.iterrows()]
        lines.append(f"Images: a random subset ranks as the remaining images do with tau {'; '.join(ends)} images.")
    return lines


def headline(table: pd.DataFrame, agreed: pd.DataFrame) -> str:
    """What the figure shows, in a sentence of computed numbers."""
    pairs = agreed[(agreed["first"] != agreed["second"]) & agreed["kind"].isin(KINDS[:3])]
    least = pairs.loc[pairs.groupby("kind", sort=False)["tau"].idxmin()]
    listed = "; ".join(f"{row.kind}s {row.tau:+.2f} [{row.tau_low:+.2f}, {row.tau_high:+.2f}]" for row in least.itertuples())
    spread = table[table["variant"] == "all"]["seed_sd"].max()
    return (
        f"Least Kendall's tau between two rankings of {table['model'].iloc[0]}: {listed} (95 % over images)."
        f" Largest SD of a method's mean over training seeds: {spread:.3f}."
    )
