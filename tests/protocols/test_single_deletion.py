import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from idsds.common.interventions import baseline_images
from idsds.methods import create_method
from idsds.protocols import PROTOCOLS, Batch
from idsds.protocols.single_deletion import average_ranks, deletion_drops, deletion_table, patch_sums, rank_correlation, single_deletion
from tests.methods.nets import ConvNet, images_of, seeded
from tests.protocols.golden import GOLDEN, TARGETS, golden_images, golden_model

METHODS = ["IxG", "IG", "Grad-CAM", "IxG-abs", "IG-abs"]


@pytest.fixture
def net():
    return seeded(ConvNet, classes=4)


@pytest.fixture
def batch():
    return Batch(images_of(3, 8, 12) - 0.3, torch.tensor([0, 3, 1]), ["a", "b", "c"])


@pytest.mark.parametrize("baseline", ["zeros", "blur"])
def test_drops_agree_with_the_reference(baseline):
    """Sixteen logits of about 8 in float32, on another machine: 1e-4 is a thousandth of the drops' standard deviation."""
    golden = GOLDEN["single_deletion"][baseline]
    table = deletion_table(golden_model(), Batch(golden_images(1), TARGETS[:1], ["0"]), baseline=baseline)
    np.testing.assert_allclose(table["drops"], golden["drops"][:1], atol=1e-4)
    np.testing.assert_allclose(table["intact"], golden["output"][:1], atol=1e-4)
    assert table["prediction"].tolist() == TARGETS[:1].tolist()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("baseline", ["zeros", "blur"])
def test_correlations_agree_with_the_reference(baseline, method):
    golden = GOLDEN["single_deletion"][baseline]
    sums = torch.tensor(GOLDEN["single_deletion"]["zeros"][method]["attribution_sums"], dtype=torch.float64)
    found = rank_correlation(sums, torch.tensor(golden["drops"], dtype=torch.float64))
    np.testing.assert_allclose(found, golden[method]["spearman"], atol=1e-6)
    assert float(found.mean()) == pytest.approx(golden[method]["mean"], abs=1e-6)


@pytest.mark.parametrize("method", ["IxG", "Grad-CAM"])
def test_patch_sums_agree_with_the_reference(method):
    model = golden_model()
    sums = patch_sums(create_method(method, model)(golden_images(1), TARGETS[:1]))
    golden = np.array(GOLDEN["single_deletion"]["zeros"][method]["attribution_sums"][:1])
    if method == "Grad-CAM":  # the reference rescales each map to [0, 1]: an affine map of the sums
        assert np.corrcoef(sums, golden)[0, 1] > 1 - 1e-9
        assert rank_correlation(sums, torch.from_numpy(golden).float()) == pytest.approx(1)
    else:
        np.testing.assert_allclose(sums, golden, atol=2e-3 * np.abs(golden).max())


@pytest.mark.parametrize("quantity", ["logit", "probability"])
@pytest.mark.parametrize("baseline", ["zeros", "blur", "uniform"])
@pytest.mark.parametrize("grid", [2, 4])
@pytest.mark.parametrize("size", [1, 5, 64])
def test_drops_are_those_of_a_loop(net, batch, grid, baseline, quantity, size):
    images, targets, ids = batch.images, batch.targets, batch.image_ids
    drops = deletion_drops(net, images, targets, grid, baseline, quantity=quantity, seed=3, image_ids=ids, batch=size)
    replacement = baseline_images(images, baseline, seed=3, image_ids=ids)
    height, width = 8 // grid, 12 // grid
    with torch.no_grad():
        for b, target in enumerate(targets.tolist()):
            for patch in range(grid * grid):
                row, column = divmod(patch, grid)
                hole = images[b : b + 1].clone()
                where = (..., slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width))
                hole[where] = replacement[b : b + 1][where]
                both = net(torch.cat([images[b : b + 1], hole]))
                both = both.softmax(dim=1) if quantity == "probability" else both
                assert drops[b, patch] == pytest.approx(float(both[0, target] - both[1, target]), abs=1e-12)


def test_a_moved_grid_has_the_patches_that_are_whole(net, batch):
    """Of 4 x 4 patches of 2 x 3 pixels, moved by 1: 3 x 3 patches, as a loop over them has it, in drops and sums alike."""
    images, targets = batch.images, batch.targets
    drops, maps = deletion_drops(net, images, targets, 4, offset=1), images[:, :1]
    sums = patch_sums(maps, 4, offset=1)
    assert drops.shape == sums.shape == (3, 9)
    with torch.no_grad():
        for patch in range(9):
            row, column = divmod(patch, 3)
            where = (..., slice(1 + row * 2, 3 + row * 2), slice(1 + column * 3, 4 + column * 3))
            hole = images.clone()
            hole[where] = 0
            torch.testing.assert_close(sums[:, patch], maps[where].sum(dim=(1, 2, 3)))
            change = (net(images) - net(hole)).gather(1, targets[:, None])[:, 0]
            torch.testing.assert_close(drops[:, patch], change)
    for offset, message in ((2, "below the side of a patch"), (-1, "whole number of at least 0, not -1"), (0.5, "not 0.5")):
        with pytest.raises(ValueError, match=message):
            deletion_drops(net, images, targets, 4, offset=offset)


@pytest.mark.parametrize("grid", [1, 2, 4])
def test_patch_sums_are_means_of_a_pooling(grid):
    maps = images_of(2, 8, 12)[:, :1]
    pooled = nn.functional.adaptive_avg_pool2d(maps, grid) * (96 / grid**2)
    torch.testing.assert_close(patch_sums(maps, grid), pooled.flatten(1))
    torch.testing.assert_close(patch_sums(maps[:, 0], grid), pooled.flatten(1))


def test_uniform_baseline_is_keyed_by_the_image(net, batch):
    first = deletion_drops(net, batch.images, batch.targets, 4, "uniform", image_ids=["a", "b", "c"])
    order = torch.tensor([2, 0])
    again = deletion_drops(net, batch.images[order], batch.targets[order], 4, "uniform", image_ids=["c", "a"])
    other = deletion_drops(net, batch.images, batch.targets, 4, "uniform", image_ids=["a", "b", "c"], seed=1)
    torch.testing.assert_close(again, first[order])
    assert not torch.allclose(other, first)


def _rows():
    rng = np.random.default_rng(0)
    continuous, tied = rng.normal(size=(6, 16)), rng.integers(0, 4, size=(6, 16)).astype(float)
    return {"continuous": (continuous, rng.normal(size=(6, 16))), "tied": (tied, continuous), "both tied": (tied, tied[::-1].copy())}


@pytest.mark.parametrize("kind", ["continuous", "tied", "both tied"])
def test_rank_correlation_is_scipys(kind):
    first, second = _rows()[kind]
    expected = [stats.spearmanr(a, b).statistic for a, b in zip(first, second, strict=True)]
    np.testing.assert_allclose(rank_correlation(torch.from_numpy(first), torch.from_numpy(second)), expected, atol=1e-12)


@pytest.mark.parametrize("infinite", ["nan", "rank"])
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value, side, infinite):
    pair = [array.copy() for array in _rows()["continuous"]]
    pair[side][1, 3] = value
    found = rank_correlation(*map(torch.from_numpy, pair), infinite=infinite).numpy()
    if np.isnan(value) or infinite == "nan":
        assert np.isnan(found).tolist() == [False, True, False, False, False, False]
    else:
        expected = [stats.spearmanr(a, b).statistic for a, b in zip(*pair, strict=True)]
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_constant_rows_are_undefined():
    sums = torch.stack([torch.zeros(16), torch.arange(16.0)])
    drops = torch.arange(32.0).view(2, 16)
    found = rank_correlation(sums, drops)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy warns of the constant row
        assert np.isnan(stats.spearmanr(sums[0], drops[0]).statistic)
    assert found.isnan().tolist() == [True, False]
    assert found[1] == pytest.approx(1)


def test_protocol_stores_scores_and_sums(net, batch):
    methods = [create_method(name, net) for name in ("IxG", "IxG abs", "Random")]
    prepared = deletion_table(net, batch, grid=4)
    columns = single_deletion(net, methods, batch, prepared, grid=4)
    for method in methods:
        sums = patch_sums(method(batch.images, batch.targets, batch.image_ids), 4)
        torch.testing.assert_close(columns[method.name]["patch_sums"], sums)
        expected = [stats.spearmanr(a, b).statistic for a, b in zip(sums, prepared["drops"], strict=True)]
        np.testing.assert_allclose(columns[method.name]["score"], expected, atol=1e-12)
    assert PROTOCOLS["idsds"].in_domain
    assert not PROTOCOLS["single_deletion"].in_domain


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, b: deletion_drops(net, b.images, b.targets, 5), "grid 5 does not divide images of 8 x 12"),
        (lambda net, b: deletion_drops(net, b.images, b.targets, 4, "blurr"), "unknown baseline 'blurr'. Did you mean 'blur'"),
        (lambda net, b: deletion_drops(net, b.images, b.targets, quantity="prob"), "unknown quantity 'prob'"),
        (lambda net, b: deletion_drops(net, b.images, b.targets[:2]), "3 images with 2 targets"),
        (lambda net, b: patch_sums(b.images), "maps must be"),
        (lambda net, b: rank_correlation(b.targets[None], b.targets[None, :2]), "one shape"),
        (lambda net, b: rank_correlation(b.targets[None], b.targets[None], infinite="drop"), "unknown treatment of infinite values 'drop'"),
    ],
)
def test_mistakes_are_named(net, batch, call, message):
    with pytest.raises(ValueError, match=message):
        call(net, batch)


@pytest.mark.parametrize("size", [2, 64, 65, 300])
@pytest.mark.parametrize("levels", [1, 7, 10**6])
def test_ranks_are_scipys_for_short_and_long_rows(size, levels):
    """Rows up to a length are ranked by searching and longer ones by a sort; ties, infinities and both zeros."""
    values = torch.from_numpy(np.random.default_rng(size).integers(-levels, levels, (5, size))).float()
    values[0, :2] = torch.tensor([torch.inf, -0.0])
    np.testing.assert_array_equal(average_ranks(values), stats.rankdata(values.numpy(), axis=1))
    np.testing.assert_array_equal(average_ranks(values.T.contiguous().T), stats.rankdata(values.numpy(), axis=1))
