from itertools import combinations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from idsds import plots
from idsds.methods import METHODS
from idsds.methods.base import TENFOLD, TRANSFORMS, split_name
from idsds.plots.style import LEGIBLE, contrast, drawn_from, legible, scored_on

from .test_rank_methods import FAMILIES, ranked

mpl.use("agg")


def test_every_family_has_a_style_that_reads_without_colour():
    families = {plots.style_of(name + suffix, entry.family) for name, entry in METHODS.items() for suffix in ("", *TRANSFORMS)} | {"own"}
    assert families <= set(plots.STYLES)
    assert plots.style_of("IG", "gradient") == "gradient"
    assert plots.style_of("IG abs", "gradient") == "absolute"
    assert plots.style_of("Grad-CAM relu", "CAM") == "positive"
    looks = [(marker, filled) for _, marker, _, filled in plots.STYLES.values()]
    assert len(set(looks)) == len(looks)


EVERY = [name + suffix for name in METHODS for suffix in ("", *TRANSFORMS) if suffix != TENFOLD]


def grey(colour):
    return round(float(np.dot(mpl.colors.to_rgb(colour), (0.299, 0.587, 0.114))), 2)


def test_every_method_has_a_look_of_its_own_also_in_grey():
    looks = {name: plots.look_of(name) for name in EVERY}
    assert len(set(looks.values())) == len(looks)
    in_grey = {(o.marker, o.fill, grey(o.face), grey(o.other), grey(o.edge or o.colour)) for o in looks.values()}
    assert len(in_grey) == len(looks)


def test_methods_of_the_poster_differ_plainly_in_grey():
    names = ["Gradient", "IxG", "IG", "IG-U", "IG-SG", "IG-SG-SQ", "IG-SG-VG", "IxG-SG", "IG abs", "IG-U abs", "IxG abs"]
    names += ["Grad-CAM", "Grad-CAM++", "SG-CAM++", "XGrad-CAM", "Layer-CAM", "RISE", "RISE-U", "Rollout", "CheferLRP", "B-cos", "BagNet"]
    looks = {name: plots.look_of(name) for name in names}
    for first, second in combinations(names, 2):
        a, b = looks[first], looks[second]
        shades = max(abs(grey(a.face) - grey(b.face)), abs(grey(a.edge or a.colour) - grey(b.edge or b.colour)))
        assert (a.marker, a.fill) != (b.marker, b.fill) or shades >= 0.1, (first, second)


def test_contrast_is_that_of_the_guidelines():
    assert contrast("white") == contrast("#0072B2", "#0072B2") == 1
    assert round(contrast("black"), 6) == round(contrast("white", "black"), 6) == 21
    assert round(contrast("#767676"), 2) == 4.54  # the palest grey that the guidelines call readable
    assert round(contrast("#FF0000"), 2) == 4.00


def test_the_ink_of_every_method_is_seen_on_white_and_is_its_own_where_it_can_be():
    assert LEGIBLE == 3
    for name in [*EVERY, "mine", "mine abs", "mine relu"]:
        look = plots.look_of(name)
        own = (look.edge or look.colour) if look.face == "white" else look.face
        assert contrast(look.ink) >= LEGIBLE, name
        assert contrast(own) < LEGIBLE or look.ink == own, name
    assert contrast(plots.look_of("Guided Grad-CAM").face) < 1.5, "pale, where methods are told apart by lightness"
    assert (plots.look_of("Guided Grad-CAM").ink, plots.look_of("Layer-CAM").ink) == ("#0072b2", "#d55e00"), "their families' own"
    assert legible("#D55E00") == "#d55e00"
    assert 3 <= contrast(legible("#E69F00")) < 3.2


def test_ten_times_a_map_looks_like_the_map():
    for name in METHODS:
        assert plots.look_of(name + TENFOLD) == plots.look_of(name)


def test_the_look_of_a_method_keeps_the_shape_of_its_family():
    for name in EVERY:
        family = METHODS[split_name(name)[0]].family
        assert plots.look_of(name).marker == plots.STYLES[family][1]
    assert plots.look_of("mine", "own").marker == plots.look_of("mine").marker == plots.STYLES["own"][1]
    assert plots.look_of("mine abs", "own").face == "white"


def test_saved_files_are_the_same_again_and_hold_the_table(tmp_path):
    for folder in ("one", "two"):
        plots.save(
            plots.rank_methods(ranked(), FAMILIES), tmp_path / folder / "r", {"": ranked(), "more": ranked().head(1)}, finding="One."
        )
    names = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert names == ["r.csv", "r.md", "r.pdf", "r.png", "r_more.csv"]
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert (tmp_path / "one" / "r.md").read_text() == "One.\n"
    back = pd.read_csv(tmp_path / "one" / "r.csv")
    np.testing.assert_allclose(back["mean"], ranked()["mean"], atol=5e-5)
    assert b"/FontFile2" in (tmp_path / "one" / "r.pdf").read_bytes() or b"/Type42" in (tmp_path / "one" / "r.pdf").read_bytes()


def test_further_pages_are_numbered_and_each_file_is_its_page(tmp_path):
    figures = [plt.figure(figsize=(1, height)) for height in (1, 2, 3)]
    files = plots.save(figures, tmp_path / "g", pd.DataFrame({"a": [1]}), formats=["png"])
    assert [path.name for path in files] == ["g.png", "g_2.png", "g_3.png", "g.csv"]
    assert [plt.imread(path).shape[:2] for path in files[:3]] == [(200, 200), (400, 200), (600, 200)]


def test_a_legend_says_whether_images_or_groups_of_them_were_drawn():
    for drawn, n, over in (("images", "images", "images"), ("groups of images", "images", "groups of images")):
        table = pd.DataFrame({"interval": [f"95 % BCa bootstrap over {drawn}"]})
        assert (scored_on(table), drawn_from(table)) == (n, over)
    nested = pd.DataFrame({"interval": ["95 % percentile bootstrap over training seeds and images"]})
    assert scored_on(nested) == drawn_from(nested) == "images x training seeds"
