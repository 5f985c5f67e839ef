import matplotlib as mpl
import numpy as np
import pandas as pd

from idsds import plots

mpl.use("agg")

FAMILIES = {"IG": "gradient", "Grad-CAM": "CAM", "Random": "control"}
VARIANTS = {"seed": ("0", "1", "all"), "baseline": ("zeros", "blur"), "grid": ("4", "2", "8"), "images": ("25", "100")}


def tables():
    rows = [
        (kind, variant, method, mean, mean - 0.05, mean + 0.05)
        for kind, variants in VARIANTS.items()
        for variant in variants
        for method, mean in zip(FAMILIES, (0.6, 0.3, 0.0), strict=True)
    ]
    pairs = [("seed", "0", "1", 1.0), ("baseline", "zeros", "blur", 0.5), ("grid", "4", "2", -0.5), ("grid", "4", "8", 0.25)]
    pairs += [("grid", "2", "8", 0.75), ("grid", "4", "4", 0.9), ("images", "25", "rest", 0.8), ("images", "100", "rest", np.nan)]
    return (
        pd.DataFrame(rows, columns=["kind", "variant", "method", "mean", "low", "high"]),
        pd.DataFrame(
            [(*pair, pair[3] - 0.1, pair[3] + 0.1) for pair in pairs], columns=["kind", "first", "second", "tau", "tau_low", "tau_high"]
        ),
    )


def ticks(axes):
    return {text.get_text().split("\n")[0]: text.get_text().split("\n")[1:] for text in axes.get_xticklabels()}


def test_each_panel_has_its_variants_with_the_agreement_below():
    figure = plots.stability(*tables(), FAMILIES)
    seed, baseline, grid, images = (ticks(axes) for axes in figure.axes)
    assert list(seed) == ["0", "1", "all"]
    assert seed["1"] == ["tau 1.00", "[0.90, 1.10]"]
    assert seed["0"] == ["reference"]
    assert baseline["blur"][0] == "tau 0.50"
    assert list(grid) == ["2", "4", "8"]  # by size, though the reference comes first in the table
    assert (grid["2"][0], grid["8"][0], grid["4"]) == ("tau -0.50", "tau 0.25", ["reference"])
    assert images["25"][0] == "tau 0.80"
    assert images["100"] == [""]


def test_every_method_is_named_in_every_panel_and_all_is_not_joined():
    figure = plots.stability(*tables(), FAMILIES)
    for axes in figure.axes:
        assert {text.get_text() for text in axes.texts} == set(FAMILIES)
    lines = [line for line in figure.axes[0].lines if line.get_marker() in ("None", "") and len(line.get_xdata()) == 2 and line.get_alpha()]
    assert len(lines) == 3  # from seed 0 to seed 1, and no further
    assert "higher is better" in figure.axes[0].get_ylabel()
    assert any("over seeds and images" in text.get_text() for text in figure.legends[0].get_texts())
