"""Robustness of attribution methods to rotations and photo filters.

Source: the robustness experiment "Don't Augment Me" of the xai-correlation study.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import pandas as pd
from pydantic import Field
from scipy import stats

from idsds import plots, published
from idsds.evaluation.plan import Target
from idsds.methods.maps import Channels
from idsds.protocols.robustness import ANGLES, FILTERS, MEASURES, Filters, Group
from idsds.statistics import paired_differences, rank, rank_agreement
from idsds.statistics.intervals import percentile_ends, rng_for, weights
from idsds.statistics.rankings import spearman, weighted_means
from idsds.statistics.scores import unit_of
from idsds.statistics.verdicts import verdicts
from idsds.studies.base import EvaluationStudy, Findings, Result, takes_folder
from idsds.studies.method_settings import MethodSettings
from idsds.studies.result import listed

IN_WORDS = {"ssim": "SSIM", "spearman": "Spearman", "top_intersection": "the top pixels"}
TIED = 1e-3  # methods within this distance of the best share its rank
AUGMENTATIONS: dict[str, list[str]] = {"rotations": [f"{angle:+.0f} degrees" for angle in ANGLES], "filters": list(FILTERS)}
# What the study found, by SSIM, among the methods that it printed.
MOST, LEAST = "the most robust", "the least robust"
CLAIMS = {MOST: "Guided Grad-CAM", LEAST: "Deconvolution"}


class AugmentationRobustness(MethodSettings, EvaluationStudy):
    """Compare the maps of an image before and after rotations and photo filters that leave the target's probability unchanged.

    ``data_range`` is SSIM's: one number for the whole experiment, one by method, as in the study, or None for the range of each pair of
    maps. ``channels`` is ``summed``, or ``each``: SSIM is the mean over a map's channels, as in the study. ``target`` is the class
    explained, for the original image: its ``label``, or the model's ``prediction``, as in the study. ``method_settings`` are options of
    methods, by name.
    """

    PLAN_BY: ClassVar[tuple[str, ...]] = ("model", "label")

    groups: Annotated[list[Group], Field(min_length=1)] = ["rotations", "filters"]
    filters: Filters = "torchvision"
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.05
    top_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    data_range: Annotated[float, Field(gt=0)] | dict[str, Annotated[float, Field(gt=0)]] | None = None
    channels: Channels = "summed"
    target: Target = "label"

    @property
    def ssim_range(self) -> str:
        """The data range of SSIM in words."""
        if isinstance(self.data_range, dict):
            return "one number by method"
        return "of each pair of maps" if self.data_range is None else f"{self.data_range:g} for all maps"

    def runs(self) -> dict[str, dict[str, Any]]:
        """One run per group of augmentations."""
        own = {name: getattr(self, name) for name in ("filters", "threshold", "top_share", "data_range")}
        own["similarity"] = "ssim_by_channel" if self.channels == "each" else "ssim"
        shared = {"protocol": "augmentation_robustness", "methods": self.with_settings(), "target": self.target, **own}
        return {group: self.arguments(**shared, kind=group, output=f"{self.output}/{group}") for group in self.groups}

    def _run(self, progress: bool) -> Result:
        study = published.xai_correlation_ssim()
        similarity = similarities(self.records(progress), self.threshold, self.ssim_range)
        table = means_of(similarity)
        claims, agreement = judged(similarity, list(dict.fromkeys(study["method"]))), agreements(similarity, study)
        draw = partial(plots.augmentation_robustness, table, study, columns=self.columns)
        tables = {"": table, "claims": claims, "agreement": agreement}
        shown = claims[["model", "group", "claim", "method", "rival", "difference", "low", "high", "count", "verdict"]]
        return Result(self.stem, tables, Findings(sentences(table), shown), draw, similarity)


@takes_folder
def similarities(records: pd.DataFrame, threshold: float, ssim_range: str) -> pd.DataFrame:
    """Return every similarity of every image.

    Args:
        records: of the protocol ``augmentation_robustness``, ``label`` is the group of augmentations.
        ssim_range: the data range of SSIM in words.

    Returns:
        One row per model, method, seed, image, augmentation (and ``all rotations``, ``all filters``: the mean over those that count) and
        measure: ``score``, NaN where it does not count; ``changed``, whether the augmentation (one of them) changed the image; ``stayed``,
        whether it (one of them) did so and left the target's probability unchanged; ``data_range`` of SSIM in words (empty for the other
        measures); ``family``; ``belongs``, the image's own group where the data set has some, such as the photo of a crop.
    """
    parts = []
    for group, rows in records.groupby("label", sort=False):
        shifts = pd.DataFrame(rows["shifts"].tolist(), index=rows.index).astype(float)  # NaN where the image is left as it is
        belongs = {"belongs": rows["group"]} if unit_of(rows) == "group" else {}
        plain = rows[["model", "method", "family", "seed", "image_id"]].assign(group=group, **belongs)
        names = [*AUGMENTATIONS[str(group)], f"all {group}"]
        for number, name in enumerate(names):
            whole = number == len(names) - 1
            of_these = shifts if whole else shifts[[number]]
            facts = {"augmentation": name, "changed": of_these.notna().any(axis=1), "stayed": (of_these < threshold).any(axis=1)}
            for measure in MEASURES:
                each = rows[measure] if whole else rows[f"{measure}_each"].str[number]
                data_range = ssim_range if measure == "ssim" else ""
                parts.append(plain.assign(**facts, measure=measure, data_range=data_range, score=each.astype(float)))
    return pd.concat(parts, ignore_index=True)


def means_of(similarity: pd.DataFrame) -> pd.DataFrame:
    """Return the averages over images, with their intervals and counts.

    Returns:
        One row per model, method, augmentation and measure: ``mean``, ``low``, ``high``, ``count`` of the images that count, ``nan`` of
        those that do not (they were not changed, their target's probability moved by the threshold or more, or their map is constant);
        ``images`` in all, ``changed``, how many the augmentation changed, and ``stayed``, how many of these kept the target's probability
        (an image counts once per training seed); ``counted``, the fraction of ``stayed`` in all; ``data_range``, ``family``, ``interval``,
        what it covers.
    """
    keys = ["group", "augmentation", "measure"]
    parts = []
    for key, rows in similarity.groupby(keys, sort=False):
        own = ["model", "method", "seed", "image_id", "score", *(["group"] if "belongs" in rows else [])]
        table = rank(_of_images(rows)[own], nested=True)
        by_model = rows[rows["method"] == rows.groupby("model")["method"].transform("first")].groupby("model")
        counts = by_model[["changed", "stayed"]].sum().assign(images=by_model.size())
        families = dict(zip(rows["method"], rows["family"], strict=True))
        facts = {**dict(zip(keys, key, strict=True)), "data_range": rows["data_range"].iloc[0], "family": table["method"].map(families)}
        parts.append(table.assign(**facts).join(counts, on="model"))
    found = pd.concat(parts, ignore_index=True)
    found["counted"] = found["stayed"] / found["images"]
    for name in ("method", "model"):  # in the order of the settings; the sorts are stable
        order = {each: number for number, each in enumerate(dict.fromkeys(similarity[name]))}
        found = found.sort_values(name, key=lambda names, order=order: names.map(order), kind="stable")
    columns = ["model", "method", *keys, "mean", "low", "high", "count", "nan", "images", "changed", "stayed", "counted"]
    return found[[*columns, "data_range", "family", "interval"]].reset_index(drop=True)


def judged(similarity: pd.DataFrame, printed: Sequence[str], confidence: float = 0.95) -> pd.DataFrame:
    """Test both halves of the study's claim: by SSIM, over all augmentations of a group, among the methods that it printed.

    Args:
        printed: the study's methods; those not measured here are ignored.
        confidence: confidence for all rivals together (Bonferroni).

    Returns:
        One row per model, group and half: ``claim`` (:data:`MOST` or :data:`LEAST`), ``method`` that it is about, ``rival``, the other
        method that contradicts it most, ``difference`` between the two on the same images, positive where it favours the claim, with
        ``low`` and ``high``; ``count`` and ``nan`` of these images; ``rivals``, how many; ``verdict``: ``supported`` where the intervals of
        all rivals are above 0, ``contradicted`` where one is below, else ``not supported``; ``interval``, what it covers.
    """
    columns = ["model", "group", "claim", "method", "rival", "difference", "low", "high", "count", "nan", "rivals", "verdict", "interval"]
    rows = []
    whole = similarity[(similarity["measure"] == "ssim") & similarity["augmentation"].str.startswith("all ")]
    for (model, group), part in whole.groupby(["model", "group"], sort=False):
        present = set(part["method"])
        for claim, method in CLAIMS.items():
            rivals = [name for name in printed if name != method and name in present]
            if method not in present or not rivals:
                continue
            pairs = [(method, name) if claim == MOST else (name, method) for name in rivals]
            part_of_all = 1 - (1 - confidence) / len(rivals)
            table = paired_differences(_of_images(part), pairs=pairs, confidence=part_of_all, permutations=1, nested=True)
            table = table.assign(rival=table["b" if claim == MOST else "a"])
            verdict = verdicts(table["low"].min(skipna=False), table["high"].min()).item()
            worst = table.loc[table["difference"].fillna(np.inf).idxmin()]
            facts = {"model": model, "group": group, "claim": claim, "method": method, "rivals": len(rivals), "verdict": verdict}
            rows.append({**worst[["rival", "difference", "low", "high", "count", "nan", "interval"]], **facts})
    return pd.DataFrame(rows, columns=columns)


def agreements(similarity: pd.DataFrame, study: pd.DataFrame) -> pd.DataFrame:
    """Return how well SSIM's order of the methods (without controls) agrees with that of the other measures and of the study's own SSIM.

    Args:
        study: from :func:`idsds.published.xai_correlation_ssim`; its values are held fixed.

    Returns:
        One row per model, group and ``other`` (a measure, or ``published``): Spearman's ``rho`` of the methods' means over all
        augmentations, ``low`` and ``high`` (95 % percentile bootstrap over images), ``p``, two-sided, by permutation of the methods;
        ``methods`` and ``count`` of images. Nothing for fewer than three methods.
    """
    rows = []
    whole = similarity[similarity["augmentation"].str.startswith("all ") & (similarity["family"] != "control")]
    for (model, group), part in whole.groupby(["model", "group"], sort=False):
        means = part.pivot_table(index="method", columns="measure", values="score", sort=False).dropna()
        facts = {"model": model, "group": group, "interval": "95 % percentile bootstrap over images"}
        if len(means) > 2:
            table = rank_agreement(_of_images(part), "measure", list(means.index), nested=True)
            for row in table[(table["first"] == "ssim") & (table["second"] != "ssim")].itertuples():
                p = _pairing_p(means["ssim"], means[row.second])
                found = {"rho": row.rho, "low": row.rho_low, "high": row.rho_high, "p": p, "methods": row.methods, "count": row.count}
                rows.append({**facts, "other": row.second, **found, "interval": row.interval})
        theirs = study[study["augmentation"] == f"all {group}"].set_index("method")["ssim"].dropna()
        shared = [name for name in means.index if name in theirs.index]
        if len(shared) > 2:
            ours = part[part["measure"] == "ssim"].pivot_table(index="image_id", columns="method", values="score")[shared].sort_index()
            own = _of_images(part).drop_duplicates("image_id").set_index("image_id", drop=False)
            group = np.unique(own.loc[ours.index, unit_of(own)].to_numpy(dtype=str), return_inverse=True)[1]
            rows.append({**facts, "other": "published", **_beside_fixed(ours, theirs[shared].to_numpy(), group)})
    return pd.DataFrame(rows, columns=["model", "group", "other", "rho", "low", "high", "p", "methods", "count", "interval"])


def _of_images(similarity: pd.DataFrame) -> pd.DataFrame:
    """Return the table for the statistics: ``group`` is that of the images, not of the augmentations."""
    return similarity.drop(columns="group").rename(columns={"belongs": "group"})


def _beside_fixed(scores: pd.DataFrame, fixed: np.ndarray, group: np.ndarray) -> dict[str, Any]:
    """Spearman's rho between the columns' means over images (images, methods) and fixed numbers (methods,), ``group`` (images,)."""
    images, values, units = len(scores), scores.to_numpy(), int(group.max()) + 1
    seen = weighted_means(values, np.ones((1, images)))
    chunks = weights(rng_for(0, "images", units), units, 2_000)
    drawn = np.concatenate([spearman(found := weighted_means(values, w[:, group]), np.tile(fixed, (len(found), 1))) for w in chunks])
    (low,), (high,) = percentile_ends(drawn[:, None], 0.95)
    facts = {"rho": float(spearman(seen, fixed[None])[0]), "low": low, "high": high}
    return {**facts, "p": _pairing_p(seen[0], fixed), "methods": len(fixed), "count": images}


def _pairing_p(first: Any, second: Any) -> float:
    """Return the two-sided permutation p of Spearman's rho (9,999 random permutations from eight methods on)."""
    ranks, other = stats.rankdata(first), stats.rankdata(second)
    tested = stats.permutation_test((ranks,), lambda moved: np.corrcoef(moved, other)[0, 1], permutation_type="pairings", rng=0)
    return float(tested.pvalue)


def sentences(table: pd.DataFrame) -> list[str]:
    """State how many images are judged, and the most robust methods of each model and group by each measure, with the mean."""
    whole = table[table["augmentation"].str.startswith("all ")]
    counts = whole.drop_duplicates(["model", "group"])
    kept = listed(f"{row.stayed} of {row.images} ({row.group}, {row.model})" for row in counts.itertuples())
    told = [f"Images that keep the target's probability under an augmentation that changes them: {kept}."]
    for group, rows in whole[whole["mean"].notna()].groupby("group", sort=False):
        best = listed(
            f"{listed(_most_robust(part))} on {model} by {IN_WORDS[measure]} ({part['mean'].max():.2f})"
            for (model, measure), part in rows.groupby(["model", "measure"], sort=False)
        )
        told.append(f"Most robust to {group}: {best}.")
    return told


def _most_robust(rows: pd.DataFrame) -> list[str]:
    """Return the methods within :data:`TIED` of the highest mean, controls first: a tie with noise is not a merit."""
    top = rows[rows["mean"] >= rows["mean"].max() - TIED]
    return list(top.assign(control=top["family"] == "control").sort_values(["control", "mean"], ascending=False, kind="stable")["method"])
