"""Shares of the training images: nested, stratified, keyed."""

import itertools
from collections import Counter

import pytest

from idsds.datasets import stratified_split
from idsds.datasets.splits import nested_share

IDS = [f"image {number}" for number in range(90)]
TARGETS = [0] * 50 + [1] * 37 + [2] * 3


def test_a_smaller_share_lies_within_a_larger_one():
    shares = [set(nested_share(IDS, TARGETS, fraction, seed=3)) for fraction in (0.05, 0.2, 0.4, 0.6, 0.8, 1.0)]
    for smaller, larger in itertools.pairwise(shares):
        assert smaller < larger
    assert shares[-1] == set(range(90))


@pytest.mark.parametrize(("fraction", "counts"), [(0.2, (10, 7, 1)), (0.05, (2, 2, 1)), (0.5, (25, 18, 2))])
def test_each_class_gives_its_share_and_at_least_one(fraction, counts):
    """Python rounds halves to even: 2.5 to 2, 18.5 to 18, 1.5 to 2."""
    found = Counter(TARGETS[index] for index in nested_share(IDS, TARGETS, fraction))
    assert tuple(found[target] for target in range(3)) == counts


def test_the_seed_draws_and_an_added_image_moves_no_other_class():
    assert nested_share(IDS, TARGETS, 0.4, seed=0) != nested_share(IDS, TARGETS, 0.4, seed=1)
    before = nested_share(IDS, TARGETS, 0.4)
    after = nested_share([*IDS, "new"], [*TARGETS, 2], 0.4)
    assert [index for index in before if TARGETS[index] < 2] == [index for index in after if index < 87]


@pytest.mark.parametrize("fraction", [0, -0.2, 1.2, float("nan")])
def test_what_is_no_share(fraction):
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        nested_share(IDS, TARGETS, fraction)


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (-0.1, 0), (0, 1.0)])
def test_impossible_shares_are_refused(validation, test):
    with pytest.raises(ValueError, match="fractions"):
        stratified_split(["a"], [0], "train", validation=validation, test=test)
