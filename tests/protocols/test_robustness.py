from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import ndimage
from skimage.metrics import structural_similarity as skimage_ssim

from idsds.common.registry import UnknownNameError
from idsds.datasets import create_dataset
from idsds.datasets.synthetic import PatchModel
from idsds.evaluation.records import undefined_scores
from idsds.methods import create_method
from idsds.models import HALF, UNIT
from idsds.protocols import Batch
from idsds.protocols.robustness import (
    ANGLES,
    FILTERS,
    augmentation_robustness,
    augmentations,
    detail,
    local_normalisation,
    mighty_detail,
    probability_shifts,
    robustness,
    rotate,
)
from idsds.protocols.similarity import spearman, structural_similarity, top_intersection
from tests.methods.nets import images_of


@pytest.fixture
def batch(three):
    return three


@pytest.mark.parametrize("data_range", [None, 0.05, {"IxG": 0.02, "Grad-CAM": 0.1}])
def test_ssim_over_three_channels_is_that_of_scikit_image(net, batch, data_range):
    """IxG's map is image times gradient; the rank correlation still compares the sums over channels. A CAM has one channel."""
    turn = augmentations("rotations", HALF)["+15 degrees"][0]
    others = {"IxG": create_method("IxG", net), "Grad-CAM": create_method("Grad-CAM", net, layer="conv2")}
    prepared = {"shifts": torch.full((3, 4), torch.nan)}
    prepared["shifts"][:, 2] = 0  # +15 degrees alone counts
    found = augmentation_robustness(net, [*others.values()], batch, prepared, data_range=data_range, similarity="ssim_by_channel")
    summed = augmentation_robustness(net, [*others.values()], batch, prepared, data_range=data_range)

    def ixg(images):
        images = images.clone().requires_grad_()
        (slope,) = torch.autograd.grad(net(images).gather(1, batch.targets[:, None]).sum(), images)
        return (images * slope).detach()

    first, second = turn(ixg(batch.images)).numpy(), ixg(turn(batch.images)).numpy()
    for image, (a, b) in enumerate(zip(first, second, strict=True)):
        span = data_range["IxG"] if isinstance(data_range, dict) else data_range or max(a.max(), b.max()) - min(a.min(), b.min())
        look = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0}
        a, b = (np.pad(maps, ((0, 0), (5, 5), (5, 5)), mode="reflect") for maps in (a, b))
        assert found["IxG"]["ssim_each"][image, 2].item() == pytest.approx(skimage_ssim(a, b, data_range=span, **look), abs=1e-6)
    torch.testing.assert_close(found["IxG"]["spearman"], summed["IxG"]["spearman"])
    assert not torch.allclose(found["IxG"]["ssim"], summed["IxG"]["ssim"])
    torch.testing.assert_close(found["IxG"]["score"], found["IxG"]["ssim"])
    torch.testing.assert_close(found["Grad-CAM"], summed["Grad-CAM"], equal_nan=True)


@pytest.mark.parametrize("name", ["IxG abs", "IxG relu"])
def test_a_version_of_a_method_is_made_of_the_sum_over_channels(net, batch, name):
    """So its rank correlation does not depend on how SSIM is computed."""
    prepared = {"shifts": torch.zeros(3, 4)}
    each, summed = (augmentation_robustness(net, [create_method(name, net)], batch, prepared, similarity=of)[name]
                    for of in ("ssim_by_channel", "ssim"))  # fmt: skip
    torch.testing.assert_close(each, summed, equal_nan=True)


def test_settings_of_ssim_that_are_not_known(net, batch):
    prepared = probability_shifts(net, batch)
    for given, message in (
        ({"similarity": "ssim_by_channels"}, "Did you mean 'ssim_by_channel'"),
        ({"data_range": {"IXG": 1.0}}, "data_range 'IxG'.*'IXG'"),
    ):
        with pytest.raises(UnknownNameError, match=message):
            augmentation_robustness(net, [create_method("IxG", net)], batch, prepared, **given)


@pytest.mark.parametrize("angle", [-15.0, 30.0])
def test_rotation_is_that_of_scipy(angle):
    """Bilinear about the centre, zero outside; compared where the border does not matter."""
    image = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(21, 21)), 2)
    expected = ndimage.rotate(image, angle, reshape=False, order=1)
    found = rotate(torch.from_numpy(image)[None, None], angle)[0, 0].numpy()
    np.testing.assert_allclose(found[6:15, 6:15], expected[6:15, 6:15], atol=1e-6)


def test_detail_adds_what_the_blur_takes():
    image = np.random.default_rng(0).uniform(0.4, 0.6, size=(24, 30))
    blurred = ndimage.gaussian_filter(image, 1.0, mode="mirror", truncate=3)
    found = detail(torch.from_numpy(image).expand(1, 3, 24, 30))[0, 1]
    np.testing.assert_allclose(found, np.clip(2 * image - blurred, 0, 1), atol=1e-6)


@pytest.mark.parametrize("name", FILTERS)
def test_filters_keep_a_constant_grey_and_the_range(name):
    apply = FILTERS[name]
    grey = torch.full((2, 3, 16, 20), 0.5)
    torch.testing.assert_close(apply(grey), grey, atol=1e-4, rtol=0)  # torchvision's weights of the colours sum to 0.9999
    found = apply(images_of(2, 16, 20, dtype=torch.float32))
    assert found.min() >= 0
    assert found.max() <= 1


@pytest.mark.parametrize("apply", [detail, mighty_detail, FILTERS["sharpen"]])
def test_detail_raises_the_contrast_of_edges(apply):
    edge = torch.full((1, 3, 16, 20), 0.4)
    edge[..., 10:] = 0.6
    found = apply(edge)[..., 1:-1, :]  # torchvision's sharpening leaves the outermost pixels as they are
    assert found[..., 9].max() < 0.4
    assert found[..., 10].min() > 0.6


def test_chroma_and_local_normalisation():
    coloured = images_of(1, 16, 20, dtype=torch.float32) * 0.2 + 0.4
    spread = lambda x: (x.amax(dim=1) - x.amin(dim=1)).mean()  # noqa: E731
    assert spread(FILTERS["chroma_boost"](coloured)) == pytest.approx(1.5 * float(spread(coloured)), rel=1e-3)
    uneven = torch.linspace(0.1, 0.9, 20).expand(1, 3, 16, 20)
    assert local_normalisation(uneven).std() < uneven.std()


def test_columns_are_means_over_what_counts(batch, net):
    maps = {key: images_of(3, 16, 20, seed=seed)[:, :1] for seed, key in enumerate(("first", "second"))}
    originals = images_of(3, 16, 20, seed=7)[:, :1]
    turns = {"first": lambda m: m, "second": lambda m: m.flip(3)}
    shifts = torch.tensor([[0.01, 0.02], [0.01, 0.2], [0.3, 0.05]])
    found = robustness(originals, maps, turns, shifts, top_share=0.2, data_range=2.0)
    assert found["counted"].tolist() == [2, 1, 0]
    for name, measure in (
        ("ssim", lambda a, b: structural_similarity(a, b, 2.0)),
        ("spearman", spearman),
        ("top_intersection", lambda a, b: top_intersection(a, b, 0.2)),
    ):
        first, second = measure(originals, maps["first"]), measure(originals.flip(3), maps["second"])
        assert found[name][0] == pytest.approx(float(first[0] + second[0]) / 2)
        assert found[name][1] == pytest.approx(float(first[1]))
        assert found[name][2].isnan()
        assert found[f"{name}_each"].isnan().tolist() == [[False, False], [False, True], [True, True]]


@pytest.mark.parametrize(("group", "count"), [("rotations", len(ANGLES)), ("filters", len(FILTERS))])
def test_protocol_explains_the_augmented_images(batch, net, group, count):
    method = create_method("IxG", net)
    prepared = probability_shifts(net, batch, kind=group)
    chosen = augmentations(group, HALF)
    assert prepared["shifts"].shape == (3, count)
    found = augmentation_robustness(net, [method], batch, prepared, kind=group, threshold=1.0, similarity="spearman")["IxG"]
    probability = lambda x: net(x).softmax(dim=1).gather(1, batch.targets[:, None])[:, 0]  # noqa: E731
    for column, (apply, turn) in enumerate(chosen.values()):
        with torch.no_grad():
            shift = (probability(apply(batch.images)) - probability(batch.images)).abs()
        torch.testing.assert_close(prepared["shifts"][:, column], shift)
        expected = spearman(turn(method(batch.images, batch.targets)), method(apply(batch.images), batch.targets))
        torch.testing.assert_close(found["spearman_each"][:, column], expected)
    torch.testing.assert_close(found["score"], found["spearman_each"].mean(dim=1))


def test_a_filter_that_leaves_the_image_as_it_is_does_not_count(net, batch):
    """More colour to a grey image is the same image: its map is the same too, and passing that test is worth nothing."""
    grey = batch.images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    mixed = replace(batch, images=torch.cat([grey[:2], batch.images[2:]]))
    names = list(FILTERS)
    chroma = names.index("chroma_boost")
    prepared = probability_shifts(net, mixed, kind="filters")
    assert prepared["shifts"][:, chroma].isnan().tolist() == [True, True, False]
    assert not prepared["shifts"][:, [i for i in range(len(names)) if i != chroma]].isnan().any()
    found = augmentation_robustness(net, [create_method("IxG", net)], mixed, prepared, kind="filters", threshold=1.0)["IxG"]
    assert found["counted"].tolist() == [4, 4, 5]
    assert found["ssim_each"][:, chroma].isnan().tolist() == [True, True, False]
    others = found["ssim_each"][:2, [i for i in range(len(names)) if i != chroma]]
    torch.testing.assert_close(found["ssim"][:2], others.mean(dim=1))  # a free 1 would raise it


def test_a_map_that_turns_with_the_image_is_robust(net, batch):
    """The image's own first channel as its map."""
    turned = {f"{angle}": rotate(batch.images, angle)[:, :1] for angle in ANGLES}
    turns = {f"{angle}": lambda maps, angle=angle: rotate(maps, angle) for angle in ANGLES}
    found = robustness(batch.images[:, :1], turned, turns, torch.zeros(3, 4))
    for name in ("ssim", "spearman", "top_intersection"):
        np.testing.assert_allclose(found[name], 1, atol=1e-6)


def test_filters_work_in_the_units_of_the_pixels(batch):
    """The same picture, normalised in two ways, comes out as the same picture."""
    pixels = images_of(2, 16, 20)
    for name in FILTERS:
        half, unit = augmentations("filters", HALF)[name][0], augmentations("filters", UNIT)[name][0]
        torch.testing.assert_close(HALF.invert(half(HALF(pixels))), unit(pixels), atol=1e-6, rtol=0)


def test_images_that_no_rotation_leaves_alone_are_undefined_and_the_ledger_says_why(net, batch):
    """Evidence in stripes is gone once they are turned: every shift is far above the threshold, and so no image has a score."""
    model = PatchModel()
    data = create_dataset("synthetic", "test")
    images = torch.stack([data[index][0] for index in range(8)])
    stripes = Batch(images, torch.tensor(data.targets[:8]), data.image_ids[:8], data.normalisation)
    prepared = probability_shifts(model, stripes)
    assert prepared["shifts"].min() > 0.2
    assert probability_shifts(model, stripes, kind="filters")["shifts"].nan_to_num(0).max() < 0.05
    found = augmentation_robustness(model, [create_method("IxG", model)], stripes, prepared)["IxG"]
    assert found["counted"].tolist() == [0] * 8
    assert found["score"].isnan().all()
    row = {"model": "m", "method": "IxG", "seed": 0, "image_id": "a", "score": np.nan, "counted": 0}
    assert undefined_scores(pd.DataFrame([row])).why[0].startswith("every augmentation moves")


def test_mistakes_are_named(net, batch):
    with pytest.raises(ValueError, match="unknown source of filters 'gimp'"):
        probability_shifts(net, batch, kind="filters", filters="gimp")
    with pytest.raises(ValueError, match="unknown group of augmentations 'rotation'"):
        probability_shifts(net, batch, kind="rotation")
    with pytest.raises(ValueError, match="unknown similarity 'SSIM'"):
        augmentation_robustness(net, [create_method("IxG", net)], batch, {}, similarity="SSIM")
    unknown = Batch(batch.images, batch.targets, batch.image_ids)
    with pytest.raises(ValueError, match="normalisation of the images for ConvNet is unknown"):
        probability_shifts(net, unknown, kind="filters")


@pytest.mark.parametrize("threshold", [0, 5, float("nan")])
def test_a_threshold_is_a_change_of_probability(threshold):
    maps = images_of(1, 16, 20)[:, :1]
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\]"):
        robustness(maps, {"a": maps}, {"a": lambda maps: maps}, torch.zeros(1, 1), threshold=threshold)
