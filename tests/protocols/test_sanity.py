import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from idsds.common.randomness import Draws
from idsds.methods import OwnMethod, create_method
from idsds.protocols import PROTOCOLS, Batch, sanity
from idsds.protocols.base import on_model
from idsds.protocols.sanity import histogram_entropy, layers_from_the_top, maps_on, randomise, randomised_models, sanity_check
from idsds.protocols.similarity import spearman, structural_similarity
from tests.methods.nets import ConvNet, Linear, images_of, seeded
from tests.protocols.scoring import IDS, TARGETS, methods_of, score


@pytest.fixture
def net():
    return seeded(ConvNet, classes=4)


@pytest.fixture
def batch():
    return Batch(images_of(3, 16, 20) * 2 - 1, torch.tensor([0, 3, 1]), ["a", "b", "c"])


def changed_layers(net, other):
    before, after = net.state_dict(), other.state_dict()
    return {key.rpartition(".")[0] for key in before if not torch.equal(before[key], after[key])}


def test_layers_come_from_the_output(net):
    assert layers_from_the_top(net) == ["fc", "conv2", "conv1"]


def test_cascading_and_independent(net):
    cascade = [changed_layers(net, other) for other in randomised_models(net, "cascading", 3)]
    assert cascade == [{"fc"}, {"fc", "conv2"}, {"fc", "conv2", "conv1"}]
    alone = [changed_layers(net, other) for other in randomised_models(net, "independent", 3)]
    assert alone == [{"fc"}, {"conv2"}, {"conv1"}]


def test_new_parameters_are_keyed_and_of_the_old_size(net):
    first, again, other = (randomise(net, ["conv2"], seed) for seed in (0, 0, 1))
    torch.testing.assert_close(first.conv2.weight, again.conv2.weight)
    assert not torch.equal(first.conv2.weight, other.conv2.weight)
    assert first.conv2.weight.std().item() == pytest.approx(net.conv2.weight.std().item(), rel=0.15)
    assert abs(np.corrcoef(first.conv2.weight.detach().ravel(), net.conv2.weight.detach().ravel())[0, 1]) < 0.2


@pytest.mark.parametrize("mode", ["cascading", "independent"])
@pytest.mark.parametrize("absolute", [False, True])
def test_scores_are_correlations_with_maps_of_the_randomised_models(net, batch, mode, absolute):
    methods = [create_method(name, net) for name in ("IxG", "Edges", "Random")]
    state = {key: value.clone() for key, value in net.state_dict().items()}
    columns = sanity_check(net, methods, batch, {}, mode=mode, depths=2, absolute=absolute)
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, state[key])
    for depth, other in enumerate(randomised_models(net, mode, 2)):
        maps = [create_method("IxG", model)(batch.images, batch.targets).flatten(1) for model in (net, other)]
        maps = [found.abs() for found in maps] if absolute else maps
        expected = [stats.spearmanr(a, b).statistic for a, b in zip(*maps, strict=True)]
        np.testing.assert_allclose(columns["IxG"]["spearman_by_depth"][:, depth], expected, atol=1e-12)
    torch.testing.assert_close(columns["IxG"]["score"], columns["IxG"]["spearman_by_depth"].abs().mean(dim=1))
    for control in ("Edges", "Random"):  # they do not look at the model, and fail the check
        np.testing.assert_allclose(columns[control]["score"], 1, atol=1e-12)
        np.testing.assert_allclose(columns[control]["ssim_by_depth"], 1, atol=1e-12)
    assert (columns["IxG"]["score"] < 0.9).all()


@pytest.mark.parametrize("absolute", [False, True])
def test_ssim_over_three_channels_with_its_data_range(net, batch, absolute):
    """Only SSIM changes: the correlations are those of the maps summed over channels."""
    methods = [create_method("IxG", net)]
    found = sanity_check(net, methods, batch, {}, depths=1, absolute=absolute, channels="each", data_range={"IxG": 0.5})["IxG"]
    summed = sanity_check(net, methods, batch, {}, depths=1, absolute=absolute)["IxG"]
    (other,) = randomised_models(net, depths=1)
    first, second = (sanity.maps_on(model, methods, batch, "each")["IxG"] for model in (net, other))
    assert first.shape == batch.images.shape
    pair = (first.abs(), second.abs()) if absolute else (first, second)
    torch.testing.assert_close(found["ssim_by_depth"][:, 0], structural_similarity(*pair, 0.5))
    for name in ("score", "spearman_by_depth", "absolute_by_depth"):
        torch.testing.assert_close(found[name], summed[name])
    assert not torch.allclose(found["ssim_by_depth"], summed["ssim_by_depth"])


def test_what_is_not_asked_for_is_not_computed(net, batch, monkeypatch):
    methods = [create_method("IxG", net)]
    everything = sanity_check(net, methods, batch, {}, depths=2)["IxG"]
    monkeypatch.setattr(sanity, "structural_similarity", None)
    few = sanity_check(net, methods, batch, {}, depths=2, ssim=False)["IxG"]
    assert list(few) == ["score", "spearman_by_depth", "absolute_by_depth"]
    for name, values in few.items():
        torch.testing.assert_close(values, everything[name], rtol=0, atol=0)


def test_randomised_models_share_no_tensor_that_changes(net):
    other = randomise(net, ["fc"])
    assert other.conv1.weight is net.conv1.weight
    assert other.fc.weight is not net.fc.weight


def test_a_flipped_sign_is_no_change(net, batch, monkeypatch):
    """A net whose last layer is negated turns every gradient around: its maps show the same pixels."""

    def negated(model, *_):
        other = copy.deepcopy(model)
        other.fc.weight.data.neg_()
        return iter([other])

    monkeypatch.setattr(sanity, "randomised_models", negated)
    found = sanity_check(net, [create_method("Gradient", net)], batch, {}, depths=1)["Gradient"]
    np.testing.assert_allclose(found["spearman_by_depth"], -1, atol=1e-12)
    np.testing.assert_allclose(found["score"], 1, atol=1e-12)


def test_a_method_that_was_used_before_is_moved(net, batch):
    method, other = create_method("IxG", net), randomise(net, ["conv1"])
    before = method(batch.images, batch.targets)
    moved = on_model(method, other)(batch.images, batch.targets)
    torch.testing.assert_close(moved, create_method("IxG", other)(batch.images, batch.targets))
    torch.testing.assert_close(method(batch.images, batch.targets), before)


def test_mistakes_are_named(net, batch):
    own = OwnMethod("mine", lambda images, targets: images, net)
    with pytest.raises(ValueError, match="method 'mine' cannot be moved to another net"):
        sanity_check(net, [own], batch, {})
    with pytest.raises(ValueError, match=r"unknown mode 'cascade'\. Did you mean 'cascading'"):
        list(randomised_models(net, "cascade"))
    with pytest.raises(ValueError, match="depths must be a whole number of at least 1, not 0"):
        list(randomised_models(net, depths=0))
    with pytest.raises(ValueError, match="no parameters to randomise"):
        list(randomised_models(nn.Flatten()))


class TestRandomisation:
    @pytest.fixture
    def batch(self):
        return Batch(images_of(3, 12, 16) - 0.4, TARGETS, IDS)

    def test_smooth_is_the_check_on_averaged_maps(self, batch):
        net = seeded(ConvNet, classes=3)
        found = score("smooth_mprt", net, methods_of(net, "Gradient", "Edges"), batch, depths=2, samples=3, sigma=1e-9)
        plain = score("sanity_check", net, methods_of(net, "Gradient", "Edges"), batch, depths=2)
        for name in ("Gradient", "Edges"):  # with next to no noise the average is the map itself
            torch.testing.assert_close(found[name]["spearman_by_depth"], plain[name]["spearman_by_depth"], atol=1e-3, rtol=0)
        noisy = score("smooth_mprt", net, methods_of(net, "Edges"), batch, depths=2, samples=3)["Edges"]["score"]
        torch.testing.assert_close(noisy, torch.ones_like(noisy))  # looks at no net

    def test_smooth_averages_over_copies(self, batch):
        class Quadratic(nn.Module):
            def __init__(self):
                super().__init__()
                self.weight = nn.Parameter(torch.linspace(-1, 1, 3 * 12 * 16, dtype=torch.float64).sin().view(3, 12, 16))

            def forward(self, x):
                return torch.stack([(self.weight * x * abs(x)).sum(dim=(1, 2, 3)), x.mean(dim=(1, 2, 3))], dim=1)

        net = Quadratic()
        batch = replace(batch, targets=torch.zeros(3, dtype=torch.long))
        found = score("smooth_mprt", net, methods_of(net, "Gradient"), batch, depths=1, samples=4)["Gradient"]["score"]
        (other,) = randomised_models(net, depths=1)
        spans = batch.images.flatten(1).amax(dim=1) - batch.images.flatten(1).amin(dim=1)
        copies = batch.images[:, None] + 0.2 * spans.view(-1, 1, 1, 1, 1) * Draws(0, "smooth mprt", batch.images, IDS).normal(4)
        means = [(2 * one.weight * copies.abs()).mean(dim=1).sum(dim=1, keepdim=True).detach() for one in (net, other)]
        torch.testing.assert_close(found, spearman(*means).abs())

    def test_efficient_compares_entropies(self, batch):
        net = seeded(ConvNet, classes=3)
        found = score("efficient_mprt", net, methods_of(net, "Gradient", "Edges"), batch, bins=20)
        (other,) = randomised_models(net, depths=1)
        maps = [maps_on(one, methods_of(net, "Gradient"), batch)["Gradient"] for one in (net, other)]
        first, last = (np.array([stats.entropy(np.histogram(each.flatten(), bins=20)[0]) for each in some]) for some in maps)
        np.testing.assert_allclose(found["Gradient"]["score"], (last - first) / first)
        assert (found["Edges"]["score"] == 0).all()
        assert histogram_entropy(torch.ones(1, 1, 4, 4), 10) == 0
        assert on_model(create_method("Gradient", net), other).model is other

    def test_random_logit_explains_another_class(self, batch):
        net = seeded(Linear, 12, 16)
        methods = methods_of(net, "IxG", "Edges")
        prepared = PROTOCOLS["random_logit"].prepare(net, batch, seed=0)
        assert (prepared["other"] != TARGETS).all()
        assert set(prepared["other"].tolist()) <= {0, 1, 2}
        found = PROTOCOLS["random_logit"].function(net, methods, batch, prepared)
        maps = [
            (net.fc.weight[classes].view(3, 3, 12, 16) * batch.images).sum(dim=1, keepdim=True) for classes in (TARGETS, prepared["other"])
        ]
        torch.testing.assert_close(found["IxG"]["score"], structural_similarity(*maps))
        torch.testing.assert_close(found["Edges"]["score"], torch.ones_like(found["Edges"]["score"]))
        with pytest.raises(ValueError, match="the model has one"):
            PROTOCOLS["random_logit"].prepare(seeded(Linear, 12, 16, 1), batch)
