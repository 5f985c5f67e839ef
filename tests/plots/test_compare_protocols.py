import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from idsds import plots
from idsds.plots.compare_protocols import short

mpl.use("agg")

FAMILIES = {"IG": "gradient", "IG abs": "gradient", "Grad-CAM": "CAM", "Random": "control"}
LABELS = ("IDSDS", "SDS", "ID most first, updated")


def tables(models=("a", "b")):
    rng = np.random.default_rng(0)
    places = [
        (model, label, method, place, place - 0.5, place + 0.5, 29, 1)
        for model in models
        for label in LABELS
        for place, method in enumerate(rng.permutation(list(FAMILIES)), start=1)
    ]
    pairs = [
        (model, first, second, 0.25, -0.5, 0.75) for model in models for first, second in itertools.combinations_with_replacement(LABELS, 2)
    ]
    kinds = itertools.product(models, ("before", "after"), ("intact", "one patch deleted"))
    shares = [(model, 0, stage, kind, 0.9, 0.8, 0.95, 100) for model, stage, kind in kinds]
    return (
        pd.DataFrame(places, columns=["model", "label", "method", "place", "place_low", "place_high", "count", "nan"]),
        pd.DataFrame(pairs, columns=["model", "first", "second", "tau", "tau_low", "tau_high"]),
        pd.DataFrame(shares, columns=["model", "seed", "stage", "images", "accuracy", "low", "high", "count"]),
    )


def test_every_model_has_its_row_and_every_method_its_name_on_both_sides():
    figure = plots.compare_protocols(*tables(), FAMILIES)
    assert len(figure.axes) == 6
    for axes, model in zip(figure.axes[::3], "ab", strict=True):
        texts = [text.get_text() for text in axes.texts]
        assert all(texts.count(method) == 2 for method in FAMILIES)
        assert axes.get_title(loc="left") == model
        assert "best on top" in axes.get_ylabel()
        assert axes.get_ylim()[0] > axes.get_ylim()[1]


def test_top_5_is_that_after_fine_tuning():
    places, agreed, shares = tables(models=("a",))
    shares["top5"] = [0.8, 0.7, 0.99, 0.98]  # before and after, intact and with one patch deleted
    axes = plots.compare_protocols(places, agreed, shares, FAMILIES).axes
    assert axes[2].get_xlabel() == "in-domain fine-tuning\ntop-5 after:\n0.990, 0.980"


def test_names_stand_where_the_markers_are():
    places, *rest = tables(models=("a",))
    axes = plots.compare_protocols(places, *rest, FAMILIES).axes[0]
    left = {text.get_text(): text.get_position()[1] for text in axes.texts if text.get_ha() == "right"}
    assert left == places[places["label"] == "IDSDS"].set_index("method")["place"].to_dict()


def test_the_number_of_images_counts_the_undefined_ones_too():
    assert plots.compare_protocols(*tables(), FAMILIES).legends[0].get_title().get_text().startswith("n = 30 images")


def test_the_matrix_writes_every_number_with_its_interval():
    figure = plots.compare_protocols(*tables(models=("a",)), FAMILIES)
    texts = [text.get_text() for text in figure.axes[1].texts]
    assert texts.count("0.25\n-.50, .75") == 6
    (mesh,) = figure.axes[1].collections
    assert np.isfinite(np.ma.filled(mesh.get_array(), np.nan)).sum() == 6


def test_accuracies_are_drawn_in_percent():
    axes = plots.compare_protocols(*tables(models=("a",)), FAMILIES).axes[2]
    drawn = [line.get_ydata() for line in axes.lines if len(line.get_ydata()) == 2 and line.get_marker() in "os"]
    assert drawn
    assert all(np.allclose(values, 90) for values in drawn)
    assert "higher is better" in axes.get_ylabel()


@pytest.mark.parametrize(("label", "lines"), [("IDSDS", 1), ("ID least first", 2), ("ID most first, updated", 3)])
def test_names_of_protocols_are_broken_into_short_lines(label, lines):
    assert short(label).count("\n") == lines - 1
