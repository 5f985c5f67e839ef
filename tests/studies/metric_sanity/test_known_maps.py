import numpy as np
import pytest
import torch

from idsds.datasets.synthetic import PatchModel
from idsds.protocols import PROTOCOLS
from idsds.protocols.single_deletion import patch_sums, rank_correlation
from idsds.studies.metric_sanity.known_maps import (
    KnownMap,
    interfering_model,
    known_models,
    known_scores,
    model_shift,
    noisy_maps,
    properties,
)
from tests.datasets.test_synthetic import batch_of
from tests.methods.nets import ConvNet


@pytest.fixture
def model():
    return PatchModel(interaction=1.0, saturation=2.0).double()


def test_known_maps(model):
    images, targets, ids = batch_of(4)
    images = images.double()
    exact = patch_sums(KnownMap(model)(images, targets, ids), 4) / 64
    wanted = model.importance(images, targets) / 64
    torch.testing.assert_close(exact, wanted)
    one, two, noise = (patch_sums(KnownMap(model, level)(images, targets, ids), 4) / 64 for level in (1.0, 2.0, torch.inf))
    mean = wanted.mean(dim=1, keepdim=True)
    drawn = noise - mean  # one draw for all levels, of the exact map's spread
    torch.testing.assert_close(one - mean, (wanted - mean + drawn) / 2**0.5)
    torch.testing.assert_close(two - mean, (wanted - mean + 2 * drawn) / 5**0.5)
    assert 0.5 < float(drawn.std() / (wanted - mean).std()) < 2
    again = patch_sums(KnownMap(model, 1.0)(images[2:], targets[2:], ids[2:]), 4) / 64
    torch.testing.assert_close(again, one[2:])
    assert [KnownMap(model, level).name for level in (0, 0.5, torch.inf)] == ["exact", "exact + 0.5 noise", "noise"]


def test_properties_by_hand():
    scores = torch.tensor([[4.0, 3, 2, 1], [4, 3, 2, 1], [4, 5, 2, 3], [4, 3, torch.nan, 1]])
    found = properties(scores, True, (0, 1, 2))
    assert found["exact_first"] == 0.5  # the third has a better one, the fourth an undefined one
    assert found["random_last"] == 0.5
    assert found["ordering"] == pytest.approx((1 + 1 + 0.6) / 3)  # ranks 3 4 1 2 against 4 3 2 1: 1 - 6 * 4 / 60
    # Level 1 loses 1, 1, -1, 1: mean 0.5, standard error 0.5; level 2 loses 2, 2, 2, without a spread.
    assert found["resolution"] == 2
    losses = np.array([3, 3, 1, 3])
    assert found["separation"] == pytest.approx(losses.mean() / losses.std(ddof=1))
    assert found["undefined"] == 1 / 16
    assert properties(-scores, False, (0, 1, 2)) == pytest.approx(found)
    nothing = properties(torch.ones(4, 4), True, (0, 1, 2))
    assert np.isnan(nothing["resolution"])
    assert nothing["exact_first"] == 0


@pytest.mark.parametrize("name", known_models())
def test_the_exact_map_scores_one(name):
    """Its patch sums are the drops, ties included: ten of sixteen patches without evidence have importance 0 and drop 0."""
    model = known_models()[name]
    scores = known_scores(PROTOCOLS["single_deletion"], model, noisy_maps(model, (0.0, 0.25)), 12, 0, {})
    assert scores[:, 0].tolist() == pytest.approx([1] * 12, abs=1e-9)
    assert (scores[:, 1] < 1).all()


def test_models_to_compare_label_every_image_alike():
    images, targets, _ = batch_of(40)
    for model in known_models().values():
        assert (model(images.double()).argmax(dim=1) == targets).all()


def test_model_shift_by_hand():
    scores = torch.tensor([[4.0, 1.0], [2.0, 1.0]])  # means 3 and 1
    assert model_shift([scores, scores]) == 0
    assert model_shift([scores, scores + 1]) == 0.5  # every map moves by 1; exact and noise are 2 apart
    assert model_shift([scores, torch.tensor([[3.0, torch.nan], [3.0, 1.0]])]) == 0
    assert model_shift([scores, 3 * scores]) == pytest.approx(((9 - 3) + (3 - 1)) / 2 / ((2 + 6) / 2))
    assert np.isnan(model_shift([scores]))


def test_a_gradient_is_exact_pixel_by_pixel_and_a_scale_is_a_factor():
    model, (images, targets, ids) = PatchModel(saturation=2.0).double(), batch_of(3)
    images = images.double().requires_grad_()
    (wanted,) = torch.autograd.grad(model(images).gather(1, targets[:, None]).sum(), images)
    found = KnownMap(model, importance="gradient")(images.detach(), targets, ids)
    torch.testing.assert_close(found, wanted.sum(dim=1, keepdim=True))
    noisy = KnownMap(model, 1.0, importance="gradient")(images.detach(), targets, ids)
    assert (noisy != noisy[..., :1, :1]).any()
    assert 0.5 < float(torch.corrcoef(torch.stack([found.flatten(), noisy.flatten()]))[0, 1]) < 0.9  # 1 / sqrt(2) in expectation
    threefold = KnownMap(model, 1.0, importance="gradient", scale=3.0)
    torch.testing.assert_close(threefold(images.detach(), targets, ids), 3 * noisy)
    assert threefold.name == "exact + 1 noise x3"


def test_shapley_values_and_drops_differ_where_neighbours_interfere():
    images, targets, _ = batch_of(40)
    model = interfering_model()
    drops, shapley = (model.importance(images.double(), targets, kind) for kind in ("deletion", "shapley"))
    correlation = rank_correlation(drops, shapley)
    assert 0.8 < correlation.mean() < 0.95
    # By the model's formula: 4 (e - 2 e e') alone, and half of the product in a Shapley value.
    strengths = model.evidence(images.double())[torch.arange(40), targets]
    partner = strengths.unflatten(2, (-1, 2)).flip(3).flatten(2)
    torch.testing.assert_close(shapley, 4 * (strengths - strengths * partner).flatten(1), atol=1e-5, rtol=0)
    torch.testing.assert_close(drops, 4 * (strengths - 2 * strengths * partner).flatten(1), atol=1e-5, rtol=0)


def test_a_map_that_noise_beats_is_counted():
    better = torch.tensor([[1.0, 2.0, 0.0]]).repeat(10, 1) + 0.01 * torch.arange(30.0).view(10, 3).sin()
    found = properties(better, True, (0, 1))
    assert found["beaten"] == 1
    assert found["resolution"] == np.inf
    assert properties(-better, False, (0, 1))["beaten"] == 1
    assert properties(better[:, [1, 0, 2]], True, (0, 1))["beaten"] == 0


def test_mistakes_are_named(model):
    with pytest.raises(TypeError, match="known for a PatchModel, not for a ConvNet"):
        KnownMap(ConvNet())
    with pytest.raises(ValueError, match=r"unknown importance 'gradients'. Did you mean 'gradient'"):
        KnownMap(model, importance="gradients")
    with pytest.raises(ValueError, match="level must be at least 0, not -1"):
        KnownMap(model, -1)
    with pytest.raises(ValueError, match=r"levels must rise from 0, not \[1, 0\]"):
        properties(torch.ones(2, 3), True, (1, 0))
    with pytest.raises(ValueError, match=r"scores must be \(B, 3\)"):
        properties(torch.ones(2, 4), True, (0, 1))
