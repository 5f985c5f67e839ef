"""The sensitivity to hyperparameters: drawn from small tables made here."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from idsds import plots
from idsds.methods import METHODS
from idsds.plots.style import LEGIBLE, contrast

from .overlap import edge_colours, outside, overlaps, text_boxes, texts

mpl.use("agg")
INTERVAL = "95 % percentile bootstrap over training seeds and images"


@pytest.fixture
def sweeps():
    rows = [
        ("a", "IG", "steps", 5, False, "gradient", 0.1),
        ("a", "IG", "steps", 50, True, "gradient", 0.5),
        ("a", "Grad-CAM", "layer", "layer1", False, "CAM", 0.2),
        ("a", "Grad-CAM", "layer", "layer3", True, "CAM", 0.3),
    ]
    scores = pd.DataFrame(rows, columns=["model", "method", "hyperparameter", "value", "default", "family", "mean"])
    scores = scores.assign(low=scores["mean"] - 0.05, high=scores["mean"] + 0.05, count=10, nan=0, interval=INTERVAL)
    rows = [("a", "IG", "gradient", "steps", 2, 0.9), ("a", "Grad-CAM", "CAM", "layer", 2, 0.4)]
    spreads = pd.DataFrame(rows, columns=["model", "method", "family", "hyperparameter", "settings", "spearman"])
    spreads = spreads.assign(low=spreads["spearman"] - 0.1, high=spreads["spearman"] + 0.05, ssim=0.3, deviation=0.1, interval=INTERVAL)
    spreads = spreads.assign(ssim_low=0.21, ssim_high=0.37, deviation_low=0.08, deviation_high=0.13)
    return scores, spreads


def test_hyperparameters_have_a_block_each_and_name_every_setting(sweeps):
    figure = plots.hyperparameter_sensitivity(*sweeps)
    left, right = figure.axes
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels == ["IG\nsteps", "Grad-CAM\nlayer"]
    assert [text.get_text() for text in left.texts] == ["5", "50", "layer1", "layer3"]
    lanes = [text.xy[1] for text in left.texts]
    assert sorted(set(lanes)) == lanes, "from above, in the order of the list"
    assert "higher is better" in left.get_xlabel()
    assert "less sensitive" in right.get_xlabel()
    assert INTERVAL in texts(figure)
    drawn = {round(float(x), 6) for line in left.lines for x in line.get_xdata()}
    assert set(sweeps[0]["mean"]) <= drawn
    likeness = {tuple(np.round(line.get_xdata(), 6).tolist()) for line in right.lines}
    assert {(0.8, 0.95), (0.21, 0.37), (0.08, 0.13)} <= likeness, "each measure has its interval"
    low, high = left.get_xlim()
    assert low < sweeps[0]["low"].min()
    assert high > sweeps[0]["high"].max()


def test_no_value_of_a_hyperparameter_covers_another_or_leaves_the_panel(sweeps):
    scores, spreads = sweeps
    more = [scores.iloc[[0]].assign(value=f"a rather long value, {number}", mean=0.5 + number / 10) for number in range(4)]
    more.append(scores.iloc[[0]].assign(value="silent", mean=np.nan, low=np.nan, high=np.nan))
    scores = pd.concat([scores, *more], ignore_index=True).assign(high=lambda table: table["mean"] + 0.05)
    figure = plots.hyperparameter_sensitivity(scores, spreads)
    boxes = text_boxes(figure)
    assert not overlaps(boxes)
    assert not outside(figure, boxes)
    assert "silent: undefined" in texts(figure)
    left = figure.axes[0]
    assert max(text.get_window_extent().x1 for text in left.texts) <= left.bbox.x1 + 1
    assert left.get_legend().get_window_extent().y0 >= left.bbox.y1, "the legend stands above the panel"


def test_every_mark_and_interval_of_every_method_is_seen_on_white(sweeps):
    families = {name: entry.family for name, entry in METHODS.items()}
    scores, spreads = (
        pd.concat([table.head(2 - (table is sweeps[1])).assign(method=name, family=families[name]) for name in METHODS], ignore_index=True)
        for table in sweeps
    )
    found = [colour for axes in plots.hyperparameter_sensitivity(scores, spreads).axes for colour in edge_colours(axes)]
    assert len(found) > 5 * len(METHODS)
    assert min(contrast(colour) for colour in found) >= LEGIBLE


def test_rows_of_two_models_say_which(sweeps):
    scores, spreads = (pd.concat([table, table.assign(model="b")], ignore_index=True) for table in sweeps)
    labels = [label.get_text() for label in plots.hyperparameter_sensitivity(scores, spreads).axes[0].get_yticklabels()]
    assert labels[0].startswith("IG (a)")
    assert labels[2].startswith("IG (b)")
