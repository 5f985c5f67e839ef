"""The numbers in the cells of a step-by-step figure."""

from idsds.plots.how_idsds_works import _short


def test_numbers_of_a_cell_are_short():
    assert [_short(value) for value in (630.4, 99.7, 6.12, -0.571, 0.0004, 0.0)] == ["630", "100", "6.1", "-0.57", "0.0004", "0"]
