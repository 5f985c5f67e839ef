"""Correlations over grouped units: scipy and rank residuals as oracles, and what the intervals cover."""

import numpy as np
import pytest
from scipy.stats import rankdata, spearmanr, t

from idsds.statistics.grouped import jackknife_interval, mean_of_groups, partial, spearman, without_each


def test_one_group_is_scipys_coefficient():
    values = np.random.default_rng(0).normal(size=(23, 3)).round(1)  # with ties
    assert spearman(values, [0] * 23) == pytest.approx(spearmanr(values).statistic, abs=1e-12)


def test_within_groups_of_equal_size_it_is_the_mean_of_theirs():
    rng = np.random.default_rng(1)
    groups = np.repeat(["a", "b", "c", "d"], 7)
    values = rng.normal(size=(28, 2)) + 10 * (groups == "b")[:, None]  # a difference between groups plays no part
    found = spearman(values, groups)[0, 1]
    assert found == pytest.approx(np.mean([spearmanr(values[groups == name]).statistic for name in "abcd"]), abs=1e-12)
    assert abs(found - spearmanr(values).statistic) > 0.1


def test_partial_is_the_correlation_of_rank_residuals():
    rng = np.random.default_rng(2)
    given = rng.normal(size=40)
    first, second = given + rng.normal(size=40), given**3 + rng.normal(size=40).round()
    ranks = [rankdata(values) for values in (first, second, given)]
    line = np.stack([np.ones(40), ranks[2]], axis=1)
    left = [values - line @ np.linalg.lstsq(line, values, rcond=None)[0] for values in ranks[:2]]
    found = partial(spearman(np.stack([first, second, given], axis=1), [0] * 40), 0, 1, 2)
    assert found == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-12)
    assert abs(found - spearmanr(first, second).statistic) > 0.1


def test_nothing_is_left_where_the_third_says_all():
    values = np.random.default_rng(3).normal(size=(9, 2))
    assert np.isnan(partial(spearman(np.c_[values, values[:, 0] ** 3], [0] * 9), 0, 1, 2))


def test_the_jackknife_leaves_out_one_group_at_a_time():
    rng = np.random.default_rng(4)
    cells, values = np.repeat(range(5), 4), rng.normal(size=(20, 2))
    values[:, 1] += values[:, 0]
    left_out = without_each(values, np.zeros(20, int), cells)[:, 0, 1]
    assert left_out == pytest.approx([spearmanr(values[cells != cell]).statistic for cell in range(5)])
    point = spearmanr(values).statistic
    z = [0.5 * np.log((1 + r) / (1 - r)) for r in (point, *left_out)]
    variance = 4 / 5 * sum((each - sum(z[1:]) / 5) ** 2 for each in z[1:])
    expected = [np.tanh(z[0] + t.ppf(tail, 4) * variance**0.5) for tail in (0.025, 0.975)]
    assert jackknife_interval(point, left_out) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("point", "left_out"), [(0.5, [0.4, 0.6]), (0.5, [0.5] * 4), (1.0, [0.9, 1.0, 1.0]), (0.4, [0.4, np.nan, 0.3])], ids=str
)
def test_what_has_no_interval(point, left_out):
    assert np.isnan(jackknife_interval(point, np.array(left_out))).all()


def test_the_mean_of_groups_has_students_interval():
    own = np.array([0.2, 0.5, np.nan, 0.9])
    defined = own[[0, 1, 3]]
    half = t.ppf(0.975, 2) * defined.std(ddof=1) / 3**0.5
    assert mean_of_groups(own) == pytest.approx([defined.mean(), defined.mean() - half, defined.mean() + half])
    assert np.isnan(mean_of_groups(own[:2])[1:]).all()
    assert np.isnan(mean_of_groups(np.array([np.nan])))[0]


def draw(rng, groups, size=5):
    """Units whose two values share what their group adds to them: (units, 2) and the group of each."""
    mix = np.linalg.cholesky([[1, 0.6], [0.6, 1]])
    cells = np.repeat(np.arange(groups), size)
    return rng.normal(size=(groups, 2))[cells] @ mix.T + rng.normal(size=(groups * size, 2)) @ mix.T, cells


@pytest.mark.parametrize("groups", [6, 15])
def test_the_interval_covers_what_it_says(groups):
    """In 300 draws of few groups 95 % of the intervals hold the correlation of ever so many, give or take 3 standard errors, 0.038."""
    rng = np.random.default_rng(groups)
    true = spearmanr(draw(rng, 20_000)[0]).statistic
    inside = 0
    for _ in range(300):
        values, cells = draw(rng, groups)
        same = np.zeros(len(cells), int)
        low, high = jackknife_interval(spearman(values, same)[0, 1], without_each(values, same, cells)[:, 0, 1])
        inside += low <= true <= high
    assert abs(inside / 300 - 0.95) < 0.038
