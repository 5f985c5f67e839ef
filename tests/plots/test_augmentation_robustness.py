"""Robustness to augmentations: drawn from small tables made here."""

import matplotlib as mpl
import numpy as np
import pandas as pd

from idsds import plots, published
from idsds.methods import METHODS
from idsds.plots.style import LEGIBLE, contrast
from idsds.statistics.intervals import covers_both
from idsds.studies.augmentation_robustness import AUGMENTATIONS, MEASURES

from .overlap import edge_colours, outside, overlaps, text_boxes, texts

mpl.use("agg")
INTERVAL = covers_both(0.95)  # the longest label


def augmented(methods=("Saliency", "IG", "Guided Grad-CAM", "Random"), models=("a",)):
    rng = np.random.default_rng(0)
    rows = [
        (model, method, group, name, measure, rng.uniform(0.2, 0.9))
        for model in models
        for method in methods
        for group, names in AUGMENTATIONS.items()
        for name in [*names, f"all {group}"]
        for measure in MEASURES
    ]
    table = pd.DataFrame(rows, columns=["model", "method", "group", "augmentation", "measure", "mean"])
    family = table["method"].map({"Random": "control", "Saliency": "gradient", "IG": "gradient", "Guided Grad-CAM": "CAM"})
    table = table.assign(low=table["mean"] - 0.1, high=table["mean"] + 0.1, count=8, nan=2, counted=0.8, interval=INTERVAL)
    table = table.assign(images=10, changed=9, stayed=8, data_range="of each pair of maps")
    return table.assign(family=family)


def test_every_mark_and_interval_of_every_method_is_seen_on_white():
    table, families = augmented(methods=tuple(METHODS)), {name: entry.family for name, entry in METHODS.items()}
    drawn = plots.augmentation_robustness(table.assign(family=table["method"].map(families)), published.xai_correlation_ssim())
    found = [colour for page in drawn for axes in page.axes for colour in edge_colours(axes)]
    assert len(found) > 5 * len(METHODS)
    assert min(contrast(colour) for colour in found) >= LEGIBLE


def test_robustness_has_a_panel_per_method_and_the_published_values():
    table, theirs = augmented(), published.xai_correlation_ssim()
    (figure,) = plots.augmentation_robustness(table, theirs)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == ["Saliency", "IG", "Guided Grad-CAM", "Random"]
    ticks = [label.get_text() for label in panels["Random"].get_xticklabels()]
    assert ticks[0] == "-30° (8 of 9)"
    assert len(ticks) == 9
    grey = [line for line in panels["IG"].lines if line.get_marker() == "x"]
    names = [name for group in AUGMENTATIONS.values() for name in group]
    wanted = theirs[theirs["method"] == "IG"].set_index("augmentation").loc[names, "ssim"]
    np.testing.assert_allclose(grey[0].get_ydata(), wanted)
    assert "SSIM printed by the study (G'MIC's filters)" in texts(figure)
    assert any("higher is better" in text for text in texts(figure))
    boxes = text_boxes(figure)
    assert not overlaps(boxes)
    assert not outside(figure, boxes)
    (bare,) = plots.augmentation_robustness(table)
    assert not any("printed by the study" in text for text in texts(bare))
    assert len(plots.augmentation_robustness(augmented(models=("a", "b")))) == 2


def test_an_augmentation_that_changes_no_image_is_named_and_not_drawn():
    table = augmented()
    same = table["augmentation"] == "chroma_boost"
    table.loc[same, ["mean", "low", "high"]] = np.nan
    table.loc[same, ["changed", "stayed", "counted", "count"]] = 0
    (figure,) = plots.augmentation_robustness(table, published.xai_correlation_ssim())
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert [label.get_text() for label in panels["Random"].get_xticklabels()][-2:] == ["mighty detail (8 of 9)", "sharpen (8 of 9)"]
    assert len(panels["Random"].get_xticklabels()) == 8
    assert any("Not drawn: chroma boost, which changes no image." in text for text in texts(figure))
    assert any("compare methods within a column, not columns" in text for text in texts(figure))
    assert any("changes the image and keeps its target's probability" in text for text in texts(figure))
    boxes = text_boxes(figure)
    assert not overlaps(boxes)
    assert not outside(figure, boxes)


def test_the_shape_of_a_mark_tells_the_measure_in_one_ink():
    """Controls are crosses elsewhere: here, nothing but the study's values is one."""
    (figure,) = plots.augmentation_robustness(augmented(), published.xai_correlation_ssim())
    for axes in (axes for axes in figure.axes if axes.get_title()):
        marks_of = [line for line in axes.lines if line.get_marker() in ("o", "D", "_")]
        assert len(marks_of) == 3
        assert len({line.get_color() for line in marks_of}) == 1
        assert [line.get_color() for line in axes.lines if line.get_marker() in ("x", "X")] == ["#888888"]
