"""Sanity checks: drawn from small tables made here."""

import matplotlib as mpl
import pandas as pd

from idsds import plots

from .overlap import outside, overlaps, text_boxes, texts

mpl.use("agg")
INTERVAL = "95 % percentile bootstrap over training seeds and images, 3 draws of weights held fixed"


def similar(undefined=0, maps=20):
    """A table of the sanity checks: two methods with four depths, and labels."""
    groups = ["fc", "layer3 to layer2", "layer1", "conv1"]
    rows = [
        (check, (number + 1) / 4, layers if check == "independent" else f"fc to {layers}", method, similarity, 0.5 + 0.1 * number)
        for check in ("cascading", "independent", "labels")
        for number, layers in enumerate(groups if check != "labels" else ["all"])
        for method in ("Gradient", "Grad-CAM")
        for similarity in ("spearman", "absolute", "ssim")
    ]
    table = pd.DataFrame(rows, columns=["check", "depth", "layers", "method", "similarity", "mean"])
    table = table.assign(
        model="a", family=table["method"].map({"Gradient": "gradient", "Grad-CAM": "CAM"}), train_accuracy=0.98, train_top5=1.0
    )
    lacking = (table["method"] == "Grad-CAM") & (table["similarity"] != "ssim")
    return table.assign(
        low=table["mean"] - 0.1, high=table["mean"] + 0.1, count=10, nan=0, undefined=lacking * undefined, maps=maps, interval=INTERVAL
    )


def test_groups_of_layers_are_named_and_not_joined():
    figure = plots.sanity_checks(similar())
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == ["cascading", "one group of layers alone", "permuted labels\n(98% learned,\ntop-5: 100%)"]
    joined = [line for line in figure.axes[0].lines if line.get_marker() not in ("", "None", None)]
    assert all(line.get_linestyle() != "None" and len(line.get_xdata()) == 5 for line in joined)
    alone = [line for line in figure.axes[1].lines if line.get_marker() not in ("", "None", None)]
    assert len(alone) == 2
    assert all(line.get_linestyle() == "None" for line in alone)
    assert not set(alone[0].get_xdata()) & set(alone[1].get_xdata()), "side by side, so that intervals can be told apart"
    names = [label.get_text() for label in figure.axes[7].get_xticklabels()]
    assert names == ["fc", "layer3\nto layer2", "layer1", "conv1"]
    assert not figure.axes[0].texts
    boxes = text_boxes(figure)
    assert not overlaps(boxes)
    assert not outside(figure, boxes)


def test_counts_stand_beside_points_with_undefined_maps():
    figure = plots.sanity_checks(similar(undefined=3))
    for number, axes in enumerate(figure.axes):
        wanted = 0 if number >= 6 else 1 if number % 3 == 2 else 4
        assert [text.get_text() for text in axes.texts] == ["17"] * wanted
    assert any("small numbers: maps with a value, where fewer than 20" in text for text in texts(figure))
    assert any("n = 10 images" in text for text in texts(figure))
