import numpy as np
import pytest
import scipy.ndimage
import torch

from idsds.common.interventions import (
    BASELINES,
    all_deletions,
    baseline_images,
    delete_patches,
    grid_of,
    list_baselines,
    on_grid,
    patch_numbers,
    patch_size,
)
from idsds.common.registry import UnknownNameError


def images(batch=3, height=16, width=32):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("grid", [2, 4, 8])
@pytest.mark.parametrize("baseline", list_baselines())
def test_all_deletions_equal_a_loop_over_slices(grid, baseline):
    x = images()
    replacement = baseline_images(x, baseline, image_ids=["a", "b", "c"])
    found = all_deletions(x, replacement, grid)
    height, width = 16 // grid, 32 // grid
    for patch in range(grid * grid):
        row, column = divmod(patch, grid)
        expected = x.clone()
        area = (..., slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width))
        expected[area] = replacement[area]
        assert torch.equal(found[:, patch], expected)
        assert torch.equal(delete_patches(x, replacement, torch.full((3,), patch), grid), expected)


def test_each_image_loses_its_own_patch_and_minus_one_keeps_all():
    x = images()
    found = delete_patches(x, torch.zeros_like(x), torch.tensor([-1, 0, 15]), 4)
    assert torch.equal(found[0], x[0])
    assert (found[1, :, :4, :8] == 0).all()
    assert (found[2, :, 12:, 24:] == 0).all()
    assert [int((found[i] != x[i]).sum()) for i in range(3)] == [0, 3 * 4 * 8, 3 * 4 * 8]


def test_deletion_leaves_its_input_alone():
    x = images()
    before = x.clone()
    all_deletions(x, torch.zeros_like(x))
    assert torch.equal(x, before)


def test_blur_is_a_gaussian_with_zero_padding():
    x = images(2, 224, 224)
    position = np.arange(-25, 26)
    kernel = np.exp(-((position / (2 * 41.0)) ** 2))  # the reference's exponent
    kernel /= kernel.sum()
    assert kernel[25] ** 2 == pytest.approx(0.00040972, abs=1e-7)  # centre of the two-dimensional kernel
    expected = scipy.ndimage.convolve1d(x.double().numpy(), kernel, axis=2, mode="constant")
    expected = scipy.ndimage.convolve1d(expected, kernel, axis=3, mode="constant")
    # float32 sums of 51 numbers near 0.02
    np.testing.assert_allclose(baseline_images(x, "blur").numpy(), expected, atol=1e-6)


def test_uniform_is_keyed_by_image_and_in_its_range():
    x = images()
    found = baseline_images(x, "uniform", seed=1, image_ids=["a", "b", "a"])
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    assert found.abs().max() <= 1
    assert not torch.equal(found, baseline_images(x, "uniform", seed=2, image_ids=["a", "b", "a"]))


def test_unknown_baseline_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'zeros'"):
        baseline_images(images(), "zero")


@pytest.mark.parametrize("grid", [3, 5, 0, -4, 4.0, True, "4"])
def test_a_grid_that_does_not_fit_is_refused(grid):
    with pytest.raises(ValueError, match="grid"):
        patch_size(32, 32, grid)


def test_the_refusal_names_what_fits():
    with pytest.raises(ValueError, match=r"grid 5 does not divide images of 32 x 32.*\[2, 4, 8, 16\], nearest: 4"):
        patch_size(32, 32, 5)


def test_a_blur_has_a_kernel_and_a_sigma():
    """By scipy's Gaussian: the reference's sigma is the standard deviation over sqrt(2), and half the kernel is where it is cut off."""
    x = torch.randn(1, 2, 224, 224, dtype=torch.float64)
    found, deviation = baseline_images(x, "blur 25 4.5").numpy(), 4.5 * 2**0.5
    expected = scipy.ndimage.gaussian_filter(x.numpy(), (0, 0, deviation, deviation), mode="constant", radius=(0, 0, 12, 12))
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert torch.equal(baseline_images(x, "blur 51 41"), baseline_images(x, "blur"))
    assert not torch.equal(baseline_images(x, "blur 51 40"), baseline_images(x, "blur"))


@pytest.mark.parametrize("name", ["blur 24 4.5", "blur 1 4", "blur 25 0", "blur 25", "blur -25 4", "blur a b", "blur 25 4 3"])
def test_a_blur_out_of_range_is_named(name):
    with pytest.raises(ValueError, match=f"baseline '{name}': write 'blur KERNEL SIGMA'"):
        baseline_images(torch.zeros(1, 3, 32, 32), name)
    assert name not in BASELINES


@pytest.mark.parametrize(
    ("height", "width", "grid", "offset"), [(16, 32, 4, 0), (16, 32, 2, 3), (32, 16, 4, 2), (12, 12, 3, 1), (16, 16, 8, 0)]
)
def test_a_mask_of_patches_is_recognised_by_the_deletions_that_it_makes(height, width, grid, offset):
    """Its features deleted one at a time are the grid's deletions; with one pixel moved it is no grid."""
    x = images(1, height, width)
    deleted = all_deletions(x, torch.full_like(x, 9.0), grid, offset)[0, :, 0] == 9
    mask = 7 - 2 * deleted.float().argmax(0) - 100 * (~deleted.any(0)).float()
    assert grid_of(mask) == grid_of(mask.expand(2, 3, -1, -1)) == {"grid": grid, "offsets": [offset]}
    inside = deleted.any(0).nonzero()
    mask[tuple(inside[0])] = 50
    assert grid_of(mask) is None


def test_what_is_no_mask_of_patches():
    x, patches = images(1), patch_numbers(images(1), 4)
    for mask in (None, 3, patches[0], torch.zeros(16, 32), patches // 4, torch.stack([patches, patches + 1]), patches.float() * torch.nan):
        assert grid_of(mask) is None, mask
    assert grid_of(patches) == {"grid": 4, "offsets": [0]}
    assert on_grid(None, x.shape[1:]) is None


@pytest.mark.parametrize(
    ("window", "strides", "offsets"),
    [
        *[((3, 4, 8), (4, 8), [0]), ((3, 4, 8), (2, 4), [0]), ((3, 4, 8), (1, 1), [0, 1, 2, 3]), ((3, 4, 8), (1, 2), [0, 2])],
        *[((3, 4, 8), (3, 8), None), ((1, 4, 8), (4, 8), None), ((3, 4, 4), (4, 4), None), ((3, 16, 32), (1, 1), None)],
        *[((3, 5, 8), (1, 1), None), ((4, 8), (4, 8), None), ((3, 4, 8), (0, 8), None), ((3, 4, 8), (8,), None)],
        *[((3, 0, 8), (1, 1), None), ((3, 4.0, 8), (4, 8), None)],
    ],
)
def test_windows_are_patches_where_they_have_their_size_and_stand_on_each(window, strides, offsets):
    found = on_grid({"window": window, "strides": strides, "baseline": "blur"}, (3, 16, 32))
    assert found == (None if offsets is None else {"grid": 4, "offsets": offsets, "baseline": "blur"})
