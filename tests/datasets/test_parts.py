"""Creatures whose parts are known: subsets as bits, the classes that fit what is drawn, and the parts dropped in training."""

import pytest
import torch
from scipy import stats

from idsds.datasets.parts import Parts, members


@pytest.fixture
def parts():
    """Three parts; the first two classes differ in the last part alone."""
    return Parts(("eye", "leg", "tail"), torch.tensor([[0, 0, 0], [0, 0, 1], [1, 2, 1]]), objects=2, owners=(0, 1, 2))


def test_members_are_the_bits_of_a_subset(parts):
    assert parts.whole == 7
    found = members(3)
    assert found.shape == (8, 3)
    for subset, row in enumerate(found.tolist()):
        assert sum(2**part for part, drawn in enumerate(row) if drawn) == subset


@pytest.mark.parametrize(
    ("target", "subset", "fits"), [(0, 0b011, [0, 1]), (0, 0b111, [0]), (1, 0b100, [1, 2]), (2, 0b001, [2]), (2, 0, [0, 1, 2])]
)
def test_all_classes_that_share_what_is_drawn_are_equally_probable(parts, target, subset, fits):
    assert parts.fitting(target, subset).tolist() == pytest.approx([1 / len(fits) if each in fits else 0 for each in range(3)])


def test_half_of_the_draws_are_whole_and_the_others_lose_any_number_of_parts(parts):
    generator = torch.Generator().manual_seed(0)
    drawn = [parts.drop(generator) for _ in range(4000)]
    counts = [sum(subset.bit_count() == kept for subset in drawn) for kept in range(4)]
    # Half at once, and of the other half as many with 0, 1, 2 and 3 parts.
    assert stats.chisquare(counts, [500, 500, 500, 2500]).pvalue > 0.001
    ones = [drawn.count(subset) for subset in (1, 2, 4)]
    assert stats.chisquare(ones).pvalue > 0.001, "no part is lost more often than another"
