"""The explorer: the orders, the maps made again, what it says where they cannot be, and its controls."""

import numpy as np
import pytest

import idsds
from idsds.common.registry import UnknownNameError
from tests.evaluation.linear import Linear
from tests.studies.explore.conftest import explorer, own


def test_without_net_or_images_it_says_what_to_pass_and_shows_the_records(run):
    view = idsds.explore(run[1])
    example, notes = view.example()
    assert "pass" in notes[0].lower()
    assert any("dataset=" in note for note in notes)
    assert np.allclose(example.maps["IxG"].ravel(), example.records.loc["IxG", "patch_sums"])
    assert view.figure().axes
    with pytest.raises(UnknownNameError, match="model of the records"):
        explorer(run[1], models={"another": Linear()})
    with pytest.raises(UnknownNameError, match="method of the records"):
        explorer(run[1], methods={"another": own})


def test_records_of_two_settings_are_refused(run):
    twice = run[0].assign(baseline=["zeros", "blur"] * (len(run[0]) // 2))
    with pytest.raises(ValueError, match="2 values of 'baseline'"):
        idsds.explore(twice)
    with pytest.raises(ValueError, match="lack the column"):
        idsds.explore(run[0].drop(columns="protocol"))
    with pytest.raises(ValueError, match="empty"):
        idsds.explore(run[0].head(0))
