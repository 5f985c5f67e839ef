"""Agreement of images on the ranking of methods: Kendall's W and Krippendorff's alpha, with intervals over images."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import rankdata

from idsds.statistics.intervals import Statistic, bca, check_options, covers, rng_for
from idsds.statistics.scores import Records, ScoreTable, frames, scores_of

#: From the ranks (images, methods) to the features to sum over images, and the coefficient as a function of the sums.
Prepare = Callable[[np.ndarray], tuple[np.ndarray | sparse.csr_array, Statistic]]


def kendalls_w(records: Records, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """Compute Kendall's coefficient of concordance, per model and setting: 1 if all images rank the methods alike, near 0 if unrelated.

    W = 12 sum_j (R_j - mean R)^2 / (m^2 (k^3 - k) - m sum T), with R_j the rank sums of k methods over m images and T = sum (t^3 - t) over
    an image's ties. Kendall and Babington Smith, Annals of Mathematical Statistics 1939. Its mean for unrelated rankings is 1 / m.

    Args:
        records: as for :func:`idsds.statistics.rank`; scores of several seeds are averaged per image.
        confidence, resamples, seed: as for :func:`idsds.statistics.rank`.

    Returns:
        One row per model and setting: ``w``, ``low``, ``high``, ``methods``, ``count`` (images on which every method has a score), ``nan``
        (images left out), ``interval``. NaN for fewer than two methods or images.
    """

    def prepare(ranks: np.ndarray) -> tuple[np.ndarray, Statistic]:
        methods = ranks.shape[1]
        # Over an image's midranks, sum r^2 = k (k + 1)(2k + 1) / 6 - T / 12.
        ties = 2 * methods * (methods + 1) * (2 * methods + 1) - 12 * (ranks**2).sum(1)

        def w(sums: np.ndarray) -> np.ndarray:
            rank_sums, tied, images = sums[..., :methods], sums[..., -2], sums[..., -1]
            spread = ((rank_sums - rank_sums.mean(-1, keepdims=True)) ** 2).sum(-1)
            return (12 * spread / (images**2 * (methods**3 - methods) - images * tied))[..., None]

        return np.column_stack([ranks, ties, np.ones(len(ranks))]), w

    return _agreement("w", prepare, records, confidence, resamples, seed)


def krippendorffs_alpha(records: Records, confidence: float = 0.95, resamples: int = 2_000, seed: int = 0) -> pd.DataFrame:
    """Compute Krippendorff's ordinal alpha of the ranks that images give the methods: 1 is full agreement, 0 chance.

    alpha = 1 - D_o / D_e, with images as coders and methods as units. The ordinal distance of two ranks is the difference of their midranks
    among all values, so that both disagreements are variances and no memory grows with the square of the values. Krippendorff,
    "Content Analysis", 4th edition, 2018, chapter 12.

    Args:
        records, confidence, resamples, seed: as for :func:`kendalls_w`.

    Returns:
        As :func:`kendalls_w`, with ``alpha`` instead of ``w``.
    """

    def prepare(ranks: np.ndarray) -> tuple[sparse.csr_array, Statistic]:
        images, methods = ranks.shape
        values, code = np.unique(ranks, return_inverse=True)
        column = code.reshape(ranks.shape) + np.arange(methods) * len(values)  # (images, methods): which (method, value) an image chose
        start = np.arange(0, ranks.size + 1, methods)
        features = sparse.csr_array((np.ones(ranks.size), column.ravel(), start), shape=(images, methods * len(values)))

        def alpha(sums: np.ndarray) -> np.ndarray:
            chosen = sums.reshape(*sums.shape[:-1], methods, len(values))
            counts = chosen.sum(-2)  # (..., values)
            coders, total = chosen.sum(-1), counts.sum(-1)
            middle = counts.cumsum(-1) - counts / 2
            middle = (middle - total[..., None] / 2) / total[..., None]
            within = coders * np.einsum("...uv,...v->...u", chosen, middle**2) - np.einsum("...uv,...v->...u", chosen, middle) ** 2
            between = total * (counts * middle**2).sum(-1) - (counts * middle).sum(-1) ** 2
            return (1 - (within / (coders - 1)).sum(-1) / (between / (total - 1)))[..., None]

        return features, alpha

    return _agreement("alpha", prepare, records, confidence, resamples, seed)


def _agreement(name: str, prepare: Prepare, records: Records, confidence: float, resamples: int, seed: int) -> pd.DataFrame:
    check_options(confidence, resamples=resamples)
    rows = []
    for where, part in scores_of(records).settings("method"):
        ranks, left_out, group = _ranks(part)
        row = {**where, name: np.nan, "low": np.nan, "high": np.nan, "methods": ranks.shape[1], "count": len(ranks), "nan": left_out}
        if min(ranks.shape) > 1:
            features, statistic = prepare(ranks)
            if part.unit != "images":
                features = sparse.csr_array((np.ones(len(group)), (group, np.arange(len(group))))) @ features  # (groups, F)
            with np.errstate(divide="ignore", invalid="ignore"):
                row[name] = statistic(np.asarray(features.sum(0)).reshape(-1))[0]
            (row["low"],), (row["high"],) = bca(features, statistic, confidence, resamples, rng_for(seed, "images", features.shape[0]))
        rows.append({**row, "interval": covers(confidence, part.seeds, part.unit)})
    return pd.DataFrame(rows)


def _ranks(part: ScoreTable) -> tuple[np.ndarray, int, np.ndarray]:
    """Return the midranks of the methods within each complete image (images, methods), how many images are incomplete, and their groups."""
    images, start = np.unique(part.image, return_index=True)
    finite = np.isfinite(part.scores)
    count = np.add.reduceat(finite.astype(np.int64), start, axis=0)
    sums = np.add.reduceat(np.where(finite, part.scores, 0.0), start, axis=0)
    complete = (count > 0).all(1)
    group = np.unique(part.group[start][complete], return_inverse=True)[1]
    return rankdata(sums[complete] / count[complete], axis=1), len(images) - int(complete.sum()), group


def disagreement(records: Records) -> pd.Series:
    """Measure by image how much the methods disagree: 1 minus the mean rank correlation of the patch sums of two of them.

    Records without patch sums take the standard deviation of the scores. Controls are left out, and methods whose patch sums have no ranks;
    NaN for fewer than two methods.

    Args:
        records: of one model, seed and grid; a frame, or the folder of a run.
    """
    records = pd.concat(frames(records, "patch_sums"))
    rows = records[records["family"] != "control"] if "family" in records else records
    if "patch_sums" not in rows:
        return rows.groupby("image_id", sort=False)["score"].std()
    sums = np.stack(rows["patch_sums"].to_numpy()).astype(float)  # (records, patches)
    ranks = rankdata(sums, axis=1)
    ranks -= ranks.mean(1, keepdims=True)
    length = np.sqrt((ranks**2).sum(1, keepdims=True))
    usable = np.isfinite(sums).all(1) & (length[:, 0] > 0)
    code, images = pd.factorize(rows["image_id"])
    total, count = np.zeros((len(images), sums.shape[1])), np.bincount(code[usable], minlength=len(images))
    np.add.at(total, code[usable], ranks[usable] / length[usable])
    with np.errstate(invalid="ignore", divide="ignore"):
        pairs = ((total**2).sum(1) - count) / (count * (count - 1))
    return pd.Series(np.where(count > 1, 1 - pairs, np.nan), index=images)
