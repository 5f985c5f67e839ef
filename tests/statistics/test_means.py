import time
import tracemalloc
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from idsds.statistics import nested_bootstrap, null_band, rank
from idsds.statistics.means import mean_interval


def test_bca_ends_are_scipys_on_the_same_resamples():
    scores = np.random.default_rng(0).gamma(2.0, size=(37, 3))
    low, high = mean_interval(scores, np.arange(37), 0.9, 999, np.random.default_rng(5))
    for column in range(3):  # scipy takes the very same stream of draws, so that the ends differ by rounding alone
        wanted = stats.bootstrap((scores[:, column],), np.mean, n_resamples=999, confidence_level=0.9, rng=np.random.default_rng(5))
        np.testing.assert_allclose([low[column], high[column]], wanted.confidence_interval, rtol=1e-9)


def test_chunks_do_not_change_the_draws(monkeypatch):
    scores = np.random.default_rng(0).gamma(2.0, size=(37, 2))
    whole = mean_interval(scores, np.arange(37), 0.9, 101, np.random.default_rng(5))
    monkeypatch.setattr("idsds.statistics.intervals.CHUNK", 37 * 3)
    np.testing.assert_allclose(mean_interval(scores, np.arange(37), 0.9, 101, np.random.default_rng(5)), whole, rtol=1e-12)


def test_bca_with_undefined_scores_is_scipys_without_them_up_to_monte_carlo():
    score = np.random.default_rng(0).gamma(2.0, size=200)
    with_nan = np.insert(score, [3, 50, 51], np.nan)[:, None]
    low, high = mean_interval(with_nan, np.arange(203), 0.95, 20_000, np.random.default_rng(1))
    wanted = stats.bootstrap((score,), np.mean, n_resamples=20_000, rng=np.random.default_rng(2))
    # An end is placed within about 1 % of the width by 20,000 resamples, on either side.
    width = wanted.confidence_interval.high - wanted.confidence_interval.low
    np.testing.assert_allclose([low[0], high[0]], wanted.confidence_interval, atol=0.03 * width)


def test_rank_counts_sorts_and_labels(records):
    table = rank(records, resamples=200)
    assert list(table.columns) == ["model", "method", "mean", "low", "high", "count", "nan", "interval", "direction"]
    assert table["model"].tolist() == ["narrow"] * 3 + ["wide"] * 3
    assert table["method"].tolist() == ["IG", "IxG", "Random"] * 2
    expected = records.groupby(["model", "method"])["score"].agg(["mean", "count", "size"]).reset_index()
    np.testing.assert_allclose(table["mean"], expected["mean"])
    assert table["count"].tolist() == expected["count"].tolist()
    assert table["nan"].tolist() == (expected["size"] - expected["count"]).tolist()
    assert (table["low"] < table["mean"]).all()
    assert (table["mean"] < table["high"]).all()
    assert set(table["interval"]) == {"95 % BCa bootstrap over images"}


def test_rank_does_not_depend_on_the_order_of_rows_or_on_other_methods(records):
    table = rank(records, resamples=100)
    pd.testing.assert_frame_equal(table, rank(records.sample(frac=1, random_state=0), resamples=100))
    alone = rank(records[records["method"] == "IxG"], resamples=100)
    pd.testing.assert_frame_equal(alone, table[table["method"] == "IxG"].reset_index(drop=True), rtol=1e-12)


def test_categories_and_missing_settings_are_taken(records):
    table = rank(records.astype({"model": "category", "method": "category"}), resamples=50)
    pd.testing.assert_frame_equal(table, rank(records, resamples=50))
    half = records.assign(baseline=np.where(records["model"] == "wide", "blur", None))
    assert rank(half, resamples=50)["count"].sum() == 239


def test_rank_splits_by_settings_that_vary(records):
    both = pd.concat([records.assign(grid=4, baseline="zeros"), records.assign(grid=8, baseline="zeros")])
    table = rank(both, resamples=50)
    assert list(table.columns[:3]) == ["model", "grid", "method"]
    assert len(table) == 12


@pytest.mark.parametrize(
    ("scores", "mean", "ends", "count"),
    [
        ([0.1] * 5, 0.1, (0.1, 0.1), 5),
        ([0.3], 0.3, (np.nan, np.nan), 1),
        ([np.nan, np.nan], np.nan, (np.nan, np.nan), 0),
        ([np.nan, 0.4], 0.4, (np.nan, np.nan), 1),
        ([np.inf, 0.4, 0.4], 0.4, (0.4, 0.4), 2),
    ],
)
def test_rank_of_degenerate_scores_is_quiet(make_records, scores, mean, ends, count):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = rank(make_records(np.array(scores)[:, None]), resamples=100).iloc[0]
    np.testing.assert_allclose([row["mean"], row["low"], row["high"]], [mean, *ends], rtol=1e-14)
    assert (row["count"], row["nan"]) == (count, len(scores) - count)


def test_rank_holds_several_training_seeds_fixed_and_says_so(make_records):
    scores = np.random.default_rng(0).normal(size=(60, 1))
    seeds = pd.concat([make_records(scores + shift, seed=s) for s, shift in enumerate([-1.0, 0.0, 1.0])])
    table = rank(pd.concat([seeds, make_records(scores, "other", seed=0)]), resamples=500)
    one = rank(make_records(scores), resamples=500)
    assert table["interval"][0] == "95 % BCa bootstrap over images, 3 training seeds held fixed"
    assert table["interval"][1] == "95 % BCa bootstrap over images"
    assert table["count"].tolist() == [180, 60]
    # The shifts cancel within each image, so three seeds know no more of the images than one does.
    np.testing.assert_allclose(table.loc[:0, ["mean", "low", "high"]], one[["mean", "low", "high"]], rtol=1e-9)


def test_coverage_of_the_bca_interval():
    rng, truth, repeats = np.random.default_rng(11), 0.2, 400
    scores = rng.gamma(2.0, 0.1, size=(60, repeats))  # skewed, mean 0.2; each column is one experiment
    low, high = mean_interval(scores, np.arange(60), 0.95, 1_000, rng)
    hits = int(((low <= truth) & (truth <= high)).sum())
    # At 60 skewed scores BCa covers somewhat less than 95 %: between 0.93 and 0.96, seen from 400 experiments at 99.9 %.
    assert stats.binom.ppf(0.0005, repeats, 0.93) <= hits <= stats.binom.ppf(0.9995, repeats, 0.96)


def test_coverage_of_the_interval_over_seeds_and_images(make_records):
    rng, repeats = np.random.default_rng(12), 300
    seeds, images = rng.normal(size=(8, 1, repeats)) * 0.3, rng.normal(size=(50, repeats))
    scores = seeds + images + rng.normal(size=(8, 50, repeats)) * 0.3  # one experiment per method
    frame = pd.concat([make_records(of_seed, seed=s) for s, of_seed in enumerate(scores)])
    hits, blind = (int(((t["low"] <= 0) & (t["high"] >= 0)).sum()) for t in (nested_bootstrap(frame), rank(frame)))
    assert stats.binom.ppf(0.0005, repeats, 0.92) <= hits <= stats.binom.ppf(0.9995, repeats, 0.975)
    assert blind < hits


def test_nested_bootstrap_reports_seeds_and_their_spread(make_records):
    frame = pd.concat([make_records(np.full((10, 1), value), seed=s) for s, value in enumerate([0.1, 0.2, 0.6])])
    row = nested_bootstrap(frame, resamples=4_000).iloc[0]
    assert row["seeds"] == 3
    assert row["seed_sd"] == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))
    assert row["interval"] == "95 % percentile bootstrap over training seeds and images"
    assert (row["low"], row["high"]) == pytest.approx((0.1, 0.6))  # means of two of the three, each pair with probability 1 / 9 or more
    with pytest.raises(ValueError, match="at least two"):
        nested_bootstrap(frame[frame["seed"] == 0])


@pytest.mark.parametrize("n_patches", [4, 16, 64])
def test_null_band_holds_the_mean_of_random_orders(n_patches):
    rng, count, repeats = np.random.default_rng(n_patches), 20, 500
    drops, order = rng.permuted(np.tile(np.arange(n_patches), (count * repeats, 1)), axis=1), np.arange(n_patches)
    rho = stats.spearmanr(drops.T[:, :1], order).statistic  # one through scipy, all through the formula for no ties
    rhos = 1 - 6 * ((drops - order) ** 2).sum(1) / (n_patches * (n_patches**2 - 1))
    assert rhos[0] == pytest.approx(rho)
    inside = int((np.abs(rhos.reshape(repeats, count).mean(1)) <= null_band(n_patches, count)).sum())
    assert stats.binom.ppf(0.0005, repeats, 0.95) <= inside <= stats.binom.ppf(0.9995, repeats, 0.95)


def test_null_band_closed_form():
    assert null_band(16, 100) == pytest.approx(1.959963984540054 / np.sqrt(15) / 10)
    np.testing.assert_allclose(null_band(16, np.array([0, 4])), [np.nan, null_band(16, 1) / 2])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda r: r.drop(columns="score"), ValueError, "score"),
        (lambda r: r.iloc[:0], ValueError, "no rows"),
        (lambda r: pd.concat([r, r]), ValueError, "more than one row for model=narrow, method=IG, image_id=0"),
        (lambda r: r.assign(score="high"), TypeError, "numbers"),
        (lambda r: r.to_dict(), TypeError, "DataFrame"),
    ],
)
def test_unusable_records_are_named(records, change, error, message):
    with pytest.raises(error, match=message):
        rank(change(records))


@pytest.mark.parametrize("options", [{"confidence": 95}, {"resamples": 0}, {"resamples": 2.5}])
def test_unusable_options_are_named(records, options):
    with pytest.raises(ValueError, match=next(iter(options))):
        rank(records, **options)
    with pytest.raises(ValueError, match="n_patches"):
        null_band(1, 10)


def test_fifty_thousand_images_take_seconds_and_little_memory(make_records):
    scores = np.random.default_rng(0).normal(size=(50_000, 23))
    records = make_records(scores)
    tracemalloc.start()
    start = time.process_time()
    table = rank(records)
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"{seconds:.1f} s, {peak / 2**20:.0f} MiB")
    standard_error = scores.std(0, ddof=1) / np.sqrt(50_000)
    width = (table.set_index("method")["high"] - table.set_index("method")["low"]).sort_index()
    np.testing.assert_allclose(width, 2 * 1.96 * standard_error, rtol=0.15)  # 2,000 resamples: each end within some 5 %
    assert seconds < 30  # processor time; some 4 s, with room for slower machines
    assert peak < 200 * 2**20  # scipy's own would take 50,000 x 2,000 x 23 x 8 bytes = 18 GB


def test_patches_may_be_a_whole_float():
    assert null_band(16.0, 12) == null_band(np.float64(16), 12) == null_band(16, 12)
    for wrong in (2.5, 1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="n_patches must be a whole number of at least 2"):
            null_band(wrong, 12)
