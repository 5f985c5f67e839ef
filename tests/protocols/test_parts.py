"""The functions behind FunnyBirds' protocols, against formulas and brute force."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from idsds.datasets.parts import members
from idsds.models import UNIT
from idsds.protocols import parts
from tests.protocols.creatures import VARIANTS, WEIGHTS, Counting, creatures


def shapley(values):
    """The mean marginal contribution over all orders of three or more parts."""
    count = len(values).bit_length() - 1
    found = torch.zeros(count, dtype=torch.float64)
    orders = list(itertools.permutations(range(count)))
    for order in orders:
        subset = 0
        for part in order:
            found[part] += values[subset + 2**part] - values[subset]
            subset += 2**part
    return found / len(orders)


def test_shapley_values_are_the_mean_over_all_orders():
    values = torch.randn(2, 3, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = parts.part_shapley(values)
    expected = torch.stack([shapley(row) for row in values.flatten(0, 1)]).view(2, 3, 4)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found.sum(-1), values[..., -1] - values[..., 0])
    with pytest.raises(ValueError, match=r"2, 4, 8, \.\.\. subsets, not 31"):
        parts.part_shapley(torch.zeros(2, 31))


def test_the_table_of_a_net_that_counts():
    batch = creatures([0, 3], [2, 0])
    table = parts.part_table(Counting(objects=(2.0, -1.0, 0, 0, 0)), batch)
    has = members(5).double()
    shared = (VARIANTS[batch.targets][:, None] == VARIANTS).double() * WEIGHTS  # (B, K, P)
    expected = torch.einsum("sp,bkp->bsk", has, shared) + torch.tensor([0, 0, 0, 0.5])
    expected[0] += 1.0  # its two objects
    torch.testing.assert_close(table["part_logits"], expected)
    torch.testing.assert_close(table["object_logits"][0, :2], torch.tensor([14.0, 17.0], dtype=torch.float64))
    assert table["object_logits"].isnan().tolist() == [[False] * 2 + [True] * 3, [True] * 5]
    torch.testing.assert_close(parts.part_drops(table["part_logits"], batch.targets), WEIGHTS.double().expand(2, 5))
    exact = parts.part_shapley(parts.target_logits(table["part_logits"], batch.targets))
    torch.testing.assert_close(exact, WEIGHTS.double().expand(2, 5))


def test_importance_is_the_sum_over_dilated_regions():
    maps = torch.randn(2, 9, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    regions = torch.zeros(4, 9, 7, dtype=torch.bool)
    regions[0, 0, 0], regions[1, 4, 3], regions[3, 8, 6] = True, True, True
    found = parts.part_importance(maps, regions, (0, 2, 1, 2), 3)
    expected = torch.stack(
        [maps[:, :3, :3].sum((1, 2)), torch.zeros(2).double(), maps[:, 2:7, 1:6].sum((1, 2)) + maps[:, 6:, 4:].sum((1, 2))], 1
    )
    torch.testing.assert_close(found, expected)


def test_sufficient_sets():
    pairs = {frozenset(pair) for pair in [(0, 2), (0, 3), (1, 2), (1, 3), (0, 4), (1, 4), (2, 4), (3, 4)]}
    assert {frozenset(row.nonzero().flatten().tolist()) for row in parts.sufficient_sets(VARIANTS, 0)} == pairs
    assert parts.sufficient_sets(torch.tensor([[0, 1], [0, 1]]), 0).shape == (0, 2)


def test_rivals():
    assert parts.rivals(VARIANTS).tolist() == [[1, 2], [-1, -1], [-1, -1], [-1, -1]]
    overlapping = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]])
    assert parts.rivals(overlapping)[0].tolist() == [-1, -1]
    assert parts.rivals(overlapping, reference=True)[0].tolist() == [2, 3]


def test_relevance_is_five_per_cent_of_the_logit():
    without = torch.tensor([[9.6, 9.4, 11.0, torch.nan], [-10.6, -10.4, -9.0, -20.0]])
    found = parts.background_independence(torch.tensor([10.0, -10.0]), without)
    torch.testing.assert_close(found, torch.tensor([2 / 3, 2 / 4], dtype=torch.float64))
    assert parts.background_independence(torch.ones(1), torch.full((1, 3), torch.nan)).isnan().all()


def test_an_image_that_its_parts_do_not_draw_is_refused():
    batch, net = creatures([0, 3], [2, 0]), Counting()
    others = [
        replace(batch, images=batch.images.flip(0)),  # another order than that of the ids
        replace(batch, images=(batch.images + 1) / 2),  # not normalised
        replace(batch, normalisation=UNIT),
        replace(batch, images=batch.images[:, :, :-1]),
    ]
    for other in others:
        with pytest.raises(ValueError, match="not what its parts draw"):
            parts.part_table(net, other)


def test_a_logit_that_is_not_a_number_is_no_answer():
    logits = torch.zeros(2, 4, 3)
    logits[:, :, 0] = 1  # class 0 whatever is drawn
    logits[1, 0] = torch.nan  # without parts
    everything, nothing = torch.ones(2, 1, 2, dtype=torch.bool), torch.zeros(2, 1, 2, dtype=torch.bool)
    assert parts.preservation(logits, everything)[:, 0].tolist() == [1, 1]
    torch.testing.assert_close(parts.preservation(logits, nothing)[:, 0], torch.tensor([1, torch.nan]).double(), equal_nan=True)
    torch.testing.assert_close(parts.deletion(logits, everything)[:, 0], torch.tensor([0, torch.nan]).double(), equal_nan=True)
    logits[0, 3] = torch.nan  # the whole creature
    targets = torch.zeros(2, dtype=torch.long)
    torch.testing.assert_close(parts.accuracy(logits, targets), torch.tensor([torch.nan, 1]).double(), equal_nan=True)
    logits[1, 3, 2] = -torch.inf  # a class that is ruled out
    for judge in (parts.accuracy, parts.top5):
        torch.testing.assert_close(judge(logits, targets), torch.tensor([torch.nan, 1]).double(), equal_nan=True)
    variants = torch.tensor([[0, 0], [0, 1], [1, 0]])
    assert parts.controlled_data(logits, targets, everything, variants).isnan()[:, 0].tolist() == [True, False]
    without = torch.tensor([[1.0, torch.nan], [1.0, 1.0]])
    found = parts.background_independence(torch.tensor([torch.nan, 1.0]), without)
    torch.testing.assert_close(found, torch.tensor([torch.nan, 1]).double(), equal_nan=True)
