"""Comparisons on the same images: paired differences, sign-flip tests with Holm's correction, rankings with ties, sample sizes."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.special import ndtri

from idsds.common.registry import check_name, check_names
from idsds.statistics.intervals import CHUNK, check_options, covers, covers_both, percentile_ends, rng_for
from idsds.statistics.means import mean_interval, nested_means, per_image, rank
from idsds.statistics.scores import HIGHER, LOWER, Records, Scores, ScoreTable, scores_of

Pairs = Sequence[tuple[str, str]]
COMPARED = ("method", "model")
#: Differences are computed for this many pairs at a time, which bounds memory: 64 x 50,000 images are 26 MB. No result depends on it.
PAIRS_AT_ONCE = 64


def paired_differences(
    records: Records,
    by: str | Pairs = "method",
    pairs: Pairs | None = None,
    confidence: float = 0.95,
    resamples: int = 2_000,
    permutations: int = 9_999,
    seed: int = 0,
    nested: bool = False,
) -> pd.DataFrame:
    """Compare any two methods (of one model) or any two models (under one method), image by image.

    Only images on which both scores are defined are compared. ``p`` is that of the two-sided sign-flip test (:func:`sign_flip_test`),
    ``p_holm`` is corrected for all rows of the returned table: ask for fewer pairs to correct for fewer. Intervals are not
    simultaneous: each row's holds on its own. With several training seeds both hold for these seeds, unless ``nested``.

    Args:
        records: columns model, method, image_id, score; optionally seed (scores are then paired within seeds) and settings.
        by: what to compare, ``"method"`` or ``"model"``; a list of pairs compares these methods.
        pairs: (a, b) names; None takes every pair.
        confidence, resamples, seed: as for :func:`idsds.statistics.rank`.
        permutations: number of random sign flips, if there are too many images for all flips.
        nested: draw training seeds too, as :func:`idsds.nested_bootstrap` does; ``p`` is then twice the fraction of resamples whose
            difference does not have the majority's sign, at least 2 / (1 + ``resamples``). With one seed it changes nothing.

    Returns:
        One row per pair within each model (or method) and setting: ``a``, ``b``, ``difference`` (mean of a minus b), ``low``, ``high``,
        ``a_beats_b`` (the fraction of images on which a scores better, ties count half), ``p``, ``p_holm``, ``count`` (scores compared),
        ``nan`` (records of both of which at least one score is undefined), ``interval``, ``direction`` (of the scores: with
        ``lower is better``, a is better if the difference is negative).

    Raises:
        UnknownNameError: for a name in ``pairs`` that the records do not contain, or an unknown ``by``.
        TypeError, ValueError: for invalid ``records`` or options.
    """
    check_options(confidence, resamples=resamples, permutations=permutations)
    if pairs is None and not isinstance(by, str):
        by, pairs = "method", by
    check_name("comparison", by, COMPARED)
    scores = scores_of(records)
    _check_pairs(by, pairs, scores.names[by])
    tables = [
        pd.DataFrame({**where, **_compare(part, first, second, confidence, resamples, permutations, seed, nested)}).assign(
            a=part.treatments[by].to_numpy()[first], b=part.treatments[by].to_numpy()[second]
        )
        for where, part, first, second in _pairs_in(scores, by, pairs)
    ]
    if not tables:
        raise ValueError(f"no two {by}s have records of the same setting, so there is nothing to compare")
    result = pd.concat(tables, ignore_index=True)
    last = ["a", "b", "difference", "low", "high", "a_beats_b", "p", "p_holm", "count", "nan", "interval", "direction"]
    keys = [name for name in result.columns if name not in last]
    result = result.sort_values(keys, kind="stable", ignore_index=True)
    return result.assign(p_holm=holm(result["p"].to_numpy()))[[*keys, *last]]


def ranking_with_ties(
    records: Records, alpha: float = 0.05, resamples: int = 2_000, permutations: int = 9_999, seed: int = 0
) -> pd.DataFrame:
    """Rank the methods of each model, and test whether neighbours in the ranking differ.

    Args:
        records: as for :func:`idsds.statistics.rank`.
        alpha: neighbours differ if their p-value (sign-flip test, Holm-corrected for all neighbours in the table) is at most this.
        resamples, permutations, seed: as for :func:`paired_differences`.

    Returns:
        The table of :func:`idsds.statistics.rank` (confidence 1 - alpha) with ``place`` (1 is best), ``next`` (the method below),
        ``difference`` to it, ``p_holm``, ``told_apart`` (whether it differs significantly from the next; missing for the last) and ``tie``:
        methods with the same number form a chain of neighbours that do not differ significantly.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie strictly between 0 and 1, not {alpha!r}; 0.05 is usual")
    ranking = rank(records, 1 - alpha, resamples, seed)
    keys = list(ranking.columns[: ranking.columns.get_loc("method")])
    grouped = ranking.groupby(keys, sort=False, dropna=False)
    ranking.insert(len(keys), "place", grouped.cumcount() + 1)
    ranking["next"] = grouped["method"].shift(-1)
    neighbours = {tuple(pair) for pair in ranking.loc[ranking["next"].notna(), ["method", "next"]].to_numpy()}
    if neighbours:
        pairs = paired_differences(records, "method", sorted(neighbours), 1 - alpha, 1, permutations, seed)
        pairs = pairs.rename(columns={"a": "method", "b": "next"})[[*keys, "method", "next", "difference", "p"]]
        ranking = ranking.merge(pairs, how="left", on=[*keys, "method", "next"])
    else:
        ranking = ranking.assign(difference=np.nan, p=np.nan)
    # Holm's family is the neighbours only: a pair that is adjacent for one model is not compared for another.
    ranking["p_holm"] = holm(ranking.pop("p").to_numpy())
    told_apart = (ranking["p_holm"] <= alpha).astype("boolean").mask(ranking["next"].isna())
    step = (told_apart.fillna(True)).groupby([ranking[k] for k in keys], sort=False, dropna=False).shift(1, fill_value=False)
    tie = step.astype(int).groupby([ranking[k] for k in keys], sort=False, dropna=False).cumsum() + 1
    return ranking.assign(told_apart=told_apart, tie=tie)


def images_needed(records: Records, a: str, b: str, by: str = "method", power: float = 0.8, alpha: float = 0.05) -> pd.DataFrame:
    """Return how many images are needed to tell ``a`` from ``b``, if the true difference and its spread are those of the records.

    n = ((z_(1 - alpha / 2) + z_power) sd / difference)^2 + z_(1 - alpha / 2)^2 / 2: the two-sided paired test, with Guenther's (1981) term
    for the unknown standard deviation.

    Args:
        records: as for :func:`paired_differences`; scores of several seeds are averaged per image.
        by: whether they are names of a ``"method"`` or a ``"model"``.
        power: the desired probability of telling them apart.
        alpha: the level of the (uncorrected) test.

    Returns:
        One row per model (or method) and setting with records of both: ``a``, ``b``, ``difference``, ``sd`` (of the difference over
        images), ``count`` (available images, or groups of images), ``images`` (needed; inf if the means are equal, NaN for fewer than
        two available images).

    Raises:
        UnknownNameError: if the records do not contain ``a`` or ``b``.
        ValueError: for a power or alpha outside (0, 1) or a power below alpha.
    """
    check_name("comparison", by, COMPARED)
    if not 0 < alpha < 1 or not alpha < power < 1:
        raise ValueError(f"alpha and power must satisfy 0 < alpha < power < 1, not alpha={alpha!r} and power={power!r}")
    scores = scores_of(records)
    _check_pairs(by, [(a, b)], scores.names[by])
    z, rows = ndtri(1 - alpha / 2), []
    for where, part, first, second in _pairs_in(scores, by, [(a, b)]):
        sums, counts = _unit_sums(part.scores[:, first] - part.scores[:, second], part.group)
        each = sums[counts > 0] / counts[counts > 0]
        per_unit = counts[counts > 0].mean() if part.unit != "images" else 1.0  # images per group
        difference, sd, images = each.mean() if len(each) else np.nan, np.nan, np.nan
        if len(each) > 1:
            sd = each.std(ddof=1)
            images = np.inf if difference == 0 else np.ceil(((z + ndtri(power)) * sd / difference) ** 2 + z**2 / 2) * per_unit
        rows.append({**where, "a": a, "b": b, "difference": difference, "sd": sd, "count": len(each), "images": images})
    if not rows:
        raise ValueError(f"no setting has records of both {a!r} and {b!r}")
    return pd.DataFrame(rows)


def sign_flip_test(differences: np.ndarray, permutations: int, rng: np.random.Generator) -> np.ndarray:
    """Return two-sided p-values of the mean paired difference; under the null hypothesis, each image's difference has a random sign.

    All 2^n sign flips are used if there are at most ``permutations`` of them; otherwise random ones, with p = (1 + number of flips at least
    as extreme) / (1 + permutations). The latter cannot fall below 1 / (1 + permutations), which would hide every difference once hundreds
    of pairs are corrected for. If Hoeffding's bound, 2 exp(-(sum d)^2 / (2 sum d^2)), is smaller, it is returned: the exact p is no larger.

    Args:
        differences: (images, pairs), 0 where undefined (a difference of 0 has no effect).
        permutations: number of random flips.

    Returns:
        p (pairs,), 1 where all differences are 0.
    """
    observed = np.abs(differences.sum(0))
    squares = (differences**2).sum(0)
    exponent = np.divide(observed**2, 2 * squares, out=np.zeros(len(observed)), where=squares > 0)
    p = np.clip(2 * np.exp(-exponent), np.finfo(float).tiny, 1.0)
    taking_part = (differences != 0).sum(0)
    slack = 1e-12 * np.abs(differences).sum(0)  # so that flips equal to the observed sum count as ties despite rounding
    exact = taking_part <= np.log2(permutations)
    for column in np.flatnonzero(exact & (taking_part > 0)):
        d = differences[differences[:, column] != 0, column]
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1)  # (2^n, n)
        p[column] = np.mean(np.abs(signs @ d) >= observed[column] - slack[column])
    columns = np.flatnonzero(~exact & (p >= 1 / (1 + permutations)))
    if len(columns):
        chosen, extreme = differences[:, columns], np.zeros(len(columns))
        for start in range(0, permutations, step := max(1, CHUNK // len(chosen))):
            chunk = min(step, permutations - start)
            bits = np.frombuffer(rng.bytes(chunk * (-(-len(chosen) // 8))), dtype=np.uint8).reshape(chunk, -1)
            signs = 1.0 - 2.0 * np.unpackbits(bits, axis=1, count=len(chosen))  # (chunk, images)
            extreme += (np.abs(signs @ chosen) >= observed[columns] - slack[columns]).sum(0)
        p[columns] = (1 + extreme) / (1 + permutations)
    return p


def holm(p: np.ndarray) -> np.ndarray:
    """Apply Holm's (1979) step-down correction: the i-th smallest of m becomes max over j <= i of (m - j + 1) p_j, at most 1; NaNs stay."""
    p = np.asarray(p, dtype=np.float64)
    corrected = np.full(p.shape, np.nan)
    tested = np.flatnonzero(~np.isnan(p))
    order = tested[np.argsort(p[tested], kind="stable")]
    corrected[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return corrected


def _compare(
    part: ScoreTable, first: list[int], second: list[int], confidence: float, resamples: int, permutations: int, seed: int, nested: bool
) -> dict[str, object]:
    """Return the columns of :func:`paired_differences` for the pairs of columns (first, second) of one table."""
    difference = part.scores[:, first] - part.scores[:, second]  # (rows, pairs)
    both = part.present[:, first] & part.present[:, second]
    finite = np.isfinite(difference)
    count = finite.sum(0)
    lower = part.lower[first]
    beats = ((np.where(lower, -difference, difference) > 0).sum(0) + 0.5 * (difference == 0).sum(0)) / np.where(count, count, np.nan)
    sums = _unit_sums(difference, part.group)[0]
    if nested and part.seeds > 1 and part.units > 1:
        drawn, _ = nested_means(part, difference, resamples, seed)
        (low, high), interval = percentile_ends(drawn, confidence), covers_both(confidence)
        p = np.minimum(1, 2 * (1 + np.minimum((drawn <= 0).sum(0), (drawn >= 0).sum(0))) / (1 + resamples))
    else:
        low, high = mean_interval(difference, part.group, confidence, resamples, rng_for(seed, "images", part.units))
        p, interval = sign_flip_test(sums, permutations, rng_for(seed, "signs", len(sums))), covers(confidence, part.seeds, part.unit)
    return {
        "difference": sums.sum(0) / np.where(count, count, np.nan),
        "low": low,
        "high": high,
        "a_beats_b": beats,
        "p": np.where(count, p, np.nan),
        "count": count,
        "nan": both.sum(0) - count,
        "interval": interval,
        "direction": np.where(lower, LOWER, HIGHER),
    }


def _unit_sums(difference: np.ndarray, group: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return sum and number of the defined differences of each group (or image), whose images and seeds flip sign together."""
    finite = np.isfinite(difference)
    return per_image(np.where(finite, difference, 0.0), group), per_image(finite.astype(np.int64), group)


def _check_pairs(by: str, pairs: Pairs | None, allowed: Collection[object]) -> None:
    for pair in pairs or ():
        if isinstance(pair, str) or len(pair) != 2 or pair[0] == pair[1]:
            raise ValueError(f"a pair must be two different {by}s, not {pair!r}")
        check_names(by, pair, allowed)


def _pairs_in(scores: Scores, by: str, pairs: Pairs | None) -> Iterator[tuple[dict[str, object], ScoreTable, list[int], list[int]]]:
    """Yield the key, the table and the columns to compare (as two lists) of each model (or method) and setting."""
    for where, part in scores.settings(by):
        place = {name: column for column, name in enumerate(part.treatments[by])}
        compared = combinations(place, 2) if pairs is None else [(a, b) for a, b in pairs if a in place and b in place]
        columns = [(place[a], place[b]) for a, b in compared]
        for start in range(0, len(columns), PAIRS_AT_ONCE):
            first, second = map(list, zip(*columns[start : start + PAIRS_AT_ONCE], strict=True))
            yield where, part, first, second
