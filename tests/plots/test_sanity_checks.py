"""The figures that judge methods' settings, their robustness and the metrics themselves: drawn from small tables made here."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from idsds import plots, published
from idsds.methods import METHODS
from idsds.plots.style import LEGIBLE, contrast
from idsds.studies.augmentation_robustness import AUGMENTATIONS, LEAST, MEASURES, findings

from .overlap import outside, overlaps, text_boxes

mpl.use("agg")
INTERVAL = "95 % BCa bootstrap over images"


def texts(figure):
    return [text.get_text() for text in figure.findobj(mpl.text.Text) if text.get_text()]


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


def marks(axes):
    """Colours of the intervals and of the edges of the marks in a panel."""
    lines = [line for line in axes.lines if line.get_marker() not in ("", "None", None)]
    bars = [line for line in axes.lines if line not in lines and len(set(line.get_ydata())) == 1 and line.get_linewidth() >= 0.9]
    edges = [line.get_markeredgecolor() for line in lines] + [line.get_color() for line in bars]
    return edges + [colour for found in axes.collections for colour in found.get_edgecolor()]


@pytest.mark.parametrize("figure", ["augmentation_robustness", "hyperparameters"])
def test_every_mark_and_interval_of_every_method_is_seen_on_white(figure, sweeps):
    families = {name: entry.family for name, entry in METHODS.items()}
    if figure == "hyperparameters":
        scores, spreads = (
            pd.concat([table.head(2 - (table is sweeps[1])).assign(method=name, family=families[name]) for name in METHODS])
            for table in sweeps
        )
        drawn = [plots.hyperparameter_sensitivity(scores.reset_index(drop=True), spreads.reset_index(drop=True))]
    else:
        table = augmented(methods=tuple(METHODS))
        drawn = plots.augmentation_robustness(table.assign(family=table["method"].map(families)), published.xai_correlation_ssim())
    found = [colour for page in drawn for axes in page.axes for colour in marks(axes)]
    assert len(found) > 5 * len(METHODS)
    assert min(contrast(colour) for colour in found) >= LEGIBLE


def test_rows_of_two_models_say_which(sweeps):
    scores, spreads = (pd.concat([table, table.assign(model="b")], ignore_index=True) for table in sweeps)
    labels = [label.get_text() for label in plots.hyperparameter_sensitivity(scores, spreads).axes[0].get_yticklabels()]
    assert labels[0].startswith("IG (a)")
    assert labels[2].startswith("IG (b)")


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


def test_what_is_as_robust_as_noise_is_named_with_it():
    table, nothing = augmented(), pd.DataFrame(columns=["model", "group"])
    at = (table["group"] == "filters") & (table["measure"] == "spearman")
    for method, value in [("Saliency", 0.9995), ("IG", 0.998), ("Guided Grad-CAM", 0.5), ("Random", 1.0)]:
        table.loc[at & (table["method"] == method), "mean"] = value
    lines = findings(table, nothing, nothing)
    assert lines[0] == "a, rotations: 8 of 10 images keep the target's probability under an augmentation that changes them."
    line = lines[lines.index(lines[0].replace("rotations", "filters")) + 1]
    assert "by Spearman Random, Saliency (1.00 [" in line
    table.loc[at & (table["method"] == "Saliency"), "mean"] = 1.0
    table.loc[at & (table["method"] == "Random"), "mean"] = 0.9995
    assert any("by Spearman Random, Saliency (1.00 [" in line for line in findings(table, nothing, nothing))


def test_sentences_on_the_studys_claim_and_on_what_stays():
    table = augmented(methods=("Deconvolution", "IG"))
    row = {"model": "a", "group": "filters", "claim": LEAST, "method": "Deconvolution", "rival": "IG", "difference": -0.2, "low": -0.3}
    claims = pd.DataFrame([{**row, "high": -0.1, "count": 7, "nan": 3, "rivals": 5, "verdict": "reversed"}])
    other = {"model": "a", "group": "filters", "rho": 0.5, "low": 0.1, "high": 0.7, "p": 0.25, "methods": 6}
    agreement = pd.DataFrame([{**other, "other": "spearman"}, {**other, "other": "published"}])
    lines = findings(table, claims, agreement)
    wanted = '"Deconvolution is the least robust" of the 6 methods that the study printed: reversed (SSIM of IG less its own -0.20 '
    assert f"{wanted}[-0.30, -0.10], n = 7)." in lines
    assert any("with that of Spearman +0.50 [+0.10, +0.70] (6 methods, p = 0.25), the study's SSIM +0.50" in line for line in lines)
    assert not any("backward rule" in line for line in lines)
    table.loc[(table["augmentation"] == "all filters") & (table["method"] == "Deconvolution"), "mean"] = 1.0
    assert any(line.startswith("Deconvolution stays as it is because its backward rule") for line in findings(table, claims, agreement))


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
    table = table.assign(model="a", family=table["method"].map({"Gradient": "gradient", "Grad-CAM": "CAM"}), train_accuracy=np.nan)
    lacking = (table["method"] == "Grad-CAM") & (table["similarity"] != "ssim")
    return table.assign(
        low=table["mean"] - 0.1, high=table["mean"] + 0.1, count=10, nan=0, undefined=lacking * undefined, maps=maps, interval=INTERVAL
    )


def test_groups_of_layers_are_named_and_not_joined():
    figure = plots.sanity_checks(similar())
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels)[:2] == ["cascading", "one group of layers alone"]
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
