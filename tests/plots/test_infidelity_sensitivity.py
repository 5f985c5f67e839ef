"""The figures of infidelity and of training shares: what stands where, on small tables made here."""

from itertools import product

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from idsds import plots
from idsds.plots.infidelity_sensitivity import FOREST, SCATTER, THEIRS, _shown
from idsds.studies.infidelity_sensitivity.correlations import LEVELS
from tests.studies.infidelity_sensitivity.tables import table_of

from .overlap import outside, overlaps, text_boxes

mpl.use("agg")
STUDY = ["study: Guided Backprop", "study: Saliency"]
METHODS = {"Gradient": "gradient", "IxG": "gradient", "Grad-CAM": "CAM"}


def judged():
    models = {"mini_resnet8": 0.2, "mini_densenet": 1.0}
    rows = [("mnist5k", model, share, method, family) for (model, share), (method, family) in product(models.items(), METHODS.items())]
    table = pd.DataFrame(rows, columns=["dataset", "model", "fraction", "method", "family"])
    return table.assign(raw=table["fraction"], normalised=0.1, relative=0.5, sensitivity=0.2, accuracy=0.5 + 0.4 * table["fraction"])


def correlated(methods, pairs):
    rows = [(method, *pair, level) for method, pair, level in product(methods, pairs, LEVELS)]
    table = pd.DataFrame(rows, columns=["method", "measure", "quality", "level"])
    return table.assign(spearman=0.3, low=0.1, high=0.5, models=12, groups=10)


def drawn(table):
    study = judged().assign(weighted_precision=lambda table: table["accuracy"], method=THEIRS).drop(columns="relative")
    theirs = correlated([THEIRS, "Saliency"], [(measure, "weighted_precision") for measure in ("raw", "sensitivity")])
    ours = correlated(dict.fromkeys(table["method"]), [block[:2] for block in FOREST])
    return plots.infidelity_sensitivity(table, ours, study, theirs)


def test_headings_of_the_correlations_touch_neither_lines_nor_names():
    figure = drawn(judged())
    boxes = text_boxes(figure)
    assert not overlaps(boxes)
    assert not outside(figure, boxes)
    axes = figure.subfigs[1].axes[0]
    rules = [axes.transData.transform((0, line.get_ydata()[0]))[1] for line in axes.lines if line.get_linewidth() == 0.5]
    assert len(rules) == len(FOREST) - 1
    headings = [corners[:, 1] for text, corners in boxes if text in [heading for _, _, heading in FOREST]]
    assert len(headings) == len(FOREST)
    names = [corners[:, 1] for text, corners in boxes if text in (*METHODS, *STUDY, "the study: none")]
    for rule, corners in product(rules, [*headings, *names]):
        assert not corners.min() - 1 < rule < corners.max() + 1
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert [label for label in labels if "study" in label] == [*STUDY, *["the study: none"] * 3, *STUDY]


def test_raw_infidelity_is_held_against_the_logits_change_and_given_it():
    assert [block[:2] for block in FOREST][:3] == [("raw", "accuracy"), ("raw", "change"), ("raw", "accuracy given change")]
    figure = drawn(judged())
    for axes in figure.subfigs[1].axes:
        points = [line for line in axes.lines if line.get_marker() != "None"]
        assert len(points) == len(FOREST) * len(METHODS) + 2 * len(STUDY), "every block has every method, two the study"


def test_a_map_that_knows_nothing_is_a_line_and_intervals_are_bars():
    table = judged()
    control = table[table["method"] == "IxG"].assign(method="Random", family="control", relative=[0.86, 0.9])
    table = pd.concat([table, control], ignore_index=True).assign(
        raw_low=lambda rows: rows["raw"] / 2, raw_high=lambda rows: rows["raw"] * 2
    )
    above = drawn(table).subfigs[0].axes
    grid = [above[row * 2 : row * 2 + 2] for row in range(len(SCATTER))]  # a data set and the study
    (line,) = [line for line in grid[1][0].lines if line.get_linewidth() == 0.7]
    assert line.get_ydata() == pytest.approx([0.88, 0.88])
    assert "line: Random" in grid[1][0].get_ylabel()
    assert "map of zeros: 1" in drawn(judged()).subfigs[0].axes[2].get_ylabel(), "without a control there is no line"
    bars = [list(line.get_ydata()) for line in grid[0][0].lines if line.get_linewidth() == 0.5]
    assert bars == [[0.1, 0.4], [0.5, 2.0]]
    assert not [line for line in grid[1][0].lines if line.get_linewidth() == 0.5 and np.isfinite(line.get_ydata()).any()], "none given"


def test_a_point_far_below_the_axis_is_hollow_and_explained():
    table = judged()
    table.loc[table["fraction"] == 0.2, "raw"] = 1e-9
    figure = drawn(table)
    points = [line for line in figure.subfigs[0].axes[0].lines if line.get_marker() != "None"]
    assert [line.get_markerfacecolor() == "none" for line in points] == [True, False]
    (legend,) = [legend for axes in figure.subfigs[0].axes if (legend := axes.get_legend())]
    assert "hollow" in legend.get_title().get_text()
    assert "far below the axis" in legend.get_title().get_text()


def shares(seeds=(0,)):
    rows = [
        (model, share, seed, 0.5 + share / 3 + seed / 20)
        for model in ("mini_resnet8", "mini_efficientnet")
        for share in (0.2, 1.0)
        for seed in seeds
    ]
    table = pd.DataFrame(rows, columns=["model", "fraction", "seed", "accuracy"])
    table = table.assign(dataset="digits", macro_f1=0.5, weighted_precision=0.6, count=99, precision_excess=0.6 - table["accuracy"])
    ends = {"precision_excess_low": table["precision_excess"] - 0.02, "precision_excess_high": table["precision_excess"] + 0.03}
    return table.assign(**ends)


def test_training_seeds_are_points_and_their_mean_a_line():
    figure = plots.train_fractions(shares((0, 1, 2)))
    top, _, below = figure.axes
    assert top.get_title() == "digits, n = 99"
    with_top5 = shares((0, 1, 2)).assign(top5=np.linspace(0.9, 1, 12))
    assert plots.train_fractions(with_top5).axes[0].get_title() == "digits, n = 99\ntop-5: 0.900 to 1.000"
    above = drawn(judged().assign(top5=0.98)).subfigs[0].axes
    assert above[0].get_title().endswith("\ntop-5: 0.980 to 0.980")
    assert "top-5" not in above[1].get_title(), "the study printed none"
    solid = [line for line in top.lines if line.get_linestyle() == "-" and line.get_marker() == "None"]
    assert solid[0].get_ydata() == pytest.approx([0.5 + 0.2 / 3 + 0.05, 0.5 + 1 / 3 + 0.05])
    small = [line for line in top.lines if line.get_markersize() < 2 and line.get_marker() != "None"]
    assert len(small) == 2 * 3
    assert sorted(np.concatenate([line.get_ydata() for line in small])) == pytest.approx(sorted(shares((0, 1, 2))["accuracy"]))
    bars = np.concatenate([bar.get_segments() for bar in below.collections if len(bar.get_segments()) == 2])  # (bars, ends, x and y)
    assert np.ptp(bars[:, :, 1], axis=1) == pytest.approx(np.full(12, 5.0)), "from -2 to +3 points"
    boxes = text_boxes(figure)
    assert not overlaps(boxes)
    assert not outside(figure, boxes)
    assert "3 training seeds one by one" in figure.legends[0].get_title().get_text()


def test_the_legend_of_training_shares_shows_the_marks_as_they_are():
    figure = plots.train_fractions(shares())
    marks = {(line.get_marker(), line.get_markerfacecolor()) for line in figure.axes[0].lines if line.get_marker() != "None"}
    (legend,) = figure.legends
    assert {(line.get_marker(), line.get_markerfacecolor()) for line in legend.get_lines()} == marks
    boxes = text_boxes(figure)
    assert not overlaps(boxes)
    assert not outside(figure, boxes)
    assert any("percentage" in axes.get_ylabel() for axes in figure.axes)


def test_the_studys_method_is_drawn_where_every_model_has_it():
    table = table_of().replace({"method": {"IxG": "Guided Backprop"}})
    assert _shown(table) == "Guided Backprop"
    assert _shown(table.drop(index=table.index[table["method"] == "Guided Backprop"][0])) == "Gradient"
