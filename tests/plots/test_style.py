import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from idsds import plots
from idsds.methods import METHODS
from idsds.methods.base import TRANSFORMS

from .test_ranking import FAMILIES, ranked

mpl.use("agg")


def test_every_family_has_a_style_that_reads_without_colour():
    families = {plots.style_of(name + suffix, entry.family) for name, entry in METHODS.items() for suffix in ("", *TRANSFORMS)} | {"own"}
    assert families <= set(plots.STYLES)
    assert plots.style_of("IG", "gradient") == "gradient"
    assert plots.style_of("IG abs", "gradient") == "absolute"
    assert plots.style_of("Grad-CAM relu", "CAM") == "positive"
    looks = [(marker, filled) for _, marker, _, filled in plots.STYLES.values()]
    assert len(set(looks)) == len(looks)


def test_saved_files_are_the_same_again_and_hold_the_table(tmp_path):
    for folder in ("one", "two"):
        plots.save(plots.ranking(ranked(), FAMILIES), tmp_path / folder / "r", {"": ranked(), "more": ranked().head(1)}, finding="One.")
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
