import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from idsds import plots
from idsds.plots.parallel_axes import REPEATED
from idsds.plots.style import PUBLISHED
from idsds.published import POSTER, REPRODUCTION

from .overlap import outside, overlaps, text_boxes

mpl.use("agg")
METHODS = ["Occlusion", "IG", "KernelSHAP", "IxG", "Grad-CAM", "GradientSHAP", "Random"]


def table(models=("a",)):
    rows = []
    for model in models:
        for number, name in enumerate(METHODS):
            mean = 1 - 0.12 * number
            rows.append(
                {
                    **{
                        "model": model,
                        "method": name,
                        "mean": mean,
                        "low": mean - 0.05,
                        "high": mean + 0.05,
                        "count": 40,
                        "nan": int(number == 1),
                    },
                    **{"interval": "95 % BCa bootstrap over images", "ceiling": name == "Occlusion", "control": name == "Random"},
                    **{"as_good": number in (1, 2), "milliseconds": 30 / (1 + number), "megabytes": np.nan if number == 3 else 1.5},
                    "front": name in ("IG", "KernelSHAP", "IxG", "Grad-CAM", "GradientSHAP"),
                }
            )
    return pd.DataFrame(rows)


@pytest.mark.parametrize("columns", [1, 2])
def test_no_text_covers_another_or_leaves_the_figure(columns):
    figure = plots.leaderboard(table(("a", "b")), {}, columns=columns, where="the 40 of 50 images on which every method is defined")
    boxes = text_boxes(figure)
    assert not overlaps(boxes)
    assert not outside(figure, boxes)


def test_ceilings_stand_apart_and_what_is_as_good_is_bold():
    left, right = plots.leaderboard(table(), {}, where="the 40 of 50 images on which its model is right").axes
    labels = {label.get_text(): label for label in left.get_yticklabels()}
    assert list(labels)[:2] == ["Occlusion †", "IG (1 undefined)"]
    assert [name for name, label in labels.items() if label.get_fontweight() == "bold"] == ["IG (1 undefined)", "KernelSHAP"]
    drawn = {text.get_text() for text in right.texts}
    assert drawn == {"IG", "KernelSHAP", "IxG", "Grad-CAM", "GradientSHAP"}  # the front, without the ceiling and the control
    assert "higher is better" in left.get_xlabel()
    assert "lower is better" in right.get_xlabel()
    (legend,) = left.figure.legends
    assert legend.get_title().get_text() == "The 40 of 50 images on which its model is right"


def test_published_values_are_hollow_and_those_of_another_group_filled():
    rows = table().assign(model="resnet50")
    known = pd.DataFrame(
        [
            {"model": "resnet50", "method": "IG", "published": 0.2, "inferred": False, "source": POSTER},
            {"model": "resnet50", "method": "IG", "published": 0.3, "inferred": False, "source": REPRODUCTION},
            {"model": "vgg16", "method": "IG", "published": 0.9, "inferred": False, "source": POSTER},
        ]
    )
    left = plots.leaderboard(rows, {}, published=known).axes[0]
    drawn = {float(line.get_xdata()[0]): line.get_markerfacecolor() for line in left.lines if line.get_markeredgecolor() == PUBLISHED}
    assert drawn == {0.2: "white", 0.3: REPEATED}
