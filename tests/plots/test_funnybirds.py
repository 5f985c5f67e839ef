import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from idsds import plots
from idsds.plots.style import PUBLISHED

from .overlap import outside, overlaps, text_boxes

mpl.use("agg")
METHODS = ["IG", "IxG", "Gradient", "Guided Backprop", "Grad-CAM", "Layer-CAM", "Center", "Random"]
MEASURES = ["csdc", "pc", "dc", "distractibility", "correctness", "contrastivity", "mean", "shapley"]


def tables():
    rows = []
    for model in ("mini_resnet8", "mini_vgg11"):
        for number, method in enumerate(METHODS):
            shared = {"model": model, "method": method, "family": "gradient", "threshold": 0.2, "chosen_on": "100 other images"}
            shared |= {"interval": "95 % percentile bootstrap over training seeds and images, thresholds held fixed"}
            value = 0.95 - 0.1 * number
            rows += [{**shared, "measure": name, "value": value, "low": value - 0.05, "high": value + 0.05} for name in MEASURES]
    pairs = itertools.product(("mini_resnet8", "mini_vgg11"), ("accuracy", "top5", "background_independence"))
    nets = pd.DataFrame([{"model": model, "measure": name, "value": 0.98} for model, name in pairs])
    theirs = pd.DataFrame([{"model": "mini_vgg11", "method": "IxG", "measure": "csdc", "published": 0.7353}])
    return pd.DataFrame(rows), nets, theirs


@pytest.mark.parametrize("columns", [1, 2])
def test_no_text_covers_another_or_leaves_the_figure(columns):
    figure = plots.funnybirds(*tables(), columns=columns)
    boxes = text_boxes(figure)
    assert not overlaps(boxes)
    assert not outside(figure, boxes)


def test_values_and_published_ones_are_drawn_where_they_are():
    figure = plots.funnybirds(*tables())
    panel = figure.axes[8]  # the first of the second net
    drawn = {tuple(np.round([line.get_xdata()[0], line.get_ydata()[0]], 4)) for line in panel.lines if line.get_color() != PUBLISHED}
    assert drawn == {(round(0.95 - 0.1 * number, 4), 7 - number) for number in range(8)}
    (theirs,) = [line for line in panel.lines if line.get_color() == PUBLISHED]
    assert (theirs.get_xdata()[0], theirs.get_ydata()[0]) == (0.7353, 6)
    assert "100 other images" in figure.get_supxlabel()
