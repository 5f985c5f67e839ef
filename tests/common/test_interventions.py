import numpy as np
import pytest
import scipy.ndimage
import torch

from idsds.common.interventions import BASELINES, all_deletions, baseline_images, delete_patches, list_baselines, patch_size
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
