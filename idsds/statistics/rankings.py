"""Rankings of methods under several conditions (protocols, seeds, baselines, ...), and the agreement of rankings.

Methods are ranked by their mean scores. The uncertainty is that over images: each resample draws images with replacement, the same
draw for all methods and, if two conditions are compared, for both. With ``nested`` each resample draws training seeds too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations_with_replacement

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from idsds.statistics.intervals import check_options, percentile_ends, rng_for, weights
from idsds.statistics.means import rank
from idsds.statistics.scores import LOWER, Records, frames, unit_of


def rank_each(
    records: Records, by: str, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0, nested: bool = False
) -> pd.DataFrame:
    """Apply :func:`idsds.rank` under each condition, and add each method's place among the methods with its interval.

    Args:
        records: from :func:`idsds.evaluate`, with a column ``by`` that names the condition; a folder is read one model at a time.
        confidence, resamples, seed, nested: as for :func:`idsds.rank`.

    Returns:
        Per model, condition and method, in the order in which conditions first appear: ``mean``, ``low``, ``high``, ``count``, ``nan``,
        ``interval``, ``direction`` of the mean as :func:`idsds.rank` gives them; ``place`` (1 is best, ties share the mean),
        ``place_low`` and ``place_high``, percentiles of the bootstrap over images. Places are NaN for a method without any defined score.
    """
    check_options(confidence, resamples=resamples)
    parts = []
    for records_of in frames(records, by):
        for condition in dict.fromkeys(records_of[by]):
            found = records_of[records_of[by] == condition]
            table = rank(found, confidence, resamples, seed, nested)[
                ["model", "method", "mean", "low", "high", "count", "nan", "interval", "direction"]
            ]
            places = []
            for model, scores, group in _by_model(found):
                drawn = _drawn_means(scores.to_numpy(), group, _seeds(scores.index, nested), resamples, seed)
                low, high = percentile_ends(_places(drawn), confidence) if group.max() else np.full((2, scores.shape[1]), np.nan)
                place = _places(weighted_means(scores.to_numpy(), np.ones((1, len(scores)))))[0]
                places.append(
                    pd.DataFrame({"model": model, "method": scores.columns, "place": place, "place_low": low, "place_high": high})
                )
            parts.append(table.merge(pd.concat(places), on=["model", "method"]).assign(**{by: condition}))
    table = pd.concat(parts, ignore_index=True)

    def in_turn(column: pd.Series) -> pd.Series | np.ndarray:
        return pd.factorize(column)[0] if column.name == by else column

    table = table.sort_values([by, "model"], key=in_turn, kind="stable", ignore_index=True)
    return table[["model", by, *(name for name in table.columns if name not in ("model", by))]]


def rank_agreement(
    records: Records,
    by: str,
    methods: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = 2_000,
    seed: int = 0,
    nested: bool = False,
) -> pd.DataFrame:
    """Return Kendall's tau-b and Spearman's rho between the rankings of methods under every two conditions.

    The rankings of a resample are noisier than those of all images, so if the means of methods are close the interval extends
    further below the observed value than above it. The diagonal shows the effect of noise alone: the agreement of a condition
    with itself between two random halves of the images.

    Args:
        records, by: as for :func:`rank_each`.
        methods: names; None takes those that every condition has. A control that is last under every condition raises agreement for free.
        confidence, resamples, seed, nested: as for :func:`idsds.rank`; on the diagonal seeds are not drawn.

    Returns:
        Per model and pair of conditions (``first`` before ``second`` in order of appearance, or the same): ``tau``, ``tau_low``,
        ``tau_high``, ``rho``, ``rho_low``, ``rho_high``, ``methods``, ``count`` of the shared images, ``interval`` (what it covers).
        NaN for fewer than two methods or images.
    """
    check_options(confidence, resamples=resamples)
    conditions = dict.fromkeys(condition for records_of in frames(records, by) for condition in records_of[by].unique())
    rows = []
    for model, rows_of_model in (pair for records_of in frames(records, by) for pair in records_of.groupby("model", sort=False)):
        found_of = {c: next(_by_model(rows_of_model[rows_of_model[by] == c])) for c in conditions if (rows_of_model[by] == c).any()}
        tables = {c: scores for c, (_, scores, _) in found_of.items()}
        groups = {image: group for _, rows, codes in found_of.values() for (image, _), group in zip(rows.index, codes, strict=True)}
        shared = [m for m in (methods or next(iter(tables.values())).columns) if all(m in table.columns for table in tables.values())]
        for first, second in combinations_with_replacement(tables, 2):
            one, other = _same_seeds(tables[first], tables[second])
            both = one.index.intersection(other.index, sort=True)  # (image, training seed)
            pair = [each.loc[both, shared].to_numpy() for each in (one, other)]
            group = np.unique([groups[image] for image, _ in both], return_inverse=True)[1]
            images, units = len(both.unique("image_id")), int(group.max(initial=-1)) + 1
            unit = "images" if units == images else "groups of images"
            if first == second:
                found = split_agreement(pair[0], group, units // 2, units // 2 * 2, resamples, rng_for(seed, "halves", units))
                interval = f"{100 * confidence:g} % percentiles over random halves of the {unit}"
            else:
                seeds = _seeds(both, nested)
                found = _resampled(*pair, group, seeds, resamples, seed)
                interval = f"{100 * confidence:g} % percentile bootstrap over {unit if seeds is None else f'training seeds and {unit}'}"
            facts = {"model": model, "first": first, "second": second, "methods": len(shared), "count": images, "interval": interval}
            for name, (value, drawn) in zip(("tau", "rho"), found, strict=True):
                (low,), (high,) = percentile_ends(drawn[:, None], confidence)
                facts |= {name: value, f"{name}_low": low, f"{name}_high": high}
            rows.append(facts)
    names = [f"{name}{end}" for name in ("tau", "rho") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["model", "first", "second", *names, "methods", "count", "interval"])


def kendall(first: np.ndarray, second: np.ndarray, skip_nan: bool = False) -> np.ndarray:
    """Return Kendall's tau-b (R,) between rows of two arrays (R, methods); NaN if a row is constant or, unless ``skip_nan``, has a NaN."""
    one, other = np.triu_indices(first.shape[1], k=1)
    signs = [np.sign(values[:, one] - values[:, other]) for values in (first, second)]
    total = np.nansum if skip_nan else np.sum
    with np.errstate(invalid="ignore", divide="ignore"):
        return total(signs[0] * signs[1], axis=1) / np.sqrt(total(signs[0] ** 2, axis=1) * total(signs[1] ** 2, axis=1))


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return Spearman's rho (R,) between rows of two arrays (R, methods), ties at their mean rank; NaN as in :func:`kendall`."""
    centred = []
    for values in (first, second):
        ranks = rankdata(values, axis=1, nan_policy="propagate")
        centred.append(ranks - ranks.mean(1, keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        return (centred[0] * centred[1]).sum(1) / np.sqrt((centred[0] ** 2).sum(1) * (centred[1] ** 2).sum(1))


# Number of resamples drawn at a time.
CHUNK = 100
#: Tau and rho, each with its values in all resamples.
Correlations = tuple[tuple[float, np.ndarray], tuple[float, np.ndarray]]
UNDEFINED = 2 * ((float("nan"), np.full(1, np.nan)),)


def _resampled(
    first: np.ndarray, second: np.ndarray, group: np.ndarray, seeds: np.ndarray | None, resamples: int, seed: int
) -> Correlations:
    """Return tau and rho of the means of two score matrices (rows, methods) of the same images and seeds, and their resampled values."""
    if group.max(initial=-1) < 1 or first.shape[1] < 2:
        return UNDEFINED
    seen = [weighted_means(scores, np.ones((1, len(scores)))) for scores in (first, second)]
    drawn = [_drawn_means(scores, group, seeds, resamples, seed) for scores in (first, second)]
    return (float(kendall(*seen)[0]), kendall(*drawn)), (float(spearman(*seen)[0]), spearman(*drawn))


def split_agreement(scores: np.ndarray, group: np.ndarray, first: int, both: int, draws: int, rng: np.random.Generator) -> Correlations:
    """Return the mean tau and rho between the means over two random sets of images, each with the values of all draws.

    The sets are the ``first`` of the groups of images in a random order, and those that follow, up to ``both`` in all.
    ``scores`` (rows, methods) belong to the ``group`` (rows,); NaN for an empty set, and for fewer than two methods.
    """
    units, methods, means = int(group.max(initial=-1)) + 1, scores.shape[1], []
    if not 0 < first < both or methods < 2:
        return UNDEFINED
    for start in range(0, draws, CHUNK):  # all at once would take gigabytes for 50,000 images
        order = rng.random((min(CHUNK, draws - start), units)).argsort(1)
        sides = (order < first, (order >= first) & (order < both))
        means.append([weighted_means(scores, side.astype(float)[:, group]) for side in sides])
    pair = [np.concatenate(side) for side in zip(*means, strict=True)]
    tau, rho = kendall(*pair), spearman(*pair)
    return tuple((float(np.nanmean(each)) if np.isfinite(each).any() else float("nan"), each) for each in (tau, rho))  # type: ignore[return-value]


def _by_model(records: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame, np.ndarray]]:
    """Yield the scores of each model (rows, methods), higher is better, one row per image and training seed, and each row's group.

    Methods are in order of appearance, rows sorted. Where lower is better the sign is changed. Raises ValueError if a row occurs twice.
    """
    if "direction" in records.columns:
        sign = np.where(records["direction"] == LOWER, -1.0, 1.0)
        records = records.assign(score=records["score"].to_numpy(dtype=float) * sign)
    if "seed" not in records.columns:
        records = records.assign(seed=0)
    for model, rows in records.groupby("model", sort=False):
        keys = ["image_id", "seed"]
        if (twice := rows.duplicated([*keys, "method"])).any():
            one = rows[twice].iloc[0]
            raise ValueError(
                f"under one condition {model!r} has several scores of {one['method']!r} on {one['image_id']!r}: select one setting"
            )
        table = rows.pivot_table(index=keys, columns="method", values="score", aggfunc="mean", dropna=False, observed=True).sort_index()
        table = table.loc[table.index.isin(pd.MultiIndex.from_frame(rows[keys])), list(dict.fromkeys(rows["method"]))]
        unit = table.index.get_level_values("image_id")
        if unit_of(rows) == "group":
            unit = rows.drop_duplicates("image_id").set_index("image_id")["group"].loc[unit].astype(str)
        yield str(model), table, np.unique(unit.to_numpy(dtype=str), return_inverse=True)[1]


def _same_seeds(*tables: pd.DataFrame) -> list[pd.DataFrame]:
    """Return tables of scores (image, training seed) as they are or, where their nets are of different seeds, averaged over them."""
    if len({frozenset(table.index.unique("seed")) for table in tables}) == 1:
        return list(tables)
    means = [table.groupby(level="image_id").mean() for table in tables]
    return [mean.set_index(pd.MultiIndex.from_product([mean.index, [0]], names=["image_id", "seed"])) for mean in means]


def _seeds(rows: pd.MultiIndex, nested: bool) -> np.ndarray | None:
    """Return codes (rows,) of the training seeds if they are to be drawn and there are several."""
    codes = np.unique(rows.get_level_values("seed"), return_inverse=True)[1]
    return codes if nested and codes.max(initial=0) else None


def _drawn_means(scores: np.ndarray, group: np.ndarray, seeds: np.ndarray | None, resamples: int, seed: int) -> np.ndarray:
    """Return the means (resamples, methods) over groups of images drawn with replacement; equal draws for equal numbers of groups.

    ``seeds`` (rows,) are drawn too, one fewer than there are, as by :func:`idsds.nested_bootstrap`.
    """
    units = int(group.max()) + 1
    means, over_seeds = [], None
    if seeds is not None:
        number = int(seeds.max()) + 1
        over_seeds = np.concatenate(list(weights(rng_for(seed, "seeds", number), number, resamples, draws=number - 1)))
    for drawn in weights(rng_for(seed, "images", units), units, resamples):
        weight = drawn[:, group]
        if over_seeds is not None:
            weight, over_seeds = weight * over_seeds[: len(drawn), seeds], over_seeds[len(drawn) :]
        means.append(weighted_means(scores, weight))
    return np.concatenate(means)


def weighted_means(scores: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Return means (R, methods) of the defined scores (rows, methods), for weights (R, rows)."""
    defined = np.isfinite(scores)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weight @ np.where(defined, scores, 0.0)) / (weight @ defined)


def _places(means: np.ndarray) -> np.ndarray:
    """Rank each column within its row, 1 for the highest; NaN stays NaN and is not ranked."""
    return rankdata(-means, axis=1, nan_policy="omit")
