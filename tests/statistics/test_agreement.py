import warnings

import krippendorff
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from idsds.statistics import kendalls_w, krippendorffs_alpha

COEFFICIENTS = {"w": kendalls_w, "alpha": krippendorffs_alpha}


@pytest.fixture(params=[False, True], ids=["no ties", "ties"])
def scores(request):
    drawn = np.random.default_rng(0).normal(size=(40, 5)) + np.array([0.0, 0.3, 0.6, 0.9, 2.0])
    return np.round(drawn) if request.param else drawn


def w_by_hand(scores):
    """Through Friedman's chi-squared, which scipy corrects for ties: W = chi2 / (m (k - 1))."""
    return stats.friedmanchisquare(*scores.T).statistic / (len(scores) * (scores.shape[1] - 1))


def alpha_by_package(scores):
    return krippendorff.alpha(reliability_data=stats.rankdata(scores, axis=1), level_of_measurement="ordinal")


ORACLES = {"w": w_by_hand, "alpha": alpha_by_package}


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_value_is_the_oracles(make_records, scores, name):
    row = COEFFICIENTS[name](make_records(scores), resamples=100).iloc[0]
    assert row[name] == pytest.approx(ORACLES[name](scores), rel=1e-12)
    assert (row["methods"], row["count"], row["nan"]) == (5, 40, 0)
    assert row["interval"] == "95 % BCa bootstrap over images"


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_interval_is_scipys_up_to_monte_carlo(make_records, scores, name):
    row = COEFFICIENTS[name](make_records(scores), resamples=4_000).iloc[0]
    wanted = stats.bootstrap(
        (np.arange(len(scores)),), lambda i: ORACLES[name](scores[i]), vectorized=False, n_resamples=1_000, rng=np.random.default_rng(1)
    ).confidence_interval
    # 1,000 resamples place an end within some 5 % of the width; three times that, since BCa moves towards a tail.
    np.testing.assert_allclose([row["low"], row["high"]], wanted, atol=0.15 * (wanted.high - wanted.low))


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_full_agreement_and_none(make_records, name):
    agreed = COEFFICIENTS[name](make_records(np.tile([0.1, 0.5, 0.3], (20, 1))), resamples=100).iloc[0]
    assert (agreed[name], agreed["low"], agreed["high"]) == pytest.approx((1, 1, 1))
    rng = np.random.default_rng(2)
    unrelated = COEFFICIENTS[name](make_records(rng.normal(size=(2_000, 6))), resamples=100).iloc[0]
    # m (k - 1) W is chi-squared with k - 1 = 5 degrees of freedom; alpha is W less its mean 1 / m.
    assert abs(unrelated[name]) < stats.chi2.ppf(0.9999, 5) / 5 / 2_000


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_incomplete_images_are_counted_and_models_kept_apart(make_records, scores, name):
    holed = scores.copy()
    holed[[3, 9], [0, 4]] = np.nan
    frame = pd.concat([make_records(holed, "a"), make_records(scores[:, ::-1], "b").query("not (image_id == 0 and method == 'm01')")])
    table = COEFFICIENTS[name](frame, resamples=50).set_index("model")
    assert table[["count", "nan"]].to_numpy().tolist() == [[38, 2], [39, 1]]
    assert table.loc["a", name] == pytest.approx(ORACLES[name](np.delete(scores, [3, 9], axis=0)))


@pytest.mark.parametrize("name", COEFFICIENTS)
@pytest.mark.parametrize("shape", [(1, 3), (10, 1), (4, 3)])
def test_degenerate_records_are_quiet(make_records, name, shape):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        row = COEFFICIENTS[name](make_records(np.ones(shape)), resamples=50).iloc[0]  # nothing is ranked: all scores are equal
    assert row[[name, "low", "high"]].isna().all()
    assert row["count"] == shape[0]


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_seeds_are_averaged_per_image(make_records, name):
    scores = np.random.default_rng(0).normal(size=(30, 4))
    shift = np.random.default_rng(1).normal(size=(30, 4))
    frame = pd.concat([make_records(scores + shift, seed=0), make_records(scores - shift, seed=1)])
    assert COEFFICIENTS[name](frame, resamples=10)[name][0] == pytest.approx(ORACLES[name](scores))


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_coverage(make_records, name):
    rng, repeats = np.random.default_rng(5), 200
    means = np.array([0.0, 0.4, 0.8, 1.2])
    truth = ORACLES["w"](rng.normal(size=(200_000, 4)) + means)  # both tend to this as images grow
    frame = pd.concat([make_records(rng.normal(size=(80, 4)) + means, f"net{repeat:03d}") for repeat in range(repeats)])
    table = COEFFICIENTS[name](frame, resamples=500)
    hits = int(((table["low"] <= truth) & (truth <= table["high"])).sum())
    # Seen from 200 experiments at 99.9 %, between 0.91 (80 images, W is biased by about 1 / 80) and 0.97.
    assert stats.binom.ppf(0.0005, repeats, 0.91) <= hits <= stats.binom.ppf(0.9995, repeats, 0.97)
