"""Against scikit-learn's report, which is what the study printed."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, classification_report, confusion_matrix, precision_score

from idsds.statistics.classification import classification_scores, confusion, per_class


@pytest.mark.parametrize(("classes", "images"), [(2, 30), (7, 200), (120, 90)])  # of 120 classes some occur in neither
def test_against_scikit_learn(classes, images):
    rng = np.random.default_rng(classes)
    targets = rng.integers(0, classes, images)
    predictions = np.where(rng.random(images) < 0.6, targets, rng.integers(0, classes // 2 + 1, images))
    report = classification_report(targets, predictions, output_dict=True, zero_division=0)
    found = classification_scores(targets, predictions)
    assert found["accuracy"] == pytest.approx(accuracy_score(targets, predictions), abs=1e-12)
    assert found["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"], abs=1e-12)
    assert found["weighted_f1"] == pytest.approx(report["weighted avg"]["f1-score"], abs=1e-12)
    assert found["weighted_precision"] == pytest.approx(report["weighted avg"]["precision"], abs=1e-12)
    assert found["count"] == images


def test_classes_and_confusions_against_scikit_learn():
    rng = np.random.default_rng(5)
    targets, predictions = rng.integers(0, 6, 90), rng.integers(1, 8, 90)  # class 0 is never predicted, 6 and 7 never occur
    report = classification_report(targets, predictions, output_dict=True, zero_division=0)
    table = per_class(targets, predictions).set_index("class")
    assert list(table.index) == list(range(8))
    for number, row in table.iterrows():
        known = report[str(number)]
        assert row.to_list() == pytest.approx([known["precision"], known["recall"], known["f1-score"], known["support"]], abs=1e-12)
    counts = confusion(targets, predictions).pivot(index="target", columns="prediction", values="count")
    matrix = counts.reindex(index=range(8), columns=range(8)).fillna(0).to_numpy()
    assert (matrix == confusion_matrix(targets, predictions)).all()


def test_the_interval_of_accuracy_is_the_binomial_one():
    targets = np.repeat([0, 1, 2], 200)
    predictions = np.where(np.arange(600) % 5 == 0, (targets + 1) % 3, targets)
    found = classification_scores(targets, predictions, resamples=4_000)
    exact = stats.binom(600, 0.8).ppf([0.025, 0.975]) / 600
    # Quantiles of 4,000 draws of a discrete variable with steps of 1 / 600.
    assert (found["accuracy_low"], found["accuracy_high"]) == pytest.approx(exact, abs=3 / 600)
    for name in ("macro_f1", "weighted_f1", "weighted_precision"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]


def test_weighted_precision_is_not_accuracy():
    """A model that says 0 for all but one image: where it commits itself it is right."""
    found = classification_scores([0, 0, 0, 0, 1, 1], [0, 0, 0, 0, 0, 1])
    assert found["accuracy"] == pytest.approx(5 / 6)
    assert found["weighted_precision"] == pytest.approx(4 / 6 * 4 / 5 + 2 / 6 * 1)


def test_the_excess_of_precision_is_paired():
    """Its interval is that of the differences: a bootstrap of the images with scikit-learn's report."""
    rng = np.random.default_rng(3)
    targets = rng.integers(0, 4, 80)
    predictions = np.where(rng.random(80) < 0.5, targets, 0)
    found = classification_scores(targets, predictions, resamples=4_000)
    assert found["precision_excess"] == pytest.approx(found["weighted_precision"] - found["accuracy"])
    excess = []
    for _ in range(300):
        some = rng.integers(0, 80, 80)
        precision = precision_score(targets[some], predictions[some], average="weighted", zero_division=0)
        excess.append(precision - accuracy_score(targets[some], predictions[some]))
    low, high = np.quantile(excess, [0.025, 0.975])
    assert (found["precision_excess_low"], found["precision_excess_high"]) == pytest.approx((low, high), abs=0.2 * (high - low))


@pytest.mark.parametrize(("targets", "predictions"), [([], []), ([1, 2], [1]), ([[1]], [[1]])])
def test_what_are_no_predictions(targets, predictions):
    with pytest.raises(ValueError, match="one prediction per target"):
        classification_scores(targets, predictions)
