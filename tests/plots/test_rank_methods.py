from contextlib import nullcontext

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from idsds import plots, published
from idsds.methods import METHODS
from idsds.plots.parallel_axes import REPEATED
from idsds.plots.style import PUBLISHED

from .overlap import outside, overlaps, text_boxes

mpl.use("agg")


def ranked(models=("a", "b"), methods=("IG", "IG abs", "Grad-CAM", "BagNet", "Random")):
    rng = np.random.default_rng(0)
    rows = [
        (m, n, v, v - 0.05, v + 0.05, 100, 1, "95 % BCa bootstrap over images")
        for m in models
        for n, v in zip(methods, rng.uniform(0, 0.8, len(methods)), strict=True)
    ]
    return pd.DataFrame(rows, columns=["model", "method", "mean", "low", "high", "count", "nan", "interval"])


FAMILIES = {"IG": "gradient", "IG abs": "gradient", "Grad-CAM": "CAM", "BagNet": "intrinsic", "Random": "control"}


def test_ranking_names_every_method_on_every_axis_and_says_which_way_is_better():
    figure = plots.rank_methods(ranked(), FAMILIES)
    (axes,) = figure.axes
    texts = [text.get_text() for text in axes.texts]
    for name in FAMILIES:
        assert texts.count(name) == 2
    assert "higher is better" in axes.get_xlabel()
    assert "IDSDS" in axes.get_xlabel()
    assert any(text.startswith("a\nn = 100\n5 undefined") for text in texts)
    legend = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert {"gradient", "absolute value", "CAM", "intrinsic", "control", "95 % BCa bootstrap over images"} <= set(legend)
    assert any("null band" in text for text in legend)


def test_a_model_without_any_defined_score_keeps_its_axis():
    undefined = ranked().assign(mean=np.nan, low=np.nan, high=np.nan, count=0, nan=100)
    for found in (undefined, pd.concat([ranked(models=("a",)), undefined[undefined.model == "b"]])):
        texts = [text.get_text() for text in plots.rank_methods(found, FAMILIES).axes[0].texts]
        assert any(text.startswith("b\nn = 0\n500 undefined") for text in texts)


def test_the_null_band_is_drawn_at_its_width():
    figure = plots.rank_methods(ranked(models=("a",)), FAMILIES, n_patches=16)
    (band,) = [c for c in figure.axes[0].collections if len(c.get_paths())]
    x = band.get_paths()[0].vertices[:, 0]
    half = 1.959964 / 15**0.5 / 100**0.5
    assert (x.min(), x.max()) == pytest.approx((-half, half), abs=1e-6)


CROWD = [name + suffix for name in METHODS for suffix in ("", " abs")]


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("names", [list(FAMILIES), CROWD[:20], CROWD], ids=["few", "many", "all"])
def test_no_name_covers_another_and_all_are_in_the_figure(names, columns):
    expected = nullcontext() if len(names) <= 20 else pytest.warns(UserWarning, match="names do not fit a width")
    with expected:
        figure = plots.rank_methods(ranked(methods=names), {}, columns=columns)
    if len(names) <= 20:
        assert figure.get_figwidth() == pytest.approx(plots.COLUMNS[columns], abs=0.01)
    boxes = text_boxes(figure)
    assert sum(text in names for text, _ in boxes) == 2 * len(names)
    assert overlaps(boxes) == []
    assert outside(figure, boxes) == []


def test_published_values_are_grey_hollow_and_in_the_shape_of_the_method():
    table = ranked(models=("resnet50",), methods=("IG", "Layer-CAM"))
    compared = published.compare(table)
    (axes,) = plots.rank_methods(table, {}, published=compared).axes
    grey = [line for line in axes.lines if line.get_markeredgecolor() == PUBLISHED and line.get_marker() != "."]
    shown = [(line.get_marker(), line.get_xdata()[0], line.get_markerfacecolor()) for line in grey]
    assert shown == [("o", 0.196, "white"), ("o", 0.1941, REPEATED), ("s", 0.192, "white")], "the independent run is filled"
    assert sum(line.get_marker() == "." for line in axes.lines) == 1, "Layer-CAM's label was inferred"
    assert not any(
        line.get_markeredgecolor() == PUBLISHED for line in plots.rank_methods(table, {}, published=compared.head(0)).axes[0].lines
    )


def test_a_ceiling_has_a_dagger_and_the_legend_says_what_it_means():
    table = ranked().assign(ceiling=lambda rows: rows["method"] == "IG abs")
    figure = plots.rank_methods(table, FAMILIES)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts.count("IG abs †") == 2
    assert texts.count("IG") == 2
    legend = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert sum("an upper bound" in text for text in legend) == 1
    plain = plots.rank_methods(ranked().assign(ceiling=False), FAMILIES)
    assert not any("upper bound" in text.get_text() for legend in plain.legends for text in legend.get_texts())
