"""The table metric x property: every number, its interval and the verdict are printed, and darker is better."""

import matplotlib as mpl
import numpy as np
import pandas as pd

from idsds import plots
from idsds.plots.metric_sanity import PROPERTIES, SHORT
from idsds.studies.metric_sanity.known_truth import VERDICTS
from tests.plots.overlap import outside, overlaps, text_boxes

mpl.use("agg")


def judged():
    row = dict.fromkeys(PROPERTIES, 0.5) | {
        "label": "idsds",
        "applies": True,
        "verdict": VERDICTS[0],
        "forward": 17,
        "maps": 1,
        "beaten": 0,
        "note": "",
    }
    row |= {f"pairs_{name}": 8 for name in ("random", "edges", "center")} | {"undefined_on_nets": 0.0, "confounded_on_nets": np.nan}
    row |= {"units": 64, "ordering_low": 0.4, "ordering_high": 0.6}
    none = dict.fromkeys(PROPERTIES, np.nan) | {"label": "no_map", "applies": False, "verdict": VERDICTS[4]}
    worst = row | {"label": "roar", "resolution": np.nan, "ordering": -0.9, "control_shift": np.nan}
    return pd.DataFrame([row, worst | {"verdict": VERDICTS[2], "ordering_low": np.nan, "units": 6}, none])


def test_it_prints_every_number_interval_and_verdict():
    figure = plots.metric_sanity(judged())
    (axes,) = figure.axes
    cells = {}
    for text in axes.texts:
        x, y = text.get_position()
        cells.setdefault((int(x), int(y)), []).append(text.get_text())
    assert cells[(0, 0)] == ["+.50", ".40 to\n.60"]
    assert cells[(0, 1)] == ["-.90", ""]
    names = list(PROPERTIES)
    assert cells[(names.index("resolution"), 1)][0] == "none"
    assert cells[(names.index("control_shift"), 1)] == ["-"]
    assert all(cells[(x, 2)] == ["-"] for x in range(len(PROPERTIES)))
    assert {"above_random", "above_edges", "above_center"} <= set(names), "all controls are drawn"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["idsds", "roar", "no map"]
    assert [t.get_text() for t in axes.texts if t.get_fontweight() == "bold"] == ["ranks; comparable", "neither", "n/a"]
    assert set(SHORT) == set(VERDICTS)
    # Darker is better, and what is written on it stays readable.
    shade = axes.collections[0].get_array()
    assert shade[0, 0] > shade[1, 0]
    assert all("↑" in label.get_text() or "↓" in label.get_text() for label in axes.get_xticklabels())
    boxes = text_boxes(figure)
    assert not outside(figure, boxes)
    assert not overlaps(boxes)
    notes = " ".join(text.get_text() for text in figure.texts)
    assert "64 images (of retrainings 6 repetitions): the first eleven columns" in notes
    alone = " ".join(text.get_text() for text in plots.metric_sanity(judged().iloc[:1]).texts)
    assert "Known truth, 64 images: the first eleven columns" in alone
    assert "nets (8 pairs of method and net)" in alone
    assert "distilled" not in alone
    labelled = plots.metric_sanity(judged().assign(note="the trained nets are distilled"))
    assert "on them, idsds is IDSDS (distilled)" in " ".join(text.get_text() for text in labelled.texts)
    assert not outside(labelled, text_boxes(labelled))
