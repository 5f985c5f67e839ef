"""The figures that judge methods' settings, their robustness and the metrics themselves: drawn from small tables made here."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from idsds import plots, published
from idsds.augmentation import AUGMENTATIONS, MEASURES, findings
from idsds.plots.metric_sanity import PROPERTIES, SHORT
from idsds.protocols.ground_truth import VERDICTS

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
    return scores, spreads


def test_hyperparameters_have_a_row_each_and_name_the_extremes(sweeps):
    figure = plots.hyperparameters(*sweeps)
    left, right = figure.axes
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels == ["IG: steps\n5, 50", "Grad-CAM: layer\nlayer1, layer3"]
    assert {"5", "50", "layer1", "layer3"} <= {text.get_text() for text in left.texts}
    assert "higher is better" in left.get_xlabel()
    assert "less sensitive" in right.get_xlabel()
    assert INTERVAL in texts(figure)
    drawn = {round(float(x), 6) for line in left.lines for x in line.get_xdata()}
    assert set(sweeps[0]["mean"]) <= drawn
    low, high = left.get_xlim()
    assert low < sweeps[0]["low"].min()
    assert high > sweeps[0]["high"].max()


def test_rows_of_two_models_say_which(sweeps):
    scores, spreads = (pd.concat([table, table.assign(model="b")], ignore_index=True) for table in sweeps)
    labels = [label.get_text() for label in plots.hyperparameters(scores, spreads).axes[0].get_yticklabels()]
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
    return table.assign(family=family)


def test_robustness_has_a_panel_per_method_and_the_published_values():
    table, theirs = augmented(), published.xai_correlation_ssim()
    (figure,) = plots.augmentation_robustness(table, theirs)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert list(panels) == ["Saliency", "IG", "Guided Grad-CAM", "Random"]
    ticks = [label.get_text() for label in panels["Random"].get_xticklabels()]
    assert ticks[0] == "-30° (80%)"
    assert len(ticks) == 9
    grey = [line for line in panels["IG"].lines if line.get_marker() == "x"]
    names = [name for group in AUGMENTATIONS.values() for name in group]
    wanted = theirs[theirs["method"] == "IG"].set_index("augmentation").loc[names, "ssim"]
    np.testing.assert_allclose(grey[0].get_ydata(), wanted)
    assert "SSIM printed by the study (G'MIC's filters)" in texts(figure)
    assert any("higher is better" in text for text in texts(figure))
    (bare,) = plots.augmentation_robustness(table)
    assert not any("printed by the study" in text for text in texts(bare))
    assert len(plots.augmentation_robustness(augmented(models=("a", "b")))) == 2


def test_what_is_as_robust_as_noise_is_named_with_it():
    table = augmented().assign(data_range="of each pair of maps")
    at = (table["group"] == "filters") & (table["measure"] == "spearman")
    for method, value in [("Saliency", 0.9995), ("IG", 0.998), ("Guided Grad-CAM", 0.5), ("Random", 1.0)]:
        table.loc[at & (table["method"] == method), "mean"] = value
    (line,) = [line for line in findings(table, published.xai_correlation_ssim()) if line.startswith("a, filters: most robust")]
    assert "by Spearman Random, Saliency (1.00)," in line
    table.loc[at & (table["method"] == "Saliency"), "mean"] = 1.0
    table.loc[at & (table["method"] == "Random"), "mean"] = 0.9995
    assert any("by Spearman Random, Saliency (1.00)," in line for line in findings(table, published.xai_correlation_ssim()))


def judged():
    row = dict.fromkeys(PROPERTIES, 0.5) | {"protocol": "idsds", "applies": True, "verdict": VERDICTS[0], "forward": 17, "maps": 1}
    none = dict.fromkeys(PROPERTIES, np.nan) | {"protocol": "no_map", "applies": False, "verdict": VERDICTS[3]}
    worst = row | {"protocol": "noise_first", "resolution": np.nan, "ordering": -0.9, "control_shift": np.nan, "verdict": VERDICTS[2]}
    return pd.DataFrame([row, worst, none])


def test_metric_sanity_prints_every_number_and_verdict():
    figure = plots.metric_sanity(judged())
    (axes,) = figure.axes
    cells = {(round(t.get_position()[0]), round(t.get_position()[1])): t for t in axes.texts}
    assert cells[(0, 0)].get_text() == "+0.50"
    assert cells[(0, 1)].get_text() == "-0.90"
    names = list(PROPERTIES)
    assert cells[(names.index("resolution"), 1)].get_text() == "none"
    assert cells[(names.index("control_shift"), 1)].get_text() == "-"
    assert all(cells[(x, 2)].get_text() == "-" for x in range(len(PROPERTIES)))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["idsds", "noise first", "no map"]
    assert [t.get_text() for t in axes.texts if t.get_fontweight() == "bold"] == ["ranks; comparable", "neither", "n/a"]
    assert set(SHORT) == set(VERDICTS)
    # Darker is better, and what is written on it stays readable.
    shade = axes.images[0].get_array()
    assert shade[0, 0] > shade[1, 0]
    assert all("↑" in label.get_text() or "↓" in label.get_text() for label in axes.get_xticklabels())
