"""Masks by hand, ties without a preference, and the areas between curves against numpy."""

import numpy as np
import pytest
import torch

from idsds.protocols.roar import (
    KINDS,
    kar_score,
    mask_images,
    mask_share,
    mask_shares,
    pixel_ranks,
    replace_pixels,
    replaced_pixels,
    replacement_mask,
    roar_score,
    unordered,
)


def test_ranks_and_masks_by_hand():
    """2 x 3 pixels, two images; signed: a negative attribution is the least important."""
    maps = torch.tensor([[[0.1, 0.9, -0.5], [0.3, 0.2, 0.0]], [[6.0, 5, 4], [3, 2, 1]]])[:, None]
    ranks = pixel_ranks(maps, ["a", "b"])
    assert ranks.tolist() == [[[[3, 0, 5], [1, 2, 4]]], [[[0, 1, 2], [3, 4, 5]]]]
    removed = replacement_mask(ranks, 1 / 3, "remove")
    assert removed[0, 0].tolist() == [[False, True, False], [True, False, False]]
    replaced = replacement_mask(ranks, 2 / 3, "keep")  # the top third is kept
    torch.testing.assert_close(~replaced, removed)
    images = torch.arange(36.0).view(2, 3, 2, 3)
    found = replace_pixels(images, ranks, 1 / 3, "remove", torch.tensor([-1.0, -2, -3]))
    assert found[0, :, 0, 1].tolist() == found[0, :, 1, 0].tolist() == [-1, -2, -3]
    kept = ~removed.expand_as(images)
    torch.testing.assert_close(found[kept], images[kept])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_masks_alone_are_black_and_white_and_show_what_is_replaced_or_the_rest(kind, share):
    ranks = pixel_ranks(torch.randn(4, 1, 4, 5), range(4))
    shown, replaced = mask_images(ranks, mask_share(share, kind)), replacement_mask(ranks, share, kind)
    assert shown.shape == (4, 3, 4, 5)
    torch.testing.assert_close(shown, (replaced if kind == "remove" else ~replaced).float().expand(4, 3, 4, 5))


def test_kar_asks_for_masks_of_the_complements():
    assert mask_shares([0.0, 0.1, 0.5], ["remove"]) == [0.0, 0.1, 0.5]
    assert mask_shares([0.0, 0.1, 0.5], ["keep"]) == [0.5, 0.9, 1.0]
    assert mask_shares([0.1, 0.3, 0.5, 0.7, 0.9], KINDS) == [0.1, 0.3, 0.5, 0.7, 0.9], "rounding makes no new ones"


@pytest.mark.parametrize("kind", KINDS)
def test_share_0_changes_nothing_and_share_1_leaves_nothing(kind):
    images, ranks, fill = torch.rand(2, 3, 4, 5), pixel_ranks(torch.rand(2, 1, 4, 5), "ab"), torch.tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(replace_pixels(images, ranks, 0, kind, fill), images)
    torch.testing.assert_close(replace_pixels(images, ranks, 1.0, kind, fill), fill[None, :, None, None].expand_as(images))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_same_number_of_pixels_goes_in_every_image(kind, share):
    maps = torch.randn(4, 1, 5, 7).round()  # many ties
    maps[1], maps[2, 0, 0, 0] = 0, torch.nan
    removed = replacement_mask(pixel_ranks(maps, range(4)), share, kind).flatten(1).sum(dim=1)
    assert removed.tolist() == [replaced_pixels(share, 35)] * 4


def test_numbers_of_pixels_round_half_upwards():
    assert [replaced_pixels(share, 5) for share in (0, 0.1, 0.3, 0.5, 0.9, 1)] == [0, 1, 2, 3, 5, 5]
    assert replaced_pixels(0.1, 1024) == 102


def test_ties_are_broken_by_the_image_and_prefer_no_place():
    maps = torch.zeros(400, 1, 3, 4)
    ids = [f"image {number}" for number in range(400)]
    ranks = pixel_ranks(maps, ids)
    assert all(sorted(of_one.flatten().tolist()) == list(range(12)) for of_one in ranks)
    # The mean rank of a pixel is 5.5; over 400 images its standard error is sqrt(143 / 12 / 400) = 0.17, and 4.5 of them are 0.78.
    assert (ranks.double().mean(dim=0) - 5.5).abs().max() < 0.78
    torch.testing.assert_close(pixel_ranks(maps[:2], ids[5:7]), ranks[5:7])  # whatever the batch
    assert not torch.equal(pixel_ranks(maps[:2], ids[:2], seed=1), ranks[:2])


def test_only_equal_values_change_places():
    maps = torch.tensor([[2.0, 1, 1, 1, 0]]).view(1, 1, 1, 5)
    for image_id in range(20):
        ranks = pixel_ranks(maps, [image_id]).flatten().tolist()
        assert (ranks[0], ranks[4]) == (0, 4)
        assert sorted(ranks[1:4]) == [1, 2, 3]


def test_maps_that_order_nothing_are_random_and_counted():
    maps = torch.rand(4, 1, 3, 4)
    maps[0, 0, 1, 1], maps[1, 0, 0, 0], maps[2] = torch.nan, torch.inf, 7.0
    undefined, constant = unordered(maps)
    assert undefined.tolist() == [True, True, False, False]
    assert constant.tolist() == [False, False, True, False]
    same = pixel_ranks(torch.zeros(1, 1, 3, 4), ["x"])
    for index in range(3):  # as a constant map of that image
        torch.testing.assert_close(pixel_ranks(maps[index : index + 1], ["x"]), same)


def test_areas_are_numpys_trapezoids():
    rng = np.random.default_rng(0)
    accuracy, control, shares = rng.random((3, 4)), rng.random((3, 4)), np.array([0.1, 0.3, 0.4, 0.9])
    expected = np.trapezoid(control - accuracy, shares, axis=1) / 0.8
    given = [torch.tensor(values) for values in (accuracy, control, shares)]
    np.testing.assert_allclose(roar_score(*given), expected, rtol=1e-12)
    np.testing.assert_allclose(kar_score(*given), -expected, rtol=1e-12)
    ideal = torch.zeros(2), torch.ones(2), torch.tensor([0.1, 0.9])
    assert roar_score(*ideal) == 1
    assert roar_score(ideal[1], ideal[1], ideal[2]) == 0
    assert roar_score(torch.tensor([torch.nan, 0]), *ideal[1:]).isnan()


def test_mistakes_are_named():
    ranks = torch.arange(6).view(1, 1, 2, 3)
    with pytest.raises(ValueError, match=r"share must be in \[0, 1\], not 10"):
        replacement_mask(ranks, 10)
    with pytest.raises(ValueError, match=r"unknown kind 'removed'\. Did you mean 'remove'"):
        replacement_mask(ranks, 0.5, "removed")
    with pytest.raises(ValueError, match=r"maps must be \(B, 1, H, W\), not \(2, 3, 4\)"):
        pixel_ranks(torch.rand(2, 3, 4), "ab")
    with pytest.raises(ValueError, match="one image id per map, not 3 for 2 maps"):
        pixel_ranks(torch.rand(2, 1, 3, 4), "abc")
    with pytest.raises(ValueError, match=r"shares must be at least two and ascend, not \[0.5\]"):
        roar_score(torch.ones(1), torch.ones(1), torch.tensor([0.5]))
    with pytest.raises(ValueError, match="2 shares for accuracies"):
        roar_score(torch.ones(3), torch.ones(3), torch.tensor([0.1, 0.9]))
