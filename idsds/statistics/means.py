"""Mean scores with intervals, and the null band of random maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import ndtri

from idsds.common.numbers import as_whole, plain
from idsds.statistics.intervals import Ends, bca, check_options, covers, covers_both, drawn_sums, percentile_ends, rng_for
from idsds.statistics.scores import HIGHER, LOWER, Records, ScoreTable, scores_of


def rank(records: Records, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0, nested: bool = False) -> pd.DataFrame:
    """Return the mean score of every model and method, best first, with a BCa bootstrap interval over images.

    The images are drawn with replacement, the same draw for all methods and models that were scored on the same images. Where an image has
    several scores (one per training seed) they are drawn together: the interval then holds for these seeds and says so; with
    ``nested`` it covers other seeds too. Images of one ``group``, such as crops of a photo, are drawn together too.

    Args:
        records: columns model, method, image_id, score; optionally seed, group, direction and settings (grid, baseline, protocol, ...).
            Or the folder of a run, from which a few models are read at a time.
        resamples: bootstrap resamples. With 2,000, the Monte Carlo error of a 95 % end is about 3 % of the interval's width.
        nested: whether to draw training seeds too, where there are several, as :func:`nested_bootstrap` does.

    Returns:
        One row per model, setting (where several occur) and method: ``mean`` of the defined scores, ``low`` and ``high``, ``count`` of the
        defined scores, ``nan`` the number of undefined ones, ``interval`` what the interval covers, ``direction`` of the score. Sorted by
        model and setting, then by mean, best first according to the direction. The ends are NaN for fewer than two images and equal the
        mean if all scores are equal.

    Raises:
        TypeError, ValueError: for invalid ``records`` or options, naming the fault.
    """
    check_options(confidence, resamples=resamples)
    return _sorted([_ranked(table, confidence, resamples, seed, nested) for table in scores_of(records).tables("model")])


def _ranked(table: ScoreTable, confidence: float, resamples: int, seed: int, nested: bool) -> pd.DataFrame:
    """Return the rows of :func:`rank` for the columns of a table, in their order."""
    ends, interval = np.full((len(table.treatments), 2), np.nan), np.empty(len(table.treatments), dtype=object)
    for columns, part in table.same_rows():
        if nested and part.seeds > 1:
            interval[columns] = covers_both(confidence)
            if part.units > 1:
                ends[columns] = np.stack(percentile_ends(nested_means(part, part.scores, resamples, seed)[0], confidence), axis=1)
            continue
        interval[columns] = covers(confidence, part.seeds, part.unit)
        rng = rng_for(seed, "images", part.units)
        ends[columns] = np.stack(mean_interval(part.scores, part.group, confidence, resamples, rng), axis=1)
    more = {} if table.ceiling is None else {"ceiling": table.ceiling}
    return _means(table).assign(low=ends[:, 0], high=ends[:, 1], interval=interval, **more)


def rivals(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a ranking without the ceilings: methods that query the very deletions that they are scored on."""
    return table[~table["ceiling"].astype(bool)] if "ceiling" in table else table


def nested_bootstrap(records: Records, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """Return the mean score of every model and method with an interval over training seeds and images.

    Each resample draws training seeds and, within them, images. All seeds are scored on the same images, so one draw of images serves all
    drawn seeds (Owen, "The pigeonhole bootstrap", 2007); drawing other images for each seed would average out the variance of images.
    Of n seeds, n - 1 are drawn: drawing n would underestimate the variance between seeds by the factor (n - 1) / n, which
    matters for few seeds (Rao and Wu, JASA 1988). It is a percentile interval.

    Args:
        records: as for :func:`rank`, with a column ``seed`` that holds at least two training seeds.
        confidence, resamples, seed: as for :func:`rank`.

    Returns:
        As :func:`rank`, with ``seeds`` (their number) and ``seed_sd``, the standard deviation of the seeds' means.

    Raises:
        ValueError: if a model and method have fewer than two seeds.
    """
    check_options(confidence, resamples=resamples)
    return _sorted([_nested(table, confidence, resamples, seed) for table in scores_of(records).tables("model")])


def _nested(table: ScoreTable, confidence: float, resamples: int, seed: int) -> pd.DataFrame:
    """Return the rows of :func:`nested_bootstrap` for the columns of a table, in their order."""
    ends, seeds, spread = np.full((len(table.treatments), 2), np.nan), np.zeros(len(table.treatments), int), np.zeros(len(table.treatments))
    for columns, part in table.same_rows():
        if part.seeds < 2:
            where = ", ".join(f"{name}={value}" for name, value in part.treatments.iloc[0].items())
            raise ValueError(f"an interval over training seeds needs at least two seeds; {where} has one (column 'seed')")
        drawn, of_seeds = nested_means(part, part.scores, resamples, seed)
        seeds[columns], spread[columns] = part.seeds, pd.DataFrame(of_seeds).std(ddof=1)
        if part.units > 1:
            ends[columns] = np.stack(percentile_ends(drawn, confidence), axis=1)
    return _means(table).assign(low=ends[:, 0], high=ends[:, 1], interval=covers_both(confidence), seeds=seeds, seed_sd=spread)


def nested_means(part: ScoreTable, scores: np.ndarray, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the means (resamples, columns) of drawn training seeds on drawn images, and those of each seed (seeds, columns).

    Args:
        part: what the rows of ``scores`` are, of at least two training seeds.
        scores: (rows, columns), NaN where undefined.
        resamples, seed: as for :func:`nested_bootstrap`.
    """
    unit, which = np.unique(part.group, return_inverse=True)[1], np.unique(part.seed, return_inverse=True)[1]
    both = np.zeros((part.units, part.seeds, 2, scores.shape[1]))  # the sums of the scores, and how many are defined
    np.add.at(both, (unit, which), np.stack([np.where(np.isfinite(scores), scores, 0.0), np.isfinite(scores)], axis=1))
    drawn = drawn_sums(both.reshape(*both.shape[:2], -1), resamples, rng_for(seed, "seeds and images", part.units, part.seeds))
    with np.errstate(invalid="ignore"):
        top, bottom = np.moveaxis(drawn.reshape(resamples, 2, -1), 1, 0)
        return top / bottom, both[:, :, 0].sum(0) / both[:, :, 1].sum(0)


def null_band(n_patches: int, count: int | np.ndarray | pd.Series, confidence: float = 0.95) -> float | np.ndarray | pd.Series:
    """Return half the width of the band around 0 that contains the mean rank correlation of random maps.

    Against any fixed order of the drops, a random order of n patches has a Spearman correlation of mean 0 and variance 1 / (n - 1). The
    mean of ``count`` images then lies within z / sqrt(n - 1) / sqrt(count) of 0 with probability ``confidence``.

    Args:
        n_patches: patches per image, 16 for a grid of 4.
        count: number of images in the mean; for an array or a column, one half-width each.

    Returns:
        The half-width, in units of the score; NaN if ``count`` is 0.
    """
    check_options(confidence)
    number = plain(n_patches)
    whole = int(number) if isinstance(number, float) and number.is_integer() else number
    n_patches = as_whole("n_patches", whole, least=2)  # a rank correlation needs two
    if np.any(np.asarray(count) < 0):
        raise ValueError(f"count must not be negative, but is {count!r}")
    images = np.where(np.asarray(count) > 0, count, np.nan)
    width = ndtri((1 + confidence) / 2) / np.sqrt(n_patches - 1) / np.sqrt(images)
    return float(width) if np.ndim(width) == 0 else width


def finite_means(scores: np.ndarray) -> np.ndarray:
    """Return the mean of the finite scores (rows, columns) of each column; NaN without any."""
    finite = np.isfinite(scores)
    count = finite.sum(0)
    return np.divide(np.where(finite, scores, 0).sum(0), count, out=np.full(len(count), np.nan), where=count > 0)


def mean_interval(scores: np.ndarray, image: np.ndarray, confidence: float, resamples: int, rng: np.random.Generator) -> Ends:
    """Return the BCa ends of the mean of the finite ``scores`` (rows, columns), resampling images with all their rows.

    The mean is a ratio of two sums over images, of the finite scores and of their number, so that undefined scores and several
    scores per image need no special case.

    Args:
        scores: (rows, columns).
        image: (rows,), ascending, the image of each row.
        confidence, resamples, rng: as for :func:`idsds.statistics.intervals.bca`.

    Returns:
        Low and high, each (columns,); NaN for fewer than two images with a finite score.
    """
    finite, centre = np.isfinite(scores), finite_means(scores)
    constant = np.where(finite, scores, -np.inf).max(0) == np.where(finite, scores, np.inf).min(0)
    # Sum deviations from the mean instead of scores: equal scores then give an interval of width exactly 0.
    deviation = per_image(np.where(finite & ~constant, scores - np.nan_to_num(centre), 0.0), image)
    defined = per_image(finite.astype(np.float64), image)
    columns = scores.shape[1]
    if (defined == defined[:1, :1]).all():  # all scores are defined: the second sum is a constant
        rows_per_image = defined[0, 0] * len(defined)
        low, high = bca(deviation, lambda sums: sums / rows_per_image, confidence, resamples, rng)
        if columns and rows_per_image == 0:
            low = high = np.full(columns, np.nan)
    else:
        low, high = bca(
            np.concatenate([deviation, defined], axis=1), lambda sums: sums[..., :columns] / sums[..., columns:], confidence, resamples, rng
        )
    enough = (defined > 0).sum(0) > 1
    return np.where(enough, centre + low, np.nan), np.where(enough, centre + high, np.nan)


def per_image(values: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Sum the rows of ``values`` (rows, columns) that belong to one image (ascending): (images, columns)."""
    starts = np.flatnonzero(np.diff(image, prepend=image[0] - 1))
    return values if len(starts) == len(values) else np.add.reduceat(values, starts, axis=0)


def _means(table: ScoreTable) -> pd.DataFrame:
    mean, count = finite_means(table.scores), np.isfinite(table.scores).sum(0)
    direction = np.where(table.lower, LOWER, HIGHER)
    return table.treatments.assign(mean=mean, count=count, nan=table.present.sum(0) - count, direction=direction)


def _sorted(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate several tables of means, and sort each model and setting from best to worst."""
    result, last = pd.concat(parts, ignore_index=True), ["mean", "low", "high", "count", "nan", "interval", "direction"]
    more = [name for name in ("ceiling", "seeds", "seed_sd") if name in result.columns]
    keys = [name for name in result.columns if name not in (*last, *more)]
    best_first = result["mean"].where(result["direction"] == LOWER, -result["mean"])
    ordered = result.assign(best_first=best_first).sort_values([*keys[:-1], "best_first", "method"], ignore_index=True)
    return ordered[[*keys, *last, *more]]
