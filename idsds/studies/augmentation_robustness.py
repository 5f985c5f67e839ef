"""Robustness of attribution methods to rotations and photo filters: what :func:`idsds.plots.augmentation_robustness` draws.

Source: the robustness experiment "Don't Augment Me" of the xai-correlation study.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, get_args

import numpy as np
import pandas as pd
from pydantic import Field
from scipy import stats

from idsds.evaluation.evaluate import evaluate
from idsds.protocols.robustness import ANGLES, FILTERS, Filters, Group, Similarity
from idsds.statistics import paired_differences, rank, rank_agreement
from idsds.statistics.intervals import percentile_ends, rng_for, weights
from idsds.statistics.rankings import spearman, weighted_means
from idsds.studies.base import RunSettings

MEASURES = get_args(Similarity)
IN_WORDS = {"ssim": "SSIM", "spearman": "Spearman", "top_intersection": "the top pixels"}
TIED = 1e-3  # of a measure: methods that are no farther below the best share its place
AUGMENTATIONS: dict[str, list[str]] = {"rotations": [f"{angle:+.0f} degrees" for angle in ANGLES], "filters": list(FILTERS)}
# What the study found, by SSIM, among the methods that it printed.
MOST, LEAST = "the most robust", "the least robust"
CLAIMS = {MOST: "Guided Grad-CAM", LEAST: "Deconvolution"}


class AugmentationSettings(RunSettings):
    """What the notebook ``augmentation_robustness`` takes: a run, and the augmentations.

    ``data_range`` is that of SSIM: one number for the whole experiment, as in the study, or None for each pair of maps its own.
    """

    groups: Annotated[list[Group], Field(min_length=1)] = ["rotations", "filters"]
    filters: Filters = "torchvision"
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.05
    top_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    data_range: Annotated[float, Field(gt=0)] | None = None

    @property
    def ssim_range(self) -> str:
        """In words, the data range of SSIM."""
        return "of each pair of maps" if self.data_range is None else f"{self.data_range:g} for all maps"

    def runs(self) -> list[dict[str, Any]]:
        """What to call :func:`idsds.evaluate` with, once per group of augmentations."""
        given = {**self.evaluate(), "protocol": "augmentation_robustness"}
        groups = given.pop("groups")
        return [{**given, "group": group, "output": f"{self.output}/{group}"} for group in groups]


def cost(settings: AugmentationSettings) -> pd.DataFrame:
    """What the run will do, one row per model, seed, group of augmentations and shared computation."""
    return pd.concat([evaluate(**run, dry_run=settings.planning).assign(group=run["group"]) for run in settings.runs()], ignore_index=True)


def measure(settings: AugmentationSettings, published: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Do the runs, or read what is there.

    Args:
        settings: validated.
        published: from :func:`idsds.published.xai_correlation_ssim`.

    Returns:
        The means (:func:`means_of`), the study's claim (:func:`verdicts`) and how far the rankings agree (:func:`agreements`).
    """
    likeness = likenesses(settings)
    printed = list(dict.fromkeys(published["method"]))
    return means_of(likeness), verdicts(likeness, printed), agreements(likeness, published)


def likenesses(settings: AugmentationSettings) -> pd.DataFrame:
    """Every likeness of every image.

    Returns:
        One row per model, method, seed, image, augmentation (and ``all rotations``, ``all filters``: the mean over those that count) and
        measure: ``score``, NaN where it does not count; ``changed``, whether the augmentation (one of them) changed the image; ``stayed``,
        whether it (one of them) did so and left the target's probability alone; ``data_range`` of SSIM in words (empty for the other
        measures); ``family``.
    """
    parts = []
    for run in settings.runs():
        records = evaluate(**run)
        shifts = pd.DataFrame(records["shifts"].tolist(), index=records.index).astype(float)  # NaN where the image is left as it is
        plain = records[["model", "method", "family", "seed", "image_id"]].assign(group=run["group"])
        names = [*AUGMENTATIONS[run["group"]], f"all {run['group']}"]
        for number, name in enumerate(names):
            whole = number == len(names) - 1
            of_these = shifts if whole else shifts[[number]]
            facts = {"augmentation": name, "changed": of_these.notna().any(axis=1), "stayed": (of_these < settings.threshold).any(axis=1)}
            for measure_name in MEASURES:
                each = records[measure_name] if whole else records[f"{measure_name}_each"].str[number]
                data_range = settings.ssim_range if measure_name == "ssim" else ""
                parts.append(plain.assign(**facts, measure=measure_name, data_range=data_range, score=each.astype(float)))
    return pd.concat(parts, ignore_index=True)


def means_of(likeness: pd.DataFrame) -> pd.DataFrame:
    """Averages over images, with their intervals and the counts behind them.

    Args:
        likeness: from :func:`likenesses`.

    Returns:
        One row per model, method, augmentation and measure: ``mean``, ``low``, ``high``, ``count`` of the images that count, ``nan`` of
        those that do not (they were not changed, their target's probability moved by the threshold or more, or their map is constant);
        ``images`` in all, ``changed``, how many the augmentation changed, and ``stayed``, how many of these kept the target's probability
        (an image counts once per training seed); ``counted``, the share of ``stayed`` in all; ``data_range``, ``family`` and ``interval``,
        what it covers.
    """
    keys = ["group", "augmentation", "measure"]
    parts = []
    for key, rows in likeness.groupby(keys, sort=False):
        table = rank(rows[["model", "method", "seed", "image_id", "score"]])
        by_model = rows[rows["method"] == rows.groupby("model")["method"].transform("first")].groupby("model")
        counts = by_model[["changed", "stayed"]].sum().assign(images=by_model.size())
        families = dict(zip(rows["method"], rows["family"], strict=True))
        facts = {**dict(zip(keys, key, strict=True)), "data_range": rows["data_range"].iloc[0], "family": table["method"].map(families)}
        parts.append(table.assign(**facts).join(counts, on="model"))
    found = pd.concat(parts, ignore_index=True)
    found["counted"] = found["stayed"] / found["images"]
    for name in ("method", "model"):  # in the order of the settings; the sorts are stable
        order = {each: number for number, each in enumerate(dict.fromkeys(likeness[name]))}
        found = found.sort_values(name, key=lambda names, order=order: names.map(order), kind="stable")
    columns = ["model", "method", *keys, "mean", "low", "high", "count", "nan", "images", "changed", "stayed", "counted"]
    return found[[*columns, "data_range", "family", "interval"]].reset_index(drop=True)


def verdicts(likeness: pd.DataFrame, printed: Sequence[str], confidence: float = 0.95) -> pd.DataFrame:
    """Both halves of the study's claim put to the test: by SSIM, over all augmentations of a group, among the methods that it printed.

    Args:
        likeness: from :func:`likenesses`.
        printed: the study's methods; those that were not measured here take no part.
        confidence: of all rivals together (Bonferroni).

    Returns:
        One row per model, group and half: ``claim`` (:data:`MOST` or :data:`LEAST`), ``method`` of which it says so, ``rival``, the other
        method that speaks most against it, ``difference`` between the two on the same images, positive where it favours the claim, with
        ``low`` and ``high``; ``count`` and ``nan`` of these images; ``rivals``, how many; ``verdict``: ``shows`` where the intervals of all
        rivals are above 0, ``reversed`` where one is below, else ``undecided``; ``interval``, what it covers.
    """
    columns = ["model", "group", "claim", "method", "rival", "difference", "low", "high", "count", "nan", "rivals", "verdict", "interval"]
    rows = []
    whole = likeness[(likeness["measure"] == "ssim") & likeness["augmentation"].str.startswith("all ")]
    for (model, group), part in whole.groupby(["model", "group"], sort=False):
        present = set(part["method"])
        for claim, method in CLAIMS.items():
            rivals = [name for name in printed if name != method and name in present]
            if method not in present or not rivals:
                continue
            pairs = [(method, name) if claim == MOST else (name, method) for name in rivals]
            part_of_all = 1 - (1 - confidence) / len(rivals)
            table = paired_differences(part.drop(columns="group"), pairs=pairs, confidence=part_of_all, permutations=1)
            table = table.assign(rival=table["b" if claim == MOST else "a"])
            verdict = "shows" if (table["low"] > 0).all() else "reversed" if (table["high"] < 0).any() else "undecided"
            worst = table.loc[table["difference"].fillna(np.inf).idxmin()]
            facts = {"model": model, "group": group, "claim": claim, "method": method, "rivals": len(rivals), "verdict": verdict}
            rows.append({**worst[["rival", "difference", "low", "high", "count", "nan", "interval"]], **facts})
    return pd.DataFrame(rows, columns=columns)


def agreements(likeness: pd.DataFrame, published: pd.DataFrame, resamples: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """How alike SSIM orders the methods (controls aside) and the other measures do, and how alike the study's own SSIM does.

    Args:
        likeness: from :func:`likenesses`.
        published: from :func:`idsds.published.xai_correlation_ssim`; its values are held fixed.
        resamples, seed: of the bootstrap over images.

    Returns:
        One row per model, group and ``other`` (a measure, or ``published``): Spearman's ``rho`` of the methods' means over all
        augmentations, ``low`` and ``high`` (95 % percentile bootstrap over images), ``p``, two-sided, were any pairing of the methods as
        likely; ``methods`` and ``count`` of images. Nothing for fewer than three methods.
    """
    rows = []
    whole = likeness[likeness["augmentation"].str.startswith("all ") & (likeness["family"] != "control")]
    for (model, group), part in whole.groupby(["model", "group"], sort=False):
        means = part.pivot_table(index="method", columns="measure", values="score", sort=False).dropna()
        facts = {"model": model, "group": group, "interval": "95 % percentile bootstrap over images"}
        if len(means) > 2:
            table = rank_agreement(part, "measure", list(means.index), resamples=resamples, seed=seed)
            for row in table[(table["first"] == "ssim") & (table["second"] != "ssim")].itertuples():
                p = _pairing_p(means["ssim"], means[row.second])
                found = {"rho": row.rho, "low": row.rho_low, "high": row.rho_high, "p": p, "methods": row.methods, "count": row.count}
                rows.append({**facts, "other": row.second, **found})
        theirs = published[published["augmentation"] == f"all {group}"].set_index("method")["ssim"].dropna()
        shared = [name for name in means.index if name in theirs.index]
        if len(shared) > 2:
            ours = part[part["measure"] == "ssim"].pivot_table(index="image_id", columns="method", values="score")[shared].sort_index()
            rows.append({**facts, "other": "published", **_beside_fixed(ours, theirs[shared].to_numpy(), resamples, seed)})
    return pd.DataFrame(rows, columns=["model", "group", "other", "rho", "low", "high", "p", "methods", "count", "interval"])


def _beside_fixed(scores: pd.DataFrame, fixed: np.ndarray, resamples: int, seed: int) -> dict[str, Any]:
    """Spearman's rho between the columns' means over images (images, methods) and fixed numbers (methods,)."""
    images, values = len(scores), scores.to_numpy()
    seen = weighted_means(values, np.ones((1, images)))
    chunks = weights(rng_for(seed, "images", images), images, resamples)
    drawn = np.concatenate([spearman(found := weighted_means(values, w), np.tile(fixed, (len(found), 1))) for w in chunks])
    (low,), (high,) = percentile_ends(drawn[:, None], 0.95)
    facts = {"rho": float(spearman(seen, fixed[None])[0]), "low": low, "high": high}
    return {**facts, "p": _pairing_p(seen[0], fixed), "methods": len(fixed), "count": images}


def _pairing_p(first: Any, second: Any) -> float:
    """Two-sided p of Spearman's rho over all pairings (a random 9,999 of them from eight methods on)."""
    other = stats.rankdata(second)

    def rho(ranks: np.ndarray) -> float:
        return np.corrcoef(ranks, other)[0, 1]

    return float(stats.permutation_test((stats.rankdata(first),), rho, permutation_type="pairings", rng=0).pvalue)


def _best(values: pd.Series, control: dict[str, bool]) -> str:
    """The methods at the top, those within :data:`TIED` of it as well, controls first: what ties with noise is not robust by merit."""
    top = values.index[values >= values.max() - TIED]
    return ", ".join(sorted(top, key=lambda name: not control[name]))


def findings(table: pd.DataFrame, claims: pd.DataFrame, agreement: pd.DataFrame) -> list[str]:
    """What the tables say, in short sentences whose numbers are computed; the first of each model and group names them.

    Args:
        table, claims, agreement: from :func:`measure`.
    """
    lines = []
    for (model, group), rows in table.groupby(["model", "group"], sort=False):
        mine = [found[(found["model"] == model) & (found["group"] == group)] for found in (claims, agreement)]
        sentences = [_counted(rows), _most_robust(rows), *map(_claimed, mine[0].itertuples()), *_ordered_alike(mine[1]), *_unmoved(rows)]
        lines += [f"{model}, {group}: {sentences[0]}", *(sentence[0].upper() + sentence[1:] for sentence in sentences[1:] if sentence)]
    return lines


def _counted(rows: pd.DataFrame) -> str:
    """How many images are judged, and which augmentations change none."""
    whole = rows[rows["augmentation"].str.startswith("all ")].iloc[0]
    idle = ", ".join(plain(name) for name in unchanging(rows))
    left_out = f"; {idle} changes none and is left out" if idle else ""
    return f"{whole.stayed} of {whole.images} images keep the target's probability under an augmentation that changes them{left_out}."


def unchanging(table: pd.DataFrame) -> list[str]:
    """The augmentations that change no image, as more colour does to grey ones."""
    return [name for name in dict.fromkeys(table["augmentation"]) if not table.loc[table["augmentation"] == name, "changed"].any()]


def plain(name: str) -> str:
    """An augmentation's name to read."""
    return name.replace("_", " ").replace(" degrees", "°")


def _most_robust(rows: pd.DataFrame) -> str:
    whole = rows[rows["augmentation"].str.startswith("all ") & rows["mean"].notna()]
    control = dict(zip(whole["method"], whole["family"] == "control", strict=True))
    found = []
    for name, part in whole.groupby("measure", sort=False):
        best = part.loc[part["mean"].idxmax()]
        within = f" (data range {best.data_range})" if name == "ssim" else ""
        names = _best(part.set_index("method")["mean"], control)
        found.append(f"by {IN_WORDS[name]}{within} {names} ({best['mean']:.2f} [{best.low:.2f}, {best.high:.2f}])")
    return f"most robust {', '.join(found)}." if found else ""


def _claimed(row: Any) -> str:
    """The verdict on one half of the study's claim."""
    compared = f"SSIM less that of {row.rival}" if row.claim == MOST else f"SSIM of {row.rival} less its own"
    return (
        f'"{row.method} is {row.claim}" of the {row.rivals + 1} methods that the study printed: {row.verdict} ({compared} '
        f"{row.difference:+.2f} [{row.low:+.2f}, {row.high:+.2f}], n = {row.count})."
    )


def _ordered_alike(agreement: pd.DataFrame) -> list[str]:
    """How alike the measures order the methods."""
    named = {**IN_WORDS, "published": "the study's SSIM"}
    found = [
        f"{named[row.other]} {row.rho:+.2f} [{row.low:+.2f}, {row.high:+.2f}] ({row.methods} methods, p = {row.p:.2f})"
        for row in agreement.itertuples()
    ]
    return [f"rank correlation of SSIM's order of the methods with that of {', '.join(found)}."] if found else []


def _unmoved(rows: pd.DataFrame) -> list[str]:
    """Why Deconvolution does not move, where it does not."""
    name = CLAIMS[LEAST]
    found = rows[(rows["method"] == name) & (rows["augmentation"] == "all filters") & (rows["measure"] == "ssim")]
    if found.empty or not found["mean"].iloc[0] >= 1 - TIED:
        return []
    return [
        f"{name} stays as it is because its backward rule does not ask which ReLUs were on: where nothing else in a net is non-linear, its "
        "map shows the class and not the image."
    ]
