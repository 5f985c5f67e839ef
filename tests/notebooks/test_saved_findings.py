"""The sentence that stands under a figure is all that the notebook prints, not the first or last line of it."""

import re

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from idsds import plots
from tests.notebooks.test_notebooks import ROOT, cells

STUDY = (
    "how_infidelity_works",
    "augmentation_robustness",
    "roar",
    "sanity_checks",
    "hyperparameter_sensitivity",
    "metric_sanity",
)


@pytest.mark.parametrize("name", STUDY)
def test_what_is_printed_is_saved(name):
    code = "\n".join(cell.source for cell in cells(ROOT / "notebooks" / f"{name}.ipynb"))
    (saved,) = re.findall(r"plots\.save\(.*finding=(\w+)\)", code)
    assert f"print(*{saved}," in code


def test_several_sentences_become_a_list(tmp_path):
    plots.save(plt.figure(), tmp_path / "x", pd.DataFrame(), formats=(), finding=["One.", "Two."])
    assert (tmp_path / "x.md").read_text() == "- One.\n- Two.\n"
