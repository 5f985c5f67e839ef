"""The sentence that stands under a figure is all that the notebook prints, not the first or last line of it."""

import re

import pytest

from tests.notebooks.test_notebooks import ROOT, cells


@pytest.mark.parametrize("name", ["sanity_checks", "how_infidelity_works", "infidelity_sensitivity"])
def test_what_is_printed_is_saved(name):
    (cell,) = [cell.source for cell in cells(ROOT / "notebooks" / f"{name}.ipynb") if "plots.save(" in cell.source]
    (saved,) = re.findall(r'finding=" "\.join\((\w+)\)', cell)
    assert f"print(*{saved}," in cell
