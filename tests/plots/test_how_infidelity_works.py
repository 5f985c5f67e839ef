"""The figure of infidelity step by step: what stands where, on small steps made here."""

from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

from idsds import plots
from idsds.studies.how_infidelity_works.findings import steps_table
from idsds.studies.how_infidelity_works.study import HowInfidelityWorks, Step, Walk

from .overlap import outside, overlaps, text_boxes

mpl.use("agg")
SETTINGS = {
    "dataset": "digits",
    "model": "mini_resnet8",
    "methods": ["Gradient", "IxG", "Grad-CAM"],
    "sigmas": [0.01, 1.0],
    "output": "runs/x/y",
}


@pytest.fixture
def walk():
    """Noise that changes the logit by a hundredth, noise that lowers it by 3 in the mean, a square, and patches that all judge."""
    settings, rng = HowInfidelityWorks(**SETTINGS, optimal_cells=8), np.random.default_rng(0)

    def step(kind, shift, spread, **facts):
        changes = shift + spread * rng.normal(size=50)
        changes[0] = shift or 0.0102
        errors = dict(zip(settings.methods, spread * rng.normal(size=(3, 50)), strict=True))
        predicted = {"Gradient": changes - shift, "IxG": 2 * changes, "Grad-CAM": 50 * changes}
        predicted = {name: values + errors[name] for name, values in predicted.items()}
        products = {name: rng.normal(size=(8, 8)) for name in ("Gradient", "IxG")}
        taken, picture = rng.normal(size=(8, 8)), rng.random((8, 8, 3))
        blank = {
            "sampled": True,
            "cells": 64,
            "ridge": 0.0,
            "fitted": 192,
            "different": 96,
            "seen": 0,
            "optimal": rng.normal(size=(8, 8)),
            **facts,
        }
        predicted[settings.optimal] = changes if blank["seen"] else changes + 0.1 * spread * rng.normal(size=50)
        noise = kind.perturbation == "gaussian"
        return Step(
            kind.name, noise, taken=taken, picture=picture, products=products, logit=6.273, changes=changes, predicted=predicted, **blank
        )

    small, large, square, patch = settings.kinds
    exact = {"sampled": False, "different": 16, "seen": 50}
    steps = [step(small, 0, 0.01), step(large, 3, 0.5), step(square, 1, 1), step(patch, 1, 1, **exact)]
    maps = {name: rng.normal(size=(8, 8)) for name in settings.methods}
    return Walk(settings, "digits/0007", "7", rng.random((8, 8, 3)), maps, steps, {kind.name: [] for kind in settings.kinds})


@pytest.fixture
def figure(walk):
    return plots.how_infidelity_works(walk, steps_table(walk))


def panels(figure, walk):
    """The axes: the strip of maps, and the rows below."""
    maps = 3 + len(walk.steps)
    return figure.axes[:maps], np.array(figure.axes[maps:]).reshape(len(walk.steps), 6)


@pytest.mark.parametrize(
    "names", [{}, {"image_id": "imagenet/ILSVRC2012_val_00000293", "label": "soft-coated wheaten terrier of a long name"}]
)
def test_nothing_is_covered(walk, names):
    walk = replace(walk, **names)
    figure = plots.how_infidelity_works(walk, steps_table(walk))
    boxes = text_boxes(figure)
    assert not overlaps(boxes)
    assert not outside(figure, boxes)
    (legend,) = [part.legends[0] for part in figure.subfigs if part.legends]
    assert not any(legend.get_window_extent().overlaps(axes.get_tightbbox()) for axes in figure.axes)
    assert [text.get_text() for text in legend.get_texts()] == [
        *("Gradient", "IxG", "correct prediction", "as it is", "optimally scaled", "zero map"),
        "floor of every map: squared mean change",
    ]


def test_a_step_shows_what_is_taken_each_product_with_its_sum_and_a_logit_that_changes(figure, walk):
    _, rows = panels(figure, walk)
    assert [axes.get_title() for axes in rows[0]][:4] == ["taken away: d", "what is left", "I × Gradient", "I × IxG"]  # noqa: RUF001
    for row, step in zip(rows, walk.steps, strict=True):
        for axes, values in zip(row[[0, 2, 3]], (step.taken, *step.products.values()), strict=True):
            (image,) = axes.images
            assert np.array_equal(image.get_array(), values)
            scale = np.quantile(np.abs(values), 0.99)
            assert image.get_clim() == (-scale, scale)
            assert image.cmap(0.5)[:3] == pytest.approx((1, 1, 1), abs=0.02)
            red, _, blue, _ = image.cmap(1.0)  # positive
            assert red > blue
            assert f"scale ±{scale:.2g}" in axes.get_xlabel()
        for axes, name in zip(row[2:4], step.products, strict=True):
            assert axes.get_xlabel().startswith(f"predicts {step.predicted[name][0]:.2g}\n".replace("-", "\N{MINUS SIGN}"))
    assert rows[0, 1].get_xlabel() == "6.273 → 6.263\nfalls by 0.01"
    assert rows[1, 1].get_xlabel() == "6.27 → 3.27\nfalls by 3"


def test_the_optimal_maps_stand_beside_those_that_are_drawn(figure, walk):
    strip, _ = panels(figure, walk)
    shown = [axes.images[0].get_array() for axes in strip]
    wanted = [walk.picture, walk.maps["Gradient"], walk.maps["IxG"], *(step.optimal for step in walk.steps)]
    assert all(np.allclose(a, b) for a, b in zip(shown, wanted, strict=True))
    cosine = float(
        (walk.steps[0].optimal * walk.maps["Gradient"]).sum()
        / np.linalg.norm(walk.steps[0].optimal)
        / np.linalg.norm(walk.maps["Gradient"])
    )
    assert strip[3].get_xlabel().endswith(f"cosine {cosine:.3f}".replace("-", "\N{MINUS SIGN}"))


def test_infidelity_is_a_place_not_a_length(figure, walk):
    """A filled dot for each map as it is, a hollow one for it scaled to its best, no bars; lines for a map of zeros and for the floor."""
    _, rows = panels(figure, walk)
    for axes, step in zip(rows[:, -1], walk.steps, strict=True):
        assert not axes.patches
        dots = [line for line in axes.lines if line.get_marker() == "o"]
        filled = [line.get_xdata()[0] for line in dots if line.get_markerfacecolor() != "white"]
        hollow = [line.get_xdata()[0] for line in dots if line.get_markerfacecolor() == "white"]
        names = [name for name in step.predicted if not (step.by_construction and name == walk.settings.optimal)]
        assert filled == pytest.approx([step.errors[name].mean() for name in names])
        assert hollow == pytest.approx([step.scaled[name].mean() for name in names])
        lines = {line.get_linestyle(): line.get_xdata()[0] for line in axes.lines if line.get_linestyle() in ("--", ":")}
        assert lines["--"] == pytest.approx((step.changes**2).mean())
    assert lines.keys() == {"--"}
    floor = [line.get_xdata()[0] for line in rows[1, -1].lines if line.get_linestyle() == ":"]
    assert floor == [pytest.approx(walk.steps[1].changes.mean() ** 2)]
    assert [text.get_text() for text in rows[3, -1].texts] == ["≈ 0, by construction"]
    assert not rows[2, -1].texts


def test_marks_differ_in_grey(figure, walk):
    _, rows = panels(figure, walk)
    first, second = rows[0, -2].lines[:2]
    assert [first.get_marker(), second.get_marker()] == ["o", "s"]
    assert second.get_markerfacecolor() == "none"


def test_the_notes_say_what_colours_and_whiskers_are(figure):
    (note,) = [text.get_text().replace("\n", " ") for part in figure.subfigs for text in part.texts if "orange" in text.get_text()]
    assert "white 0" in note
    assert "95 % t over 50 perturbations of one image; none: all 50 perturbations of one image" in note


def test_without_gradient_there_is_no_cosine(walk):
    table = steps_table(walk).assign(cosine_with_gradient=np.nan)
    strip, _ = panels(plots.how_infidelity_works(walk, table), walk)
    assert not any("cosine" in axes.get_xlabel() for axes in strip)
    assert isinstance(table, pd.DataFrame)
