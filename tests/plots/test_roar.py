import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from idsds import plots
from idsds.plots.lines import line_looks

mpl.use("agg")
FAMILIES = {"Gradient": "gradient", "IG": "gradient", "IG abs": "gradient", "Grad-CAM": "CAM", "Random": "control", "Edges": "control"}


def curves(models=("a", "b"), kinds=("remove", "keep")):
    rng = np.random.default_rng(0)
    rows = [
        (m, n, f, k, s, v := rng.random(), v - 0.1, v + 0.1)
        for m in models
        for n, f in FAMILIES.items()
        for k in kinds
        for s in (0.1, 0.5, 0.9)
    ]
    table = pd.DataFrame(rows, columns=["model", "method", "family", "kind", "share", "mean", "low", "high"])
    return table.assign(count=500, interval="95 % t interval over 3 training seeds")


def test_a_line_per_method_in_panels_that_say_what_is_better():
    table = curves()
    figure = plots.roar(table)
    assert len(figure.axes) == 4
    for axes, (model, kind, better) in zip(
        figure.axes, [(m, k, b) for m in "ab" for k, b in (("remove", "lower"), ("keep", "higher"))], strict=True
    ):
        assert [text.get_text() for text in axes.texts] == [f"{better} is better"]
        assert len(axes.lines) == len(FAMILIES)
        for line, method in zip(axes.lines, FAMILIES, strict=True):
            part = table[(table["model"] == model) & (table["kind"] == kind) & (table["method"] == method)]
            np.testing.assert_allclose(line.get_xdata(), 100 * part["share"])
            np.testing.assert_allclose(line.get_ydata(), part["mean"])
    assert "accuracy after retraining" in figure.axes[0].get_ylabel()
    assert figure.axes[2].get_xlabel() == "pixels replaced in every image, %"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(FAMILIES)
    assert legend.get_title().get_text() == "n = 500 test images; bars: 95 % t interval over 3 training seeds"


def test_one_kind_and_one_seed_will_do():
    figure = plots.roar(curves(models=("a",), kinds=("keep",)).assign(low=np.nan, high=np.nan))
    assert len(figure.axes) == 1


def test_methods_of_a_family_share_its_colour_and_differ_in_grey():
    looks = line_looks(FAMILIES)
    assert looks["Gradient"]["color"] == looks["IG"]["color"] != looks["Grad-CAM"]["color"]
    seen = [(look["marker"], look["markerfacecolor"] == "white", str(look["linestyle"])) for look in looks.values()]
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize("similarities", [None, ["ssim"]])
def test_sanity_has_a_row_per_similarity_and_a_panel_per_check(similarities):
    rows = [
        ("m", n, f, c, d, s, 0.5, 0.4, 0.6, 50, 0.97 if c == "labels" else np.nan)
        for n, f in FAMILIES.items()
        for c, depths in (("cascading", (0.5, 1.0)), ("independent", (0.5, 1.0)), ("labels", (1.0,)))
        for d in depths
        for s in ("spearman", "absolute", "ssim")
    ]
    names = ["model", "method", "family", "check", "depth", "similarity", "mean", "low", "high", "count", "train_accuracy"]
    table = pd.DataFrame(rows, columns=names).assign(interval="95 % t interval over images")
    table.loc[0, ["mean", "low", "high"]] = np.nan  # an undefined mean leaves a gap
    figure = plots.sanity(table, similarities=similarities)
    assert len(figure.axes) == 3 * len(similarities or range(3))
    assert all("lower is better" in axes.get_ylabel() for axes in figure.axes[::3])
    assert [axes.get_title() for axes in figure.axes[:3]] == ["cascading", "independent", "permuted labels (97% learned)"]
    line = figure.axes[0].lines[2]
    np.testing.assert_allclose(line.get_xdata(), [0, 50, 100])
    np.testing.assert_allclose(line.get_ydata(), [1, 0.5, 0.5])
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == list(FAMILIES)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(FAMILIES)
