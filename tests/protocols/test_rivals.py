"""The rivals of IDSDS against formulas: nets that are linear in the pixels or patches, and systems solved in full."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from idsds.common.hashing import own_digest
from idsds.common.randomness import Draws
from idsds.datasets import create_dataset
from idsds.datasets.synthetic import PatchModel
from idsds.methods import OwnMethod, create_method
from idsds.models import create_model
from idsds.protocols import PROTOCOLS, Batch
from idsds.protocols.base import on_model
from idsds.protocols.f_fidelity import subsets
from idsds.protocols.imputation import SHARES, impute, road_curve
from idsds.protocols.incremental_deletion import incremental_deletion
from idsds.protocols.localisation import cell_share, disconnected, mosaics
from idsds.protocols.sanity import histogram_entropy, maps_on, randomised_models
from idsds.protocols.similarity import spearman, structural_similarity
from idsds.protocols.single_deletion import patch_sums
from idsds.protocols.subsets import SIZES, pearson, random_sets
from idsds.studies.metric_sanity.known_maps import KnownMap
from idsds.training.recipes import Deletion
from idsds.training.steps import deleted_at_random, drawn_patches
from tests.methods.nets import ConvNet, Linear, images_of, mini, seeded

TARGETS = torch.tensor([0, 2, 1])
IDS = ["a", "b", "c"]


@pytest.fixture
def linear():
    return seeded(Linear, 12, 16)


@pytest.fixture
def batch():
    return Batch(images_of(3, 12, 16) - 0.4, TARGETS, IDS)


def score(name, net, methods, batch, **settings):
    entry = PROTOCOLS[name]
    prepared = entry.prepare(net, batch, **settings) if entry.prepare else {}
    return entry.function(net, methods, batch, prepared, **settings)


def methods_of(net, *names):
    return [create_method(name, net) for name in names]


class TestImputation:
    def test_it_solves_the_full_system(self):
        images, removed = images_of(2, 5, 7), torch.rand(2, 1, 5, 7, generator=torch.Generator().manual_seed(3)) < 0.6
        found = impute(images, removed)
        for image, gone, values in zip(images, removed[:, 0], found, strict=True):
            system, right = np.eye(35), image.flatten(1).numpy().T.copy()
            for place in torch.nonzero(gone.flatten())[:, 0].tolist():
                y, x = divmod(place, 7)
                near = [
                    (v, u) for v in range(max(0, y - 1), min(5, y + 2)) for u in range(max(0, x - 1), min(7, x + 2)) if (v, u) != (y, x)
                ]
                weights = np.array([2.0 if v == y or u == x else 1.0 for v, u in near])
                system[place, [v * 7 + u for v, u in near]] -= weights / weights.sum()
                right[place] = 0
            np.testing.assert_allclose(values.flatten(1).numpy().T, np.linalg.solve(system, right), atol=1e-10)

    def test_what_stays_is_untouched_and_a_flat_image_stays_flat(self):
        removed = torch.zeros(1, 1, 6, 5, dtype=torch.bool)
        removed[..., 1:5, 1:] = True
        images = images_of(1, 6, 5)
        assert torch.equal(torch.where(removed, images, impute(images, removed)), images)
        torch.testing.assert_close(impute(torch.full_like(images, 0.3), removed), torch.full_like(images, 0.3))

    def test_nothing_left_is_refused(self):
        with pytest.raises(ValueError, match="every pixel of an image is removed"):
            impute(images_of(1, 3, 3), torch.ones(1, 1, 3, 3, dtype=torch.bool))

    def test_the_curve_is_that_of_images_imputed_by_hand(self, linear, batch):
        maps = batch.images.sum(dim=1, keepdim=True)
        curve = road_curve(linear, maps, batch.images, TARGETS, noise=0.0)
        for number, share in enumerate(SHARES):
            lowest = maps.flatten(1).sort(dim=1, descending=True).values[:, round(share * 192) - 1].view(-1, 1, 1, 1)
            probability = linear(impute(batch.images, maps >= lowest)).softmax(dim=1)[range(3), TARGETS]
            torch.testing.assert_close(curve[:, number], probability)
        with pytest.raises(ValueError, match="noise must be at least 0, not -1"):
            road_curve(linear, maps, batch.images, TARGETS, noise=-1)


class TestGain:
    def test_it_is_least_first_less_most_first(self, linear, batch):
        (method,) = methods_of(linear, "IxG")
        found = score("symmetric_relevance_gain", linear, [method], batch, steps=8)["IxG"]["score"]
        both = [incremental_deletion(linear, method, batch.images, TARGETS, 8, order) for order in ("ascending", "descending")]
        torch.testing.assert_close(found, both[0] - both[1])
        assert (found > 0).all()  # on a linear net the order of the contributions is the best there is

    def test_the_opposite_map_has_the_opposite_gain(self, linear, batch):
        maps = batch.images.mean(dim=1)  # all different, so that no two pixels tie
        given = [OwnMethod(name, lambda images, targets, sign=sign: sign * maps, linear) for name, sign in (("map", 1), ("opposite", -1))]
        for name in ("symmetric_relevance_gain", "in_domain_relevance_gain"):
            found = score(name, linear, given, batch, steps=16)
            # The curves have floor(k n / steps) units at each step: from the other end the same numbers go.
            torch.testing.assert_close(found["map"]["score"], -found["opposite"]["score"])

    def test_in_domain_deletes_patches(self, linear, batch):
        (method,) = methods_of(linear, "IxG")
        found = score("in_domain_incremental_deletion", linear, [method], batch, steps=16)["IxG"]["score"]
        torch.testing.assert_close(found, incremental_deletion(linear, method, batch.images, TARGETS, 16, units="patches"))


class TestSubsets:
    def test_contributions_of_a_linear_net_are_perfect(self, linear, batch):
        for name in ("sensitivity_n", "faithfulness_correlation"):
            found = score(name, linear, methods_of(linear, "IxG", "Random"), batch)
            torch.testing.assert_close(found["IxG"]["score"], torch.ones(3, dtype=torch.float64))
            assert (found["Random"]["score"].abs() < 0.5).all()

    def test_it_is_scipys_correlation_of_sums_and_drops(self, batch):
        net = seeded(ConvNet, classes=3)
        found = score("sensitivity_n", net, methods_of(net, "IxG"), batch, samples=5)["IxG"]
        sets = random_sets(batch.images, SIZES, 5, seed=0, image_ids=IDS)
        maps = create_method("IxG", net)(batch.images, TARGETS, IDS)
        for image in range(3):
            expected = []
            for size in range(len(SIZES)):
                chosen = sets[image, 5 * size : 5 * size + 5].view(5, 1, 12, 16)
                assert (chosen.flatten(1).sum(dim=1) == round(SIZES[size] * 192)).all()
                left = net(torch.where(chosen, 0, batch.images[image]))[:, TARGETS[image]]
                expected.append(stats.pearsonr((maps[image] * chosen).flatten(1).sum(dim=1), (-left).detach()).statistic)
            np.testing.assert_allclose(found["by_size"][image], expected)
        torch.testing.assert_close(found["score"], found["by_size"].mean(dim=1))

    def test_bad_settings_and_constant_maps(self, linear, batch):
        with pytest.raises(ValueError, match=r"share must be in \(0, 1\), not 1\.5"):
            score("faithfulness_correlation", linear, methods_of(linear, "IxG"), batch, share=1.5)
        with pytest.raises(ValueError, match="samples must be a whole number of at least 2"):
            score("sensitivity_n", linear, methods_of(linear, "IxG"), batch, samples=1)
        assert pearson(torch.ones(1, 4), torch.arange(4.0)[None]).isnan().all()


class TestFFidelity:
    def test_subsets_stay_within_what_the_net_knows(self):
        places = subsets(16, 6, 0, "a")
        assert (places.sum(dim=3) == 2).all()  # a tenth of 16, rounded up
        for chosen, top in zip(places, (4, 8, 12), strict=True):
            assert not chosen[0, :, top:].any()
            assert not chosen[1, :, :top].any()

    def test_it_deletes_by_hand(self, linear, batch):
        (method,) = methods_of(linear, "IxG")
        found = score("f_fidelity", linear, [method], batch, samples=3)["IxG"]
        order = patch_sums(method(batch.images, TARGETS, IDS), 4).argsort(dim=1, descending=True)
        for image in range(3):
            left = torch.zeros(2, dtype=torch.float64)
            for half, places in enumerate(subsets(16, 3, 0, IDS[image]).transpose(0, 1)):
                for chosen in places.flatten(0, 1):
                    changed = batch.images[image].clone()
                    for patch in order[image, chosen].tolist():
                        changed[:, 3 * (patch // 4) : 3 * (patch // 4) + 3, 4 * (patch % 4) : 4 * (patch % 4) + 4] = 0
                    left[half] += linear(changed[None]).softmax(dim=1)[0, TARGETS[image]].detach() / 9
            torch.testing.assert_close(found["explanation"][image], left[0])
            torch.testing.assert_close(found["score"][image], left[1] - left[0])
        assert (found["score"] > 0).all()


class TestGridPointingGame:
    def test_mosaics_hold_the_image_and_others_of_other_classes(self, batch):
        others, classes = images_of(9, 12, 16, seed=5), torch.arange(9) % 3
        found, cells = mosaics(replace(batch, companions=lambda: (others, classes)), 2, seed=0)
        assert found.shape == (3, 3, 24, 32)
        for mosaic, cell, image, target in zip(found, cells.tolist(), batch.images, TARGETS, strict=True):
            parts = [mosaic[:, 12 * row : 12 * row + 12, 16 * column : 16 * column + 16] for row in (0, 1) for column in (0, 1)]
            assert torch.equal(parts.pop(cell), image)
            numbers = [next(number for number, other in enumerate(others) if torch.equal(part, other)) for part in parts]
            assert len(set(numbers)) == 3
            assert all(classes[number] != target for number in numbers)

    def test_share_of_the_cell(self):
        maps = torch.zeros(3, 1, 4, 6)
        maps[0, 0, 0, 4], maps[0, 0, 3, 0], maps[0, 0, 2, 1] = 3.0, 1.0, -5.0  # only the positive counts
        maps[1] = 1.0
        share = cell_share(maps, torch.tensor([1, 2, 0]), 2)
        torch.testing.assert_close(share, torch.tensor([0.75, 0.25, torch.nan], dtype=torch.float64), equal_nan=True)

    def test_shrunk_mosaics_are_as_large_as_the_image(self, linear, batch):
        batch = replace(batch, companions=lambda: (images_of(9, 12, 16), torch.arange(9) % 3))
        assert score("grid_pointing_game", linear, methods_of(linear, "IxG"), batch, size="shrunk")["IxG"]["score"].isfinite().all()
        with pytest.raises(ValueError, match=r"unknown size of a mosaic 'shrink'\. Did you mean 'shrunk'"):
            score("grid_pointing_game", linear, methods_of(linear, "IxG"), batch, size="shrink")

    def test_without_companions_it_says_so(self, linear, batch):
        with pytest.raises(ValueError, match="a mosaic needs images of other classes"):
            score("grid_pointing_game", linear, methods_of(linear, "IxG"), batch)
        with pytest.raises(ValueError, match="needs 3 images of other classes than 0, not 1"):
            mosaics(replace(batch, companions=lambda: (images_of(2, 12, 16), torch.tensor([0, 1]))), 2, 0)


class TestDiFull:
    @pytest.fixture
    def net(self):
        return mini("mini_resnet8")

    @pytest.fixture
    def batch(self):
        others = images_of(9, 32, 32, seed=5) - 0.4
        return Batch(images_of(3, 32, 32) - 0.4, TARGETS, IDS, companions=lambda: (others, torch.arange(9) % 3))

    @pytest.mark.parametrize("name", ["mini_resnet8", "mini_vgg11_bn"])
    def test_the_net_says_of_a_mosaic_what_it_says_of_a_cell(self, name, batch):
        net = mini(name)
        found, cells = mosaics(batch, 2, seed=0)
        for image, mosaic, cell in zip(batch.images, found, cells.tolist(), strict=True):
            pixels = mosaic[None].requires_grad_()
            logits = disconnected(net, 2, cell)(pixels)
            torch.testing.assert_close(logits, net(image[None]))
            (gradient,) = torch.autograd.grad(logits[0, 0], pixels)
            rows, columns = (slice(32 * place, 32 * place + 32) for place in divmod(cell, 2))
            assert gradient[..., rows, columns].abs().sum() > 0
            gradient[..., rows, columns] = 0
            assert not gradient.any()

    def test_gradients_are_right_and_grad_cam_is_not(self, net, batch):
        """Weights of Grad-CAM are those of the own cell, and they are applied to the features of all cells: by hand."""
        net.fc.weight.data.abs_()  # so that Grad-CAM is positive somewhere
        columns = score("difull", net, methods_of(net, "IxG", "Grad-CAM"), batch)
        assert (columns["IxG"]["score"] == 1).all()
        found, cells = mosaics(batch, 2, seed=0)
        assert torch.equal(columns["IxG"]["cell"], cells)
        seen = []
        net.layer3.register_forward_hook(lambda _module, _inputs, output: seen.append(output.detach()))
        for image, (mosaic, cell) in enumerate(zip(found, cells.tolist(), strict=True)):
            seen.clear()
            for place in range(4):
                rows, places = (slice(32 * number, 32 * number + 32) for number in divmod(place, 2))
                net(mosaic[None, :, rows, places])
            features = torch.cat([torch.cat(seen[:2], dim=3), torch.cat(seen[2:], dim=3)], dim=2)  # (1, 64, 8, 8)
            cam = (net.fc.weight[TARGETS[image]].detach()[None, :, None, None] * features).sum(dim=1, keepdim=True).relu()
            cam = torch.nn.functional.interpolate(cam, size=(64, 64), mode="bilinear")
            rows, places = (slice(32 * number, 32 * number + 32) for number in divmod(cell, 2))
            share = cam[..., rows, places].sum() / cam.sum()
            torch.testing.assert_close(columns["Grad-CAM"]["score"][image], share)
            assert share < 0.9

    def test_nets_that_mix_positions_are_refused(self, batch):
        net = seeded(ConvNet, classes=3)
        with pytest.raises(ValueError, match="ConvNet cannot be disconnected for DiFull"):
            score("difull", net, methods_of(net, "IxG"), batch)

    def test_the_exact_map_of_a_closed_form_has_all_of_it(self):
        model = PatchModel(interaction=1.5, saturation=4.0).double()
        data = create_dataset("synthetic", "test")
        images, targets = (torch.stack([torch.as_tensor(data[index][place]) for index in range(16)]) for place in (0, 1))
        batch = Batch(images[:3].double(), targets[:3], IDS, companions=lambda: (images.double(), targets))
        columns = score("difull", model, [KnownMap(model), KnownMap(model, torch.inf)], batch)
        assert (columns["exact"]["score"] == 1).all()
        assert (columns["noise"]["score"] < 0.6).all()


class TestRandomisation:
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


class TestFineTuningOnMasks:
    def test_numbers_of_patches_are_uniform_and_keyed(self):
        images, ids = torch.ones(400, 3, 8, 8), [str(number) for number in range(400)]
        deletion = Deletion(share=1.0)
        found = deleted_at_random(images, ids, deletion, seed=0, epoch=1)
        lost = 16 - found[:, 0, ::2, ::2].flatten(1).sum(dim=1)
        assert 0.4 < (lost == 0).float().mean() < 0.6
        counts = torch.bincount(lost[lost > 0].long(), minlength=17)[1:]
        assert len(counts) == 16
        assert stats.chisquare(counts).pvalue > 0.001
        assert torch.equal(found[7:9], deleted_at_random(images[7:9], ids[7:9], deletion, seed=0, epoch=1))
        assert not torch.equal(found, deleted_at_random(images, ids, deletion, seed=0, epoch=2))
        few = 16 - deleted_at_random(images, ids, Deletion(share=0.1), seed=0, epoch=1)[:, 0, ::2, ::2].flatten(1).sum(dim=1)
        assert few.unique().tolist() == [0, 1, 2]

    def test_one_patch_is_what_it_was(self):
        images = images_of(3, 8, 8)
        found = deleted_at_random(images, IDS, Deletion(), seed=0, epoch=0)
        for image, changed, patch in zip(images, found, drawn_patches(IDS, 4, seed=0, epoch=0).tolist(), strict=True):
            assert int((image != changed).any(dim=0).sum()) == (0 if patch < 0 else 4)

    def test_the_address_of_one_patch_stays(self):
        assert Deletion().model_dump() == {"grid": 4, "baseline": "zeros"}
        assert own_digest(Deletion(share=0.1).model_dump()) != own_digest(Deletion().model_dump())


@pytest.mark.parametrize("kind", ["mini_bcos", "blur"])
def test_a_net_that_reads_a_little_of_other_cells_is_refused(kind):
    """Its logits are all but those of the single images: the images end in black."""
    torch.manual_seed(0)
    if kind == "blur":

        class Blurred(nn.Module):
            def __init__(self):
                super().__init__()
                self.conv, self.pool = nn.Conv2d(3, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1)

            def forward(self, images):
                return self.pool(self.conv(nn.functional.avg_pool2d(images, 9, 1, 4)).relu()).flatten(1)

        net = Blurred().eval()
    else:
        net = create_model("mini_bcos", num_classes=5)
    images = nn.functional.pad(torch.rand(8, 3, 24, 24), (4, 4, 4, 4))
    ours = Batch(images[:4], torch.arange(4), list("abcd"), companions=lambda: (images[4:], (torch.arange(4) + 1) % 5))
    with pytest.raises(ValueError, match="cannot be disconnected for DiFull"):
        PROTOCOLS["difull"].function(net, [create_method("IxG", net)], ours, {})
