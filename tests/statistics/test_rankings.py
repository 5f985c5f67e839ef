import numpy as np
import pandas as pd
import pytest
from scipy import stats

from idsds.statistics import rank, rank_agreement, rank_each
from idsds.statistics.rankings import kendall, spearman, weighted_means


def records(scores, models=("net",)):
    """Scores by condition, (images, methods) each, as records; methods are a, b, c, ..."""
    rows = [
        (model, condition, "abcdefgh"[column], f"i{row:03d}", value)
        for model in models
        for condition, matrix in scores.items()
        for (row, column), value in np.ndenumerate(matrix)
    ]
    return pd.DataFrame(rows, columns=["model", "condition", "method", "image_id", "score"])


def noisy(means, images=40, noise=0.1, seed=0):
    return np.asarray(means) + noise * np.random.default_rng(seed).standard_normal((images, len(means)))


@pytest.mark.parametrize("ties", [False, True])
def test_coefficients_are_scipys(ties):
    rng = np.random.default_rng(1)
    first, second = (rng.integers(0, 4, (20, 7)).astype(float) if ties else rng.standard_normal((20, 7)) for _ in range(2))
    wanted = [stats.kendalltau(a, b).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(kendall(first, second), wanted, atol=1e-12)
    wanted = [stats.spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(spearman(first, second), wanted, atol=1e-12)


def test_coefficients_of_a_constant_or_undefined_row_are_nan():
    values = np.array([[1.0, 2, 3], [1, 1, 1], [1, np.nan, 2]])
    other = np.array([[2.0, 1, 3]] * 3)
    for coefficient in (kendall, spearman):
        assert np.isfinite(coefficient(values, other)).tolist() == [True, False, False]


def test_agreement_is_that_of_the_means():
    scores = {"x": noisy([0.1, 0.5, 0.3, 0.9], seed=1), "y": noisy([0.2, 0.1, 0.3, 0.8], seed=2)}
    table = rank_agreement(records(scores), "condition", resamples=200).set_index(["first", "second"])
    means = [scores[name].mean(axis=0) for name in ("x", "y")]
    assert table.loc[("x", "y"), "tau"] == pytest.approx(stats.kendalltau(*means).statistic)
    assert table.loc[("x", "y"), "rho"] == pytest.approx(stats.spearmanr(*means).statistic)
    assert (table["methods"] == 4).all()
    assert (table["count"] == 40).all()
    assert list(table.index) == [("x", "x"), ("x", "y"), ("y", "y")]


def test_clear_rankings_have_intervals_of_no_width_and_reversed_ones_disagree():
    up, down = [0.1, 0.4, 0.7], [0.7, 0.4, 0.1]
    clear = {"x": noisy(up, noise=1e-3), "y": noisy(up, noise=1e-3, seed=1), "z": noisy(down, noise=1e-3)}
    table = rank_agreement(records(clear), "condition", resamples=100).set_index(["first", "second"])
    assert table.loc[("x", "y"), ["tau", "tau_low", "tau_high", "rho"]].tolist() == [1, 1, 1, 1]
    assert table.loc[("x", "z"), ["tau", "tau_low", "tau_high", "rho"]].tolist() == [-1, -1, -1, -1]
    assert table.loc[("x", "x"), "tau"] == 1  # halves of the images agree too


def test_the_interval_covers_the_rankings_of_new_images():
    # The share of intervals that hold tau of the true means, which is 1: with methods this far apart it is nearly all of them.
    held = 0
    for seed in range(20):
        scores = {name: noisy([0.0, 0.15, 0.3, 0.45], images=30, noise=0.3, seed=2 * seed + k) for k, name in enumerate("xy")}
        row = rank_agreement(records(scores), "condition", resamples=200).set_index(["first", "second"]).loc[("x", "y")]
        held += row["tau_low"] <= 1 <= row["tau_high"] + 1e-12
        assert row["tau_low"] <= row["tau_high"]
    assert held >= 14  # percentile intervals fall short of a bound: 95 % of 20 are 19, 14 would happen once in 10,000


def test_only_methods_asked_for_and_images_that_both_have_count():
    scores = {"x": noisy([0.1, 0.5, 0.3]), "y": noisy([0.1, 0.5, 0.3], images=25)}
    table = rank_agreement(records(scores), "condition", methods=["a", "b"], resamples=50).set_index(["first", "second"])
    assert table.loc[("x", "y"), ["methods", "count"]].tolist() == [2, 25]
    assert table.loc[("x", "x"), "count"] == 40


def test_too_few_methods_or_images_have_no_agreement():
    for scores in ({"x": noisy([0.1]), "y": noisy([0.2])}, {"x": noisy([0.1, 0.2], images=1), "y": noisy([0.1, 0.2], images=1)}):
        table = rank_agreement(records(scores), "condition", resamples=10)
        assert table[["tau", "tau_low", "tau_high", "rho"]].isna().all(axis=None)


def test_places_follow_the_means_and_means_are_those_of_rank():
    scores = {"x": noisy([0.1, 0.9, 0.5], noise=0.01), "y": noisy([0.9, 0.1, 0.5], noise=0.01)}
    found = records(scores, models=("net", "other"))
    table = rank_each(found, "condition", resamples=200)
    places = table.set_index(["model", "condition", "method"])["place"]
    assert [places["net", "x", m] for m in "abc"] == [3, 1, 2]
    assert [places["other", "y", m] for m in "abc"] == [1, 3, 2]
    assert (table["place_low"] == table["place"]).all()
    wanted = rank(found[found["condition"] == "y"], resamples=200)
    pd.testing.assert_frame_equal(table[table["condition"] == "y"][wanted.columns].reset_index(drop=True), wanted)


def test_places_of_methods_that_are_alike_are_uncertain():
    table = rank_each(records({"x": noisy([0.5, 0.5, 0.5], noise=0.2)}), "condition", resamples=500)
    assert (table["place_high"] - table["place_low"] >= 1).all()


def test_an_undefined_score_is_left_out_of_its_mean_and_a_method_without_any_has_no_place():
    matrix = noisy([0.1, 0.9, 0.5], noise=0.01)
    matrix[:30, 0], matrix[:, 2] = np.nan, np.nan
    found = weighted_means(matrix, np.ones((1, 40)))[0]
    np.testing.assert_allclose(found[:2], np.nanmean(matrix[:, :2], axis=0))
    table = rank_each(records({"x": matrix}), "condition", resamples=50).set_index("method")
    assert table.loc[["a", "b"], "place"].tolist() == [2, 1]
    assert np.isnan(table.loc["c", "place"])


def test_conditions_keep_their_order():
    found = records({"z": noisy([0.1, 0.2]), "a": noisy([0.1, 0.2])})
    assert list(rank_agreement(found, "condition", resamples=10)["first"]) == ["z", "z", "a"]
    assert list(dict.fromkeys(rank_each(found, "condition", resamples=10)["condition"])) == ["z", "a"]


def test_conditions_of_different_seeds_are_compared_on_the_same_images(make_records):
    order = np.arange(5.0)
    parts = [make_records(np.tile(order * sign, (8, 1)), seed=seed, net=f"seed {seed}") for seed, sign in ((0, 1), (1, 1), (2, -1))]
    found = rank_agreement(pd.concat(parts), "net", nested=True).set_index(["first", "second"])
    assert found.loc[("seed 0", "seed 1"), ["tau", "count"]].tolist() == [1, 8]
    assert found.loc[("seed 0", "seed 2"), ["tau", "count"]].tolist() == [-1, 8]


def test_a_nested_agreement_covers_the_seeds(make_records):
    """Two conditions agree on two nets and rank the methods in reverse on the third; the seeds' mean alone would not show it."""
    order, parts = np.arange(5.0), []
    for seed, sign in enumerate((1, 1, -1)):
        for name, values in (("a", order), ("b", sign * order)):
            parts.append(make_records(np.tile(values, (8, 1)), seed=seed, condition=name))
    frame = pd.concat(parts, ignore_index=True)
    fixed, nested = (rank_agreement(frame, "condition", nested=each).query("first != second").iloc[0] for each in (False, True))
    assert fixed["tau"] == nested["tau"] == fixed["tau_low"] == 1
    assert nested["tau_low"] == -1
    assert nested["count"] == 8
    assert (fixed["interval"], nested["interval"]) == (
        "95 % percentile bootstrap over images",
        "95 % percentile bootstrap over training seeds and images",
    )
    places = rank_each(frame, "condition", nested=True).set_index(["condition", "method"])
    assert tuple(places.loc[("b", "m04"), ["place", "place_low", "place_high"]]) == (1, 1, 5)
    assert tuple(places.loc[("a", "m04"), ["place", "place_low", "place_high"]]) == (1, 1, 1)
