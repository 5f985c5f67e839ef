"""The bootstrap behind every interval: resampled sums over images, and the BCa interval of statistics computed from such sums."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from numbers import Integral

import numpy as np
from scipy import sparse, stats
from scipy.special import ndtr, ndtri, stdtrit

Statistic = Callable[[np.ndarray], np.ndarray]
Ends = tuple[np.ndarray, np.ndarray]
#: Numbers per chunk of resampling weights, for any number of images: 1e6 float64 are 8 MB and stay in the cache.
CHUNK = 1_000_000
#: The acceleration needs a leave-one-out value per image; beyond this many images, groups of images are left out.
JACKKNIFE_GROUPS = 2_000
#: With fewer units than this, a spread of 0 says nothing about the next unit.
FEW = 10


def rng_for(seed: int, *key: object) -> np.random.Generator:
    """Return a numpy generator that depends only on ``seed`` and ``key``."""
    digest = hashlib.blake2b("\x1f".join(map(str, (seed, *key))).encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def check_options(confidence: float, **counts: int) -> None:
    """Raise ValueError for a confidence or a named count (``resamples``, ``permutations``) out of range."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie strictly between 0 and 1, not {confidence!r}; 0.95 is usual")
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {count!r}")


def covers(confidence: float, seeds: int, unit: str = "images") -> str:
    """Describe what a BCa interval over images, or groups of them, covers: new images, but not new training seeds."""
    over = unit if seeds == 1 else f"{unit}, {seeds} training seeds held fixed"
    return f"{100 * confidence:g} % BCa bootstrap over {over}"


def covers_both(confidence: float) -> str:
    """Say what an interval of drawn training seeds and drawn images covers."""
    return f"{100 * confidence:g} % percentile bootstrap over training seeds and images"


def weights(rng: np.random.Generator, n: int, resamples: int, draws: int | None = None) -> Iterator[np.ndarray]:
    """Yield how often each of ``n`` units occurs in each resample of ``draws`` (default ``n``) units, in chunks (chunk, n) of float64."""
    draws = n if draws is None else draws
    step = max(1, CHUNK // n)
    for start in range(0, resamples, step):
        chunk = min(step, resamples - start)
        drawn = rng.integers(0, n, (chunk, draws))  # the stream that scipy.stats.bootstrap takes
        drawn += np.arange(chunk)[:, None] * n
        yield np.bincount(drawn.ravel(), minlength=chunk * n).reshape(chunk, n).astype(np.float64)


def bca(features: np.ndarray | sparse.csr_array, statistic: Statistic, confidence: float, resamples: int, rng: np.random.Generator) -> Ends:
    """Compute the bias-corrected and accelerated bootstrap interval of a statistic of sums over units.

    A mean, a ratio or a coefficient of agreement depends on the units only through sums. A resample is then a vector of weights, and all
    resamples are one matrix product, shared by all columns. Efron, "Better bootstrap confidence intervals", JASA 1987.

    Args:
        features: (units, F), the summands.
        statistic: from sums (..., F) to values (..., columns).
        rng: draws the units.

    Returns:
        The low and high ends, each (columns,); NaN for fewer than two units or if the statistic is undefined.
    """
    n = features.shape[0]
    with np.errstate(divide="ignore", invalid="ignore"):
        total = np.asarray(features.sum(0)).reshape(-1)
        observed = statistic(total)
        if n < 2:
            return np.full_like(observed, np.nan), np.full_like(observed, np.nan)
        drawn = np.concatenate([statistic(np.asarray(w @ features)) for w in weights(rng, n, resamples)])  # (resamples, columns)
        left_out = statistic(total - _group_sums(features))  # (groups, columns)
    return _bca_ends(observed, drawn, left_out, confidence)


def drawn_sums(features: np.ndarray, resamples: int, rng: np.random.Generator) -> np.ndarray:
    """Return the sums (resamples, F) of ``features`` (units, seeds, F) over drawn units and, where there are several, drawn training seeds.

    One seed fewer is drawn than there are, see :func:`idsds.nested_bootstrap`.
    """
    units, seeds, width = features.shape
    over_seeds = np.concatenate(list(weights(rng, seeds, resamples, draws=seeds - 1))) if seeds > 1 else np.ones((resamples, 1))
    drawn = []
    for over_units in weights(rng, units, resamples):  # (chunk, units)
        chosen, over_seeds = over_seeds[: len(over_units)], over_seeds[len(over_units) :]
        of_seeds = (over_units @ features.reshape(units, -1)).reshape(-1, seeds, width)
        drawn.append(np.einsum("rsf,rs->rf", of_seeds, chosen))
    return np.concatenate(drawn)


def nested(features: np.ndarray, statistic: Statistic, confidence: float, resamples: int, rng: np.random.Generator) -> Ends:
    """Compute the interval of a statistic of sums over training seeds and units: :func:`bca` of units where there is one seed.

    Args:
        features: (units, seeds, F), the summands.
        statistic, confidence, resamples, rng: as for :func:`bca`.

    Returns:
        As :func:`bca`; of several seeds, percentiles of the bootstrap over both.
    """
    if features.shape[1] == 1 or len(features) < 2:
        return bca(features.sum(1), statistic, confidence, resamples, rng)
    with np.errstate(divide="ignore", invalid="ignore"):
        return percentile_ends(statistic(drawn_sums(features, resamples, rng)), confidence)


def percentile_ends(drawn: np.ndarray, confidence: float) -> Ends:
    """Return the plain percentile interval of resampled values (resamples, columns)."""
    tail = (1 - confidence) / 2
    ends = [np.quantile(d[np.isfinite(d)], [tail, 1 - tail]) if np.isfinite(d).any() else np.full(2, np.nan) for d in drawn.T]
    low, high = np.array(ends).T
    return low, high


def wilson(successes: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Return the ends of Wilson's (1927) score interval of a fraction in [0, 1], such as an accuracy; NaN if ``count`` is 0.

    ``successes`` need not be a whole number: it may be a mean over training seeds.

    Raises:
        ValueError: if ``successes`` is not in [0, ``count``].
    """
    check_options(confidence)
    if not 0 <= successes <= count:
        raise ValueError(f"successes must be between 0 and {count}, not {successes}")
    if not count:
        return float("nan"), float("nan")
    share, z = successes / count, float(stats.norm.ppf((1 + confidence) / 2))
    middle, half = share + z**2 / (2 * count), z * math.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    scale = 1 + z**2 / count
    return 0.0 if successes == 0 else (middle - half) / scale, 1.0 if successes == count else (middle + half) / scale


def _group_sums(features: np.ndarray | sparse.csr_array) -> np.ndarray:
    n = features.shape[0]
    groups = min(n, JACKKNIFE_GROUPS)
    if groups == n and not sparse.issparse(features):
        return features
    group = np.arange(n) * groups // n
    member = sparse.csr_array((np.ones(n), (group, np.arange(n))), shape=(groups, n))
    sums = member @ features
    return sums.toarray() if sparse.issparse(sums) else sums


def _bca_ends(observed: np.ndarray, drawn: np.ndarray, left_out: np.ndarray, confidence: float) -> Ends:
    tails = ndtri(np.array([(1 - confidence) / 2, (1 + confidence) / 2]))
    ends = np.full((len(observed), 2), np.nan)
    for column, value in enumerate(observed):
        resampled, jackknife = drawn[:, column], left_out[:, column]
        resampled, jackknife = resampled[np.isfinite(resampled)], jackknife[np.isfinite(jackknife)]
        if not np.isfinite(value) or len(jackknife) < 2 or not len(resampled):
            continue
        # Values that differ only by rounding count as equal; otherwise the order of the sums would split ties.
        close = 1e-12 * max(np.abs(resampled - value).max(), np.finfo(float).tiny)
        below, equal = np.mean(resampled < value - close), np.mean(np.abs(resampled - value) <= close)
        bias = ndtri(np.clip(below + equal / 2, 0.5 / len(resampled), 1 - 0.5 / len(resampled)))
        pull = jackknife.mean() - jackknife
        spread = (pull**2).sum()
        acceleration = (pull**3).sum() / (6 * spread**1.5) if spread > 0 else 0.0
        shifted = bias + tails
        ends[column] = np.quantile(resampled, ndtr(bias + shifted / (1 - acceleration * shifted)))
    return ends[:, 0], ends[:, 1]


def jackknife(statistic: Callable[[np.ndarray], float], values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """Compute an interval for a smooth statistic of independent units: Student's t with the jackknife's standard error.

    For a mean it is the ordinary t interval. It also holds for a handful of units, for which a bootstrap would be far too narrow. Tukey,
    "Bias and confidence in not-quite large samples", 1958.

    Args:
        statistic: from values (units, ...) to a number.
        values: (units, ...).

    Returns:
        The ends; NaN for fewer than two units, if the statistic is undefined, and if it does not vary over fewer than :data:`FEW` units,
        which does not mean certainty.
    """
    check_options(confidence)
    n = len(values)
    if n < 2:
        return np.nan, np.nan
    left_out = np.array([statistic(np.delete(values, unit, axis=0)) for unit in range(n)])
    if n < FEW and np.ptp(left_out) < 1e-12:
        return np.nan, np.nan
    return jackknife_ends(statistic(values), left_out, confidence)


def jackknife_ends(observed: float, left_out: np.ndarray, confidence: float) -> tuple[float, float]:
    """Return the ends of :func:`jackknife` from a statistic and its values without each unit in turn, (units,)."""
    n = len(left_out)
    half = stdtrit(n - 1, (1 + confidence) / 2) * np.sqrt((n - 1) / n * ((left_out - left_out.mean()) ** 2).sum())
    return float(observed - half), float(observed + half)


def seed_interval(values: Sequence[float] | np.ndarray, confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the mean over training seeds with Student's t interval: mean, low, high.

    A bootstrap of two to five seeds is far too narrow; the t interval is exact for normal values. It holds for these images only.

    Args:
        values: (n,), one number per seed.

    Returns:
        The ends are NaN for a single seed, and all three if a value is NaN.

    Raises:
        ValueError: if there are no values, or if the confidence is out of range.
    """
    check_options(confidence)
    values = np.asarray(values, float)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"values must be (n,), one number per seed, not of shape {values.shape}")
    mean = values.mean()
    if len(values) == 1:
        return float(mean), float("nan"), float("nan")
    half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(mean), float(mean - half), float(mean + half)


def covers_seeds(seeds: int, confidence: float = 0.95) -> str:
    """Describe what :func:`seed_interval` covers."""
    return "one training seed: no interval" if seeds == 1 else f"{100 * confidence:g} % t interval over {seeds} training seeds"
