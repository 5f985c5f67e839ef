import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from idsds import plots
from idsds.plots.lines import line_looks
from idsds.plots.roar import TITLES, UNTOUCHED, _looks

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
    return table.assign(count=500, top5=0.5 + table["mean"] / 2, interval="95 % t interval over 3 training seeds")


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
            np.testing.assert_allclose(line.get_xdata(), 100 * part["share"], atol=2)
            np.testing.assert_allclose(line.get_ydata(), part["mean"])
    assert "accuracy after retraining" in figure.axes[0].get_ylabel()
    assert figure.axes[2].get_xlabel() == "pixels replaced in every image, %"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(FAMILIES)
    assert legend.get_title().get_text() == "n = 500 test images; bars: 95 % t interval over 3 training seeds"


def test_what_no_method_has_touched_is_one_mark_and_no_method_s():
    table = curves(models=("a",))
    first = table[table["share"] == 0.1].assign(share=0.0, mean=0.8, low=0.7, high=0.9)
    figure = plots.roar(pd.concat([table, first], ignore_index=True))
    for axes in figure.axes:
        *lines, mark = axes.lines
        assert [line.get_xdata()[0] for line in lines] == [0] * len(FAMILIES), "every line begins there"
        assert [line.get_markevery() for line in lines] == [[1, 2, 3]] * len(FAMILIES), "without a mark of its method"
        assert (mark.get_xdata(), mark.get_ydata(), mark.get_color()) == ([0], [0.8], UNTOUCHED["color"])
        ends = [path.vertices for bars in axes.collections for path in bars.get_paths()]
        at_zero = [end for end in ends if abs(end[0, 0]) < 5]
        np.testing.assert_allclose(at_zero, [[[0, 0.7], [0, 0.9]]])
        assert len(ends) == 1 + 3 * len(FAMILIES)
        marks = np.array([line.get_xdata()[1:] for line in lines])
        assert (np.diff(np.sort(marks, axis=0), axis=0) > 0.5).all(), "marks of equal height stand side by side"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*FAMILIES, "nothing replaced: one net for all"]


def test_masks_alone_have_a_panel_with_the_level_of_chance_and_all_show_the_explained_net():
    table = curves(models=("a",), kinds=tuple(TITLES)).assign(explained_accuracy=0.95, chance=0.12)
    figure = plots.roar(table)
    for axes, (kind, (title, _)) in zip(figure.axes, TITLES.items(), strict=True):
        near = table.loc[table["kind"] == kind, "top5"]
        assert axes.get_title() == f"{title}\ntop-5: {near.min():.3f} to {near.max():.3f}"
    for axes, kind in zip(figure.axes, TITLES, strict=True):
        told = [text.get_text() for text in axes.texts]
        assert told == ["explained net 0.950", *(["chance 0.120"] if kind == "mask" else []), TITLES[kind][1]]
        levels = [line.get_ydata()[0] for line in axes.lines[len(FAMILIES) :]]
        assert levels == ([0.95, 0.12] if kind == "mask" else [0.95])


def test_intervals_are_drawn_as_the_table_has_them():
    """What the statistics cut at 0 and 1 need not be cut again, out of sight."""
    table = curves(models=("a",), kinds=("remove",))
    (axes,) = plots.roar(table).axes
    drawn = sorted(tuple(path.vertices[:, 1]) for bars in axes.collections for path in bars.get_paths())
    np.testing.assert_allclose(drawn, sorted(zip(table["low"], table["high"], strict=True)))


def test_methods_that_coincide_stay_visible():
    """Broader lines lie below; colours of one marker differ in how light they are, so that Random is no second Edges in grey."""
    (axes,) = plots.roar(curves(models=("a",), kinds=("remove",))).axes
    widths = [line.get_linewidth() for line in axes.lines]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == len(FAMILIES)
    looks = _looks(FAMILIES)
    grey = {method: np.dot(mpl.colors.to_rgb(look["color"]), (0.2126, 0.7152, 0.0722)) for method, look in looks.items()}
    for one, other in (("Random", "Edges"), ("Gradient", "IG")):
        assert abs(grey[one] - grey[other]) > 0.1
        assert looks[one]["linestyle"] != looks[other]["linestyle"]


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
    table = pd.DataFrame(rows, columns=names).assign(interval="95 % t interval over images", nan=0)
    table = table.assign(undefined=0, maps=50, layers="conv1 to fc", train_top5=0.99)
    table.loc[0, ["mean", "low", "high"]] = np.nan  # an undefined mean leaves a gap
    figure = plots.sanity_checks(table, similarities=similarities)
    assert len(figure.axes) == 3 * len(similarities or range(3))
    assert all("lower is better" in axes.get_ylabel() for axes in figure.axes[::3])
    assert [axes.get_title() for axes in figure.axes[:3]] == [
        "cascading",
        "one group of layers alone",
        "permuted labels\n(97% learned,\ntop-5: 99%)",
    ]
    line = figure.axes[0].lines[2]
    np.testing.assert_allclose(line.get_xdata(), [0, 50, 100])
    np.testing.assert_allclose(line.get_ydata(), [1, 0.5, 0.5])
    assert [label.get_text() for label in figure.axes[-1].get_xticklabels()] == list(FAMILIES)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(FAMILIES)
