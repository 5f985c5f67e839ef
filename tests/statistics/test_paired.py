import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from idsds.common.registry import UnknownNameError
from idsds.statistics import holm, images_needed, nested_bootstrap, paired_differences, rank, ranking_with_ties
from idsds.statistics.paired import sign_flip_test


def flips(difference, permutations, seed=0):
    return stats.permutation_test(
        (difference, np.zeros_like(difference)),
        lambda a, b, axis: (a - b).mean(axis),
        permutation_type="samples",
        n_resamples=permutations,
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).pvalue


def test_pairs_in_the_second_place_are_pairs_of_methods(records):
    pairs = [("IG", "IxG")]
    pd.testing.assert_frame_equal(paired_differences(records, pairs), paired_differences(records, pairs=pairs))


def test_exact_sign_flips_are_scipys():
    differences = np.random.default_rng(0).normal(size=(11, 4)) + np.array([0.0, 0.3, 0.6, 2.0])
    p = sign_flip_test(differences, 5_000, np.random.default_rng(0))
    np.testing.assert_allclose(p, [flips(d, 5_000) for d in differences.T], rtol=1e-12)


def test_tied_sums_count_as_extreme():
    # Of the 8 flips of (0.1, 0.2, 0.3) only +++ and --- reach 0.6; with (0.1, 0.2, -0.3) all reach 0. A zero takes no part.
    p = sign_flip_test(np.array([[0.1, 0.1], [0.2, 0.2], [0.3, -0.3], [0.0, 0.0]]), 99, np.random.default_rng(0))
    np.testing.assert_allclose(p, [2 / 8, 1.0])


def test_random_sign_flips_are_scipys_up_to_monte_carlo():
    differences = np.random.default_rng(1).gamma(2.0, size=(75, 3)) - [2.0, 1.8, 1.6]
    p = sign_flip_test(differences, 20_000, np.random.default_rng(0))
    # Two estimates of the same p from 20,000 flips each: five standard deviations of their difference, sqrt(2 p (1 - p) / 20000).
    np.testing.assert_allclose(p, [flips(d, 20_000) for d in differences.T], atol=5 * 0.5 * np.sqrt(2 / 20_000))


def test_p_below_the_floor_of_random_flips_is_a_bound_on_the_exact_one():
    difference = np.full(18, 1.0)  # exact: 2 of 2^18 flips
    p = sign_flip_test(difference[:, None], 999, np.random.default_rng(0))[0]
    assert 2 / 2**18 <= p == pytest.approx(2 * np.exp(-9))
    assert p < 1 / 1_000


def test_thousands_of_images_are_quiet_and_near_the_normal_limit():
    difference = np.random.default_rng(0).normal(size=3_000)
    difference += 1.5 / np.sqrt(3_000) - difference.mean()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p = sign_flip_test(difference[:, None], 9_999, np.random.default_rng(0))[0]
    z = difference.sum() / np.sqrt((difference**2).sum())
    # The flips' sum is a normal number but for 1 / n; what is left is the noise of 9,999 flips, five standard deviations of it.
    limit = 2 * stats.norm.sf(z)
    assert p == pytest.approx(limit, abs=5 * np.sqrt(limit * (1 - limit) / 9_999))


def test_holm_by_hand():
    # 5 tests: .005 x 5, .01 x 4, .03 x 3, .04 x 2 = .08 -> .09 (never below the one before), .2 x 1; NaN is no test.
    np.testing.assert_allclose(holm(np.array([0.04, 0.01, np.nan, 0.03, 0.005, 0.2])), [0.09, 0.04, np.nan, 0.09, 0.025, 0.2])
    np.testing.assert_allclose(holm(np.array([0.6, 0.7])), [1.0, 1.0])


def test_paired_differences_of_methods(records):
    table = paired_differences(records, resamples=300, permutations=999)
    assert table[["model", "a", "b"]].to_numpy().tolist() == [
        [model, *pair] for model in ("narrow", "wide") for pair in (("IG", "IxG"), ("IG", "Random"), ("IxG", "Random"))
    ]
    row = table[(table["model"] == "wide") & (table["a"] == "IG") & (table["b"] == "IxG")].iloc[0]
    wide = records[records["model"] == "wide"].pivot(index="image_id", columns="method", values="score").dropna()
    difference = wide["IG"] - wide["IxG"]
    assert (row["count"], row["nan"]) == (39, 1)
    assert row["difference"] == pytest.approx(difference.mean())
    assert row["a_beats_b"] == pytest.approx((difference > 0).mean())
    wanted = stats.bootstrap((difference,), np.mean, n_resamples=5_000, rng=np.random.default_rng(0)).confidence_interval
    np.testing.assert_allclose([row["low"], row["high"]], wanted, atol=0.15 * (wanted.high - wanted.low))  # ends from 300 resamples
    np.testing.assert_allclose(table["p_holm"], holm(table["p"]))
    assert set(table["interval"]) == {"95 % BCa bootstrap over images"}


def test_paired_differences_of_models_and_of_chosen_pairs(records):
    table = paired_differences(records, "model", [("wide", "narrow")], resamples=100, permutations=99)
    assert table[["method", "a", "b"]].to_numpy().tolist() == [[m, "wide", "narrow"] for m in ("IG", "IxG", "Random")]
    ab = paired_differences(records, pairs=[("IG", "IxG")], resamples=100, permutations=99)
    ba = paired_differences(records, pairs=[("IxG", "IG")], resamples=100, permutations=99)
    np.testing.assert_allclose(ab["difference"], -ba["difference"])
    np.testing.assert_allclose(ab["a_beats_b"], 1 - ba["a_beats_b"])


def test_pairs_at_once_change_nothing(records, monkeypatch):
    whole = paired_differences(records, resamples=50, permutations=99)
    monkeypatch.setattr("idsds.statistics.paired.PAIRS_AT_ONCE", 2)
    pd.testing.assert_frame_equal(paired_differences(records, resamples=50, permutations=99), whole, rtol=1e-12)


def test_ties_count_half_and_equal_methods_are_quiet(make_records):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        equal = paired_differences(make_records([[0.5, 0.5]] * 20), resamples=100).iloc[0]
        undefined = paired_differences(make_records([[0.5, np.nan]] * 20), resamples=100).iloc[0]
    assert (equal["difference"], equal["low"], equal["high"], equal["a_beats_b"], equal["p"]) == (0, 0, 0, 0.5, 1)
    assert undefined[["difference", "low", "high", "a_beats_b", "p", "p_holm"]].isna().all()
    assert (undefined["count"], undefined["nan"]) == (0, 20)


def test_the_seeds_of_an_image_are_no_new_images(make_records):
    scores = np.random.default_rng(0).normal(size=(12, 2)) + np.array([0.4, 0.0])
    one = paired_differences(make_records(scores), resamples=100)
    many = paired_differences(pd.concat([make_records(scores, seed=s) for s in range(5)]), resamples=100)
    np.testing.assert_allclose(many[["difference", "low", "high", "p"]], one[["difference", "low", "high", "p"]], rtol=1e-9)
    assert many["count"][0] == 60
    assert many["interval"][0].endswith("5 training seeds held fixed")


def test_the_level_of_the_test_under_the_null():
    differences = np.random.default_rng(4).laplace(size=(30, 400))
    rejected = int((sign_flip_test(differences, 999, np.random.default_rng(0)) <= 0.05).sum())
    assert stats.binom.ppf(0.0005, 400, 0.05) <= rejected <= stats.binom.ppf(0.9995, 400, 0.05)


def test_ranking_with_ties(make_records):
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(300, 4)) * 0.1
    noise -= noise.mean(0)
    records = make_records(noise + np.array([0.5, 0.501, 0.2, 0.1]), methods=["A", "B", "C", "D"])
    table = ranking_with_ties(records, resamples=100)
    assert table["method"].tolist() == ["B", "A", "C", "D"]
    assert table["place"].tolist() == [1, 2, 3, 4]
    assert table["tie"].tolist() == [1, 1, 2, 3]
    assert table["told_apart"].tolist() == [False, True, True, pd.NA]
    assert table["next"].tolist()[:3] == ["A", "C", "D"]
    np.testing.assert_allclose(table["difference"][:3], [0.001, 0.3, 0.1])
    pd.testing.assert_frame_equal(table[rank(records).columns.drop("interval")], rank(records, resamples=100).drop(columns="interval"))
    alone = ranking_with_ties(records[records["method"] == "A"], resamples=100)
    assert (alone["place"][0], alone["tie"][0], alone["told_apart"][0]) == (1, 1, pd.NA)


def test_ranking_corrects_within_its_own_neighbours(records):
    table = ranking_with_ties(records, resamples=50, permutations=999)
    assert table["p_holm"].notna().sum() == 4  # two pairs of neighbours for each of two models
    assert table.groupby("model")["place"].apply(list).tolist() == [[1, 2, 3]] * 2


@pytest.mark.parametrize("effect", [0.25, 0.5, 1.0])
def test_images_needed_reaches_the_power_of_the_t_test(make_records, effect):
    d = np.random.default_rng(0).normal(size=50)
    d = (d - d.mean()) / d.std(ddof=1) + effect
    row = images_needed(make_records(np.column_stack([d, np.zeros(50)]), methods=["A", "B"]), "A", "B").iloc[0]

    def power(n):  # of the two-sided t test, from the noncentral t distribution
        t = stats.t.ppf(0.975, n - 1)
        return stats.nct.sf(t, n - 1, effect * np.sqrt(n)) + stats.nct.cdf(-t, n - 1, effect * np.sqrt(n))

    exact = next(n for n in range(3, 1_000) if power(n) >= 0.8)
    assert abs(row["images"] - exact) <= 1
    assert (row["count"], row["difference"], row["sd"]) == pytest.approx((50, effect, 1.0))


def test_images_needed_of_equal_methods(make_records):
    row = images_needed(make_records([[0.1, 0.1], [0.2, 0.2]]), "m00", "m01").iloc[0]
    assert np.isinf(row["images"])


def test_unknown_names_come_with_the_nearest(records):
    with pytest.raises(UnknownNameError, match=r"'Randm'.*'Random'"):
        paired_differences(records, pairs=[("IG", "Randm")])
    with pytest.raises(UnknownNameError, match=r"'wides'.*'wide'"):
        images_needed(records, "wides", "narrow", by="model")
    with pytest.raises(UnknownNameError, match=r"'methods'.*'method'"):
        paired_differences(records, by="methods")
    with pytest.raises(ValueError, match="two different"):
        paired_differences(records, pairs=[("IG", "IG")])
    with pytest.raises(ValueError, match="nothing to compare"):
        paired_differences(records[records["method"] == "IG"])
    with pytest.raises(ValueError, match="power"):
        images_needed(records, "IG", "IxG", power=0.01)
    with pytest.raises(ValueError, match="permutations"):
        paired_differences(records, permutations=0)


def test_nested_differences_draw_seeds_with_the_images(make_records):
    """They are the nested interval of the differences themselves, and say no where the seeds disagree although each is sure."""
    rng, gain = np.random.default_rng(4), (0.3, 0.2, -0.1)
    parts = []
    for seed, more in enumerate(gain):
        base = rng.normal(size=50)
        parts.append(make_records(np.column_stack([base + more + 0.1 * rng.normal(size=50), base]), seed=seed))
    frame = pd.concat(parts, ignore_index=True)
    fixed, nested = (paired_differences(frame, nested=each).iloc[0] for each in (False, True))
    assert fixed["low"] > 0
    assert fixed["p"] < 0.01
    assert "held fixed" in fixed["interval"]
    assert nested["low"] < 0 < nested["high"]
    assert nested["p"] > 0.05
    assert nested["interval"] == "95 % percentile bootstrap over training seeds and images"
    wide = frame.pivot(index=["seed", "image_id"], columns="method", values="score")
    own = nested_bootstrap((wide["m00"] - wide["m01"]).rename("score").reset_index().assign(model="net", method="difference")).iloc[0]
    assert list(nested[["difference", "low", "high", "count"]]) == pytest.approx(list(own[["mean", "low", "high", "count"]]), rel=1e-12)
    one = frame[frame["seed"] == 0]
    pd.testing.assert_frame_equal(paired_differences(one, nested=True), paired_differences(one))
    pd.testing.assert_frame_equal(rank(one, nested=True), rank(one))
    columns = ["mean", "low", "high", "count", "nan", "interval"]
    pd.testing.assert_frame_equal(rank(frame, nested=True)[columns], nested_bootstrap(frame)[columns])
