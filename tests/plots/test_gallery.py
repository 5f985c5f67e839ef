from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata

from idsds import plots
from idsds.plots.gallery import CELL, as_text, fitted
from idsds.plots.style import DIVERGING, text_width
from idsds.studies.gallery import Example

mpl.use("agg")

NAMES = ("IxG", "IG-SG-SQ abs", "Grad-CAM++ (paper)", "Random")


def example(methods=NAMES, grid=4, shape=(32, 32), model="net", image_id="mnist5k/0001", **changes):
    rng = np.random.default_rng(0)
    sums = [rng.standard_normal(grid * grid) for _ in methods]
    records = pd.DataFrame({"method": methods, "score": np.linspace(-0.5, 0.7, len(methods)), "patch_sums": sums}).set_index("method")
    fields = {
        "model": model,
        "seed": 0,
        "dataset": "mnist5k",
        "image_id": image_id,
        "target": "4",
        "prediction": "9",
        "target_logit": 5.25,
        "prediction_logit": 7.0,
        "picture": rng.uniform(size=(*shape, 3)),
        "drops": rng.standard_normal((grid, grid)),
        "records": records,
        "maps": {name: rng.standard_normal(shape) for name in methods},
    }
    return Example(**{**fields, **changes})


def texts(figure):
    """All texts of a page, its axes' included."""
    return [text for text in figure.findobj(mpl.text.Text) if text.get_text() and text.get_visible()]


def strings(figure):
    return [text.get_text() for text in texts(figure)]


def overlaps(figure):
    """Pairs of texts whose boxes overlap by more than half a point, and texts that leave the page."""
    figure.set_dpi(200)  # as it is saved
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    # A line's box holds room for letters with tails; stacked lines may share it.
    boxes = [(t.get_text(), t.get_window_extent(renderer).shrunk(1, 0.8)) for t in texts(figure)]
    slack = 0.5 / 72 * figure.dpi
    found = [
        (one, other)
        for i, (one, a) in enumerate(boxes)
        for other, b in boxes[i + 1 :]
        if min(a.x1, b.x1) - max(a.x0, b.x0) > slack and min(a.y1, b.y1) - max(a.y0, b.y0) > slack
    ]
    return found + [one for one, box in boxes if box.x0 < 0 or box.y0 < 0 or box.x1 > figure.bbox.x1 or box.y1 > figure.bbox.y1]


def test_titles_hold_method_and_score_of_that_image():
    (figure,) = plots.gallery([example()])
    found = strings(figure)
    for line in ("mnist5k/0001", "4 (5.2) → 9 (logit 7.0)", "net on mnist5k, training seed 0", *NAMES):
        assert line in found
    assert [text for text in found if text.startswith("IDSDS") and len(text) < 15] == [
        "IDSDS \N{MINUS SIGN}0.50",
        "IDSDS \N{MINUS SIGN}0.10",
        "IDSDS 0.30",
        "IDSDS 0.70",
    ]
    (best,) = [text for text in texts(figure) if text.get_text() == "IDSDS 0.70"]
    assert best.get_weight() == "bold"


def test_an_undefined_score_and_a_map_that_is_not_finite_or_zero_are_drawn():
    one = example()
    one.records["score"] = np.nan
    one.records.at["IxG", "patch_sums"] = np.full(16, np.nan)
    one.records.at["Random", "patch_sums"] = np.zeros(16)
    maps = {**one.maps, "IxG": np.full((32, 32), np.nan), "Random": np.zeros((32, 32))}
    (figure,) = plots.gallery([replace(one, maps=maps)])
    assert strings(figure).count("IDSDS undefined") == 4
    assert strings(figure).count("8.5") == 16  # equal sums share their rank
    figure.canvas.draw()


def test_a_map_is_white_at_zero_and_its_scale_is_symmetric_and_its_own():
    large = {name: values * 10**i for i, (name, values) in enumerate(example().maps.items())}
    (figure,) = plots.gallery([example(maps=large)])
    limits = [axes.images[0].get_clim() for axes in figure.axes[2:6]]
    assert all(low == -high for low, high in limits)
    for (_, high), values in zip(limits, large.values(), strict=True):
        assert high == pytest.approx(np.quantile(np.abs(values), 0.99))
    assert DIVERGING(0.5)[:3] == pytest.approx((1, 1, 1), abs=0.01)
    light = [np.dot(DIVERGING(x)[:3], (0.299, 0.587, 0.114)) for x in np.linspace(0, 1, 11)]
    assert np.all(np.diff(light[:6]) > 0)
    assert np.all(np.diff(light[5:]) < 0)


def test_drops_and_ranks_stand_in_their_patches():
    one = example(grid=3, shape=(48, 24))
    (figure,) = plots.gallery([one])
    labels = {(int(t.get_position()[1]), int(t.get_position()[0]), t.get_text()) for t in figure.axes[1].texts}
    ranks = rankdata(-one.drops).reshape(3, 3)
    for (row, column), drop in np.ndenumerate(one.drops):
        assert (row, column, as_text(drop, 1)) in labels
        assert (row, column, f"{ranks[row, column]:g}") in labels
    sums = one.records["patch_sums"].iloc[0]
    labels = {(int(t.get_position()[1]), int(t.get_position()[0])): t.get_text() for t in figure.axes[2].texts}
    assert labels[divmod(int(np.argmax(sums)), 3)] == "1"
    assert labels[divmod(int(np.argmin(sums)), 3)] == "9"


def test_the_colour_of_a_drop_is_its_sign_whatever_lies_below():
    drops = np.zeros((4, 4))
    drops[0, 0], drops[3, 3] = 2.0, -2.0
    (figure,) = plots.gallery([example(drops=drops)])
    image = np.asarray(figure.axes[1].images[0].get_array())  # (H, W, 3)
    assert (image[:8, :8, 0] > image[:8, :8, 2]).all()
    assert (image[-8:, -8:, 0] < image[-8:, -8:, 2]).all()
    assert np.ptp(image[8:24, 8:24], axis=-1).max() < 0.01  # no drop: the picture in grey


@pytest.mark.parametrize(
    ("scale", "grid", "shape"), [(0.01, 4, (32, 32)), (1, 2, (24, 48)), (9.96, 6, (32, 32)), (150, 4, (32, 48)), (1, 8, (48, 24))]
)
def test_no_text_overlaps_another_or_leaves_the_page(scale, grid, shape):
    one = example(grid=grid, shape=shape, target="a very long class of animals, with others", prediction="quite another species of fish")
    for figure in plots.gallery([replace(one, drops=one.drops * scale)]):
        assert overlaps(figure) == []


@pytest.mark.parametrize("count", [1, 3, 5, 7, 23])
def test_many_methods_take_several_lines_of_equal_length(count):
    names = [f"a method of some length {i}" for i in range(count)]
    (figure,) = plots.gallery([example(methods=names)])
    lines = -(-count // 5)
    tops = {round(axes.get_position().y0, 6) for axes in figure.axes[2 : 2 + count]}
    assert len(tops) == lines
    assert figure.get_size_inches()[0] < 8
    assert overlaps(figure) == []


@pytest.mark.parametrize("grid", [2, 4])
def test_one_column_has_smaller_pictures_and_no_number_that_could_not_be_read(grid):
    (figure,) = plots.gallery([example(grid=grid)], columns=1)
    assert figure.get_size_inches()[0] <= plots.COLUMNS[1] + 1e-9
    assert [bool(axes.texts) for axes in figure.axes[1:6]] == [grid < 4] * 5
    assert overlaps(figure) == []


def test_pictures_keep_the_proportions_of_the_image():
    (figure,) = plots.gallery([example(shape=(48, 24))])
    width, height = figure.get_size_inches()
    for axes in figure.axes[:6]:
        box = axes.get_position()
        assert (box.width * width, box.height * height) == pytest.approx((CELL, 2 * CELL))


def test_pages_are_full_of_one_model_each():
    examples = [example(model=model, image_id=f"{model}{i}") for model in ("a", "b") for i in range(9)]
    figures = plots.gallery(examples)
    shown = [[text for text in strings(figure) if text in {e.image_id for e in examples}] for figure in figures]
    assert [name for page in shown for name in page] == [e.image_id for e in examples]
    assert all(len({name[0] for name in page}) == 1 for page in shown)
    assert len(figures) == 4
    assert all(figure.get_size_inches()[1] <= 10 for figure in figures)


def test_texts_are_made_to_fit():
    assert fitted("IxG", 60, 6.5, "normal") == ("IxG", 6.5)
    text, size = fitted("Grad-CAM++ (paper) abs", 66, 6.5, "normal")
    assert text == "Grad-CAM++ (paper) abs"
    assert 5 <= size < 6.5
    text, size = fitted("an endless name of a method", 40, 6.5, "normal")
    assert text.endswith("…")
    assert text_width(text, 1) * size <= 40


def test_numbers_have_no_negative_zero():
    assert [as_text(x, 1) for x in (-0.04, 0.04, -1.25, np.nan)] == ["0.0", "0.0", "\N{MINUS SIGN}1.2", "undefined"]


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="examples is empty"):
        plots.gallery([])
    with pytest.raises(ValueError, match="not 0"):
        plots.gallery([example()], across=0)
