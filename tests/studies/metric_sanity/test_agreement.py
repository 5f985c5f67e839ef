"""Kendall's tau between metrics against scipy, and the map of known parts."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from idsds import plots
from idsds.statistics.rankings import kendall
from idsds.studies.metric_sanity.agreement import agreement


def records_of(means, direction="higher is better", images=6, noise=0.0, models=("a", "b")):
    draw = np.random.default_rng(0)
    rows = [
        (f"i{image}", model, method, "control" if method == "Random" else "gradient", direction, mean + noise * draw.normal())
        for model in models
        for method, mean in means.items()
        for image in range(images)
    ]
    return pd.DataFrame(rows, columns=["image_id", "model", "method", "family", "direction", "score"])


def test_it_is_scipys_tau_of_the_means_and_controls_take_no_part():
    first = {"IG": 3.0, "IxG": 2.0, "Grad-CAM": 1.0, "Gradient": 0.0, "Random": 9.0}
    second = {"IG": 3.0, "IxG": 0.0, "Grad-CAM": 1.0, "Gradient": 1.0, "Random": -9.0}
    table = agreement({"one": records_of(first), "two": records_of(second), "less": records_of(first, "lower is better")})
    found = table.set_index(["first", "second"])
    expected = stats.kendalltau(list(first.values())[:4], list(second.values())[:4]).statistic
    assert found.loc[("one", "two"), "tau"] == pytest.approx(expected)
    assert found.loc[("one", "less"), "tau"] == -1
    assert (found["models"] == 2).all()
    assert (found["methods"] == 4).all()
    assert found.loc[("one", "less"), ["low", "high"]].tolist() == [-1, -1]


def test_intervals_widen_with_noise_and_no_ranking_has_no_tau():
    first = {"IG": 1.0, "IxG": 0.5, "Gradient": 0.0}
    noisy = agreement({"one": records_of(first, noise=1.0), "two": records_of(first)}).iloc[0]
    assert noisy["low"] < noisy["high"]
    flat = agreement({"one": records_of(dict.fromkeys(first, 1.0)), "two": records_of(first)}).iloc[0]
    assert np.isnan(flat["tau"])
    assert flat["models"] == 0
    assert np.isnan(kendall(np.zeros((1, 2)), np.array([[0.0, 1.0]]), skip_nan=True))[0]


def test_the_figure_has_all_metrics_in_the_order_of_a_clustering():
    first = {"IG": 3.0, "IxG": 2.0, "Grad-CAM": 1.0, "Gradient": 0.0}
    backwards = dict(zip(first, reversed(first.values()), strict=True))
    table = agreement({"one": records_of(first), "opposite": records_of(backwards), "two": records_of(first)})
    figure = plots.agreement(table)
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert sorted(labels) == ["one", "opposite", "two"]
    assert labels[1] != "opposite", "those that agree stand together"
