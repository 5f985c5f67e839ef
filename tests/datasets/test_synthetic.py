import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from idsds.datasets import collate, create_dataset
from idsds.datasets.synthetic import CLASSES, DISTRACTORS, EVIDENCE, OTHERS, PatchModel, stripes, synthetic_image
from idsds.methods import create_method
from idsds.protocols.single_deletion import deletion_drops, patch_sums

MODELS = {
    "linear": {},
    "saturated": {"saturation": 4.0},
    "products": {"interaction": 1.5},
    "saturated products": {"interaction": 1.5, "saturation": 4.0},
}


def batch_of(count, split="test"):
    data = create_dataset("synthetic", split)
    return next(iter(DataLoader(data, count, collate_fn=collate)))


@pytest.fixture(params=MODELS)
def model(request):
    return PatchModel(**MODELS[request.param]).double()


@pytest.fixture
def images():
    """Not square: two rows and four columns of patches."""
    return torch.rand(3, 3, 16, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_patterns_are_orthogonal():
    flat = stripes().flatten(1)
    torch.testing.assert_close(flat @ flat.T, 64 * torch.eye(6))
    assert not flat.sum(dim=1).any()


def test_evidence_is_where_it_is_said_to_be():
    image, strengths = synthetic_image(2, "an id")
    assert image.abs().max() <= 1
    assert (strengths[:, 2] > 0).sum() == EVIDENCE
    assert (strengths[:, 4:] > 0).sum() == DISTRACTORS
    assert (strengths[:, [0, 1, 3]] > 0).sum() == OTHERS
    assert (strengths > 0).sum(dim=1).max() == 1
    # What a patch holds, by an inner product of its own; the background contributes nothing.
    cells = image.reshape(3, 4, 8, 4, 8).permute(1, 3, 0, 2, 4).reshape(16, 3, 8, 8).mean(dim=1)
    found = torch.einsum("pyx,kyx->pk", cells, stripes()) / 64
    torch.testing.assert_close(found, strengths, atol=1e-6, rtol=0)


def test_importance_is_the_strength_of_the_evidence():
    images, targets, ids = batch_of(8)
    exact = PatchModel(gain=1.0).importance(images, targets)
    for row, target, image_id in zip(exact, targets.tolist(), ids, strict=True):
        torch.testing.assert_close(row, synthetic_image(target, image_id)[1][:, target], atol=1e-6, rtol=0)


def test_images_are_keyed_and_balanced():
    data = create_dataset("synthetic", "val")
    again = create_dataset("synthetic", "val")
    np.testing.assert_array_equal(data[7][0], again[7][0])
    assert not torch.equal(data[7][0], data[11][0])
    assert data.targets[7] == data.targets[11]
    assert np.bincount(data.targets).tolist() == [50, 50, 50, 50]
    assert data.classes == list(CLASSES)
    ids = [set(create_dataset("synthetic", split).image_ids) for split in ("train", "val", "test")]
    assert not set.intersection(*ids)


def test_models_are_right_about_the_labels():
    images, targets, _ = batch_of(100)
    for options in MODELS.values():
        assert (PatchModel(**options)(images).argmax(dim=1) == targets).float().mean() > 0.95


def test_deletion_drops_are_the_formula(model):
    images, targets, ids = batch_of(4)
    drops = deletion_drops(model, images.double(), targets, 4, image_ids=ids)
    torch.testing.assert_close(drops, model.importance(images.double(), targets), atol=1e-12, rtol=0)


def test_what_is_no_evidence_has_no_importance(model):
    """Exactly 0, and so is the drop: a rounding error would take a rank of its own."""
    images, targets, ids = batch_of(8)
    images = images.double()
    strengths = torch.stack(
        [synthetic_image(target, image_id)[1][:, target] for target, image_id in zip(targets.tolist(), ids, strict=True)]
    )
    drops = deletion_drops(model, images, targets, 4, image_ids=ids)
    for found in (model.importance(images, targets), drops):
        assert (found[strengths == 0] == 0).all()
        assert (found[strengths > 0] > 0).all()


def test_gradients_pass_through_the_steps():
    """Those of the formula without steps: a linear model's gradient is its weights."""
    model = PatchModel(gain=1.0).double()
    image = batch_of(1)[0].double().requires_grad_()
    (gradient,) = torch.autograd.grad(model(image)[0, 2], image)
    torch.testing.assert_close(gradient[0], model.evidence.weight[2].detach().repeat(1, 4, 4))


def test_shapley_values_are_the_mean_over_all_orders(model, images):
    """The definition, over all coalitions of eight patches: Shapley, 1953."""
    targets = torch.tensor([1, 0, 3])
    n, value = 8, {}
    for coalition in itertools.product([0, 1], repeat=n):
        mask = torch.tensor(coalition, dtype=torch.float64).view(1, 1, 2, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
        with torch.no_grad():
            value[coalition] = model(images * mask).gather(1, targets[:, None])[:, 0]
    expected = torch.zeros(3, n, dtype=torch.float64)
    for coalition, present in value.items():
        size = sum(coalition)
        for patch in range(n):
            if not coalition[patch]:
                weight = 1 / (n * len(list(itertools.combinations(range(n - 1), size))))
                joined = (*coalition[:patch], 1, *coalition[patch + 1 :])
                expected[:, patch] += weight * (value[joined] - present)
    torch.testing.assert_close(model.importance(images, targets, "shapley"), expected, atol=1e-12, rtol=0)


def test_exact_maps_sum_to_the_importance(model):
    images, targets, _ = batch_of(3)
    maps = model.exact_maps(images.double(), targets)
    assert maps.shape == (3, 1, 32, 32)
    torch.testing.assert_close(patch_sums(maps, 4), model.importance(images.double(), targets))


def test_integrated_gradients_find_it_where_input_times_gradient_does_not():
    """An additive model: IG is complete on each patch by itself; a saturated one misleads the gradient."""
    images, targets, _ = batch_of(3)
    images, model = images.double(), PatchModel(saturation=8.0).double()
    exact = model.importance(images, targets)
    # The steps of 2^-20 in the logits are what IG's smooth gradients do not see.
    torch.testing.assert_close(patch_sums(create_method("IG", model)(images, targets), 4), exact, atol=1e-5, rtol=0)
    assert not torch.allclose(patch_sums(create_method("IxG", model)(images, targets), 4), exact, atol=0.1)


def test_unknown_kind_is_named(model, images):
    with pytest.raises(ValueError, match=r"unknown kind of importance 'shaply'\. Did you mean 'shapley'"):
        model.importance(images, torch.tensor([0, 0, 0]), "shaply")
