import numpy as np
import pytest
import torch
from scipy import stats
from skimage.metrics import structural_similarity as skimage_ssim

from idsds.protocols.similarity import spearman, structural_similarity, top_intersection
from tests.methods.nets import images_of


@pytest.fixture
def pair():
    first = images_of(3, 16, 24)[:, :1] * 4 - 2
    return first, first + 0.5 * images_of(3, 16, 24, seed=1)[:, :1]


def test_spearman_is_scipys(pair):
    expected = [stats.spearmanr(a.ravel(), b.ravel()).statistic for a, b in zip(*pair, strict=True)]
    np.testing.assert_allclose(spearman(*pair), expected, atol=1e-12)


@pytest.mark.parametrize("data_range", [None, 5.0])
def test_ssim_is_that_of_scikit_image(pair, data_range):
    """Scikit-image leaves out a border of 5 pixels; torchmetrics mirrors the image there. With the mirror drawn by hand they agree."""
    expected = []
    for a, b in zip(*(np.pad(maps[:, 0], ((0, 0), (5, 5), (5, 5)), mode="reflect") for maps in pair), strict=True):
        span = data_range or max(a.max(), b.max()) - min(a.min(), b.min())
        expected.append(skimage_ssim(a, b, data_range=span, gaussian_weights=True, sigma=1.5, use_sample_covariance=False))
    np.testing.assert_allclose(structural_similarity(*pair, data_range=data_range), expected, atol=1e-6)


def test_ssim_of_three_channels_is_that_of_scikit_image():
    first, second = (np.pad(images_of(1, 16, 24, seed=seed), ((0, 0), (0, 0), (5, 5), (5, 5)), mode="reflect")[0] for seed in (0, 1))
    look = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0}
    expected = skimage_ssim(first, second, data_range=2.0, **look)
    found = structural_similarity(images_of(1, 16, 24), images_of(1, 16, 24, seed=1), data_range=2.0)
    np.testing.assert_allclose(found, [expected], atol=1e-6)


def test_top_intersection_counts_pixels(pair):
    k = round(0.1 * 16 * 24)
    expected = []
    for a, b in zip(*(maps.flatten(1).numpy() for maps in pair), strict=True):
        expected.append(len(set(np.argsort(-a)[:k]) & set(np.argsort(-b)[:k])) / k)
    np.testing.assert_allclose(top_intersection(*pair, share=0.1), expected)


def test_sparse_maps_gain_nothing_by_their_zeros():
    """Two of four places are taken by values above zero; the other two are shared by 96 - 2 equal pixels."""
    first, second = torch.zeros(2, 1, 1, 8, 12, dtype=torch.float64)
    first[0, 0, 0, :2] = torch.tensor([2.0, 1.0])
    second[0, 0, 5, :2] = torch.tensor([2.0, 1.0])
    rest = 2 / 94
    assert top_intersection(first, second, share=4 / 96) == pytest.approx((4 * rest + 92 * rest**2) / 4)
    constant = torch.ones(1, 1, 8, 12, dtype=torch.float64)
    assert top_intersection(constant, constant, share=0.25) == pytest.approx(0.25)  # chance


@pytest.mark.parametrize("measure", [spearman, structural_similarity, top_intersection])
def test_every_similarity(measure, pair):
    np.testing.assert_allclose(measure(pair[0], pair[0]), 1, atol=1e-12)
    torch.testing.assert_close(measure(*pair), measure(*pair[::-1]))
    torch.testing.assert_close(measure(*pair), torch.cat([measure(a[None], b[None]) for a, b in zip(*pair, strict=True)]))
    broken = pair[0].clone()
    broken[1, 0, 3, 4] = torch.nan
    assert measure(broken, pair[1]).isnan().tolist() == [False, True, False]
    with pytest.raises(ValueError, match=r"maps must have one shape \(B, [1C], H, W\)"):
        measure(pair[0], pair[1][:, :, 1:])


def test_constant_maps():
    constant, other = torch.ones(1, 1, 16, 24), torch.arange(384.0).view(1, 1, 16, 24)
    assert spearman(constant, other).isnan()
    assert structural_similarity(constant, constant).isnan()
    assert structural_similarity(constant, constant, data_range=1.0) == pytest.approx(1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: structural_similarity(a, b, data_range=0), "data_range must be above 0, not 0"),
        (lambda a, b: structural_similarity(a[..., :8], b[..., :8]), "window of 11 pixels; the maps have 16 x 8"),
        (lambda a, b: top_intersection(a, b, share=5), r"share must be in \(0, 1\], not 5"),
    ],
)
def test_mistakes_are_named(pair, call, message):
    with pytest.raises(ValueError, match=message):
        call(*pair)
