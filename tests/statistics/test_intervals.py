"""The jackknife against the t interval, and its coverage; the bootstrap is tested with the means that it serves."""

import numpy as np
import pytest
from scipy import stats

from idsds.statistics.intervals import bca, jackknife, nested, wilson


def test_the_jackknife_of_a_mean_is_the_t_interval():
    values = np.random.default_rng(0).normal(size=7)
    wanted = stats.t.interval(0.9, 6, loc=values.mean(), scale=stats.sem(values))
    assert jackknife(np.mean, values, 0.9) == pytest.approx(wanted)


def test_the_jackknife_covers_a_ratio_of_few_units():
    """Two means over the same eight images: 95 % of the intervals hold the true ratio, give or take what 400 repetitions allow."""
    rng = np.random.default_rng(1)
    pairs = rng.normal([2.0, 4.0], 0.5, size=(400, 8, 2))
    ends = [jackknife(lambda some: float(some[:, 0].mean() / some[:, 1].mean()), each) for each in pairs]
    covered = np.mean([low < 0.5 < high for low, high in ends])
    assert 0.91 < covered < 0.985
    assert all(np.isnan(jackknife(np.mean, np.ones(1))))


def test_a_few_units_that_agree_are_no_certainty():
    assert all(np.isnan(jackknife(np.mean, np.ones(5))))
    assert jackknife(np.mean, np.ones(64)) == (1, 1)


def test_wilson_is_the_closed_form():
    n, p, z = 200, 0.8, stats.norm.ppf(0.975)
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert wilson(160, n) == pytest.approx(((middle - half) / (1 + z**2 / n), (middle + half) / (1 + z**2 / n)))
    assert wilson(0, 5)[0] == 0
    assert all(np.isnan(wilson(0, 0)))


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize(("successes", "count"), [(0, 1), (1, 1), (1, 3), (25, 50), (332, 333)])
def test_wilson_is_that_of_scipy(successes, count, confidence):
    theirs = stats.binomtest(successes, count).proportion_ci(confidence, method="wilson")
    assert wilson(successes, count, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-14)


def test_wilson_of_a_mean_over_seeds_is_not_rounded():
    assert wilson(10, 50)[0] < wilson(10.5, 50)[0] < wilson(11, 50)[0]
    for wrong in (-1, 51, float("nan")):
        with pytest.raises(ValueError, match="successes must be between 0 and 50"):
            wilson(wrong, 50)


def test_nested_draws_one_seed_fewer_and_units():
    """A ratio, by a loop over resamples; with one seed, the BCa interval of the units."""
    rng = np.random.default_rng(5)
    features = np.stack([rng.normal([2, 3, 5], 1, size=(40, 3)), rng.uniform(1, 2, size=(40, 3))], axis=-1)  # (units, seeds, 2)

    def ratio(sums):
        return sums[..., :1] / sums[..., 1:]

    low, high = nested(features, ratio, 0.95, 4_000, np.random.default_rng(0))
    looped = []
    for _ in range(4_000):
        drawn = features[rng.integers(0, 40, 40)][:, rng.integers(0, 3, 2)]
        looped.append(drawn[..., 0].sum() / drawn[..., 1].sum())
    np.testing.assert_allclose([low[0], high[0]], np.quantile(looped, [0.025, 0.975]), atol=0.04)
    alone = [
        call(np.random.default_rng(0))
        for call in (
            lambda r: nested(features[:, :1], ratio, 0.95, 500, r),
            lambda r: bca(features[:, 0], ratio, 0.95, 500, r),
        )
    ]
    np.testing.assert_array_equal(*alone)
