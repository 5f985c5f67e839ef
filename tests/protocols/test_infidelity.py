from dataclasses import replace

import numpy as np
import pytest
import torch
from captum.metrics import infidelity as captum_infidelity
from torch.utils.data import TensorDataset

from idsds import evaluate
from idsds.common.files import read_json
from idsds.methods import OwnMethod, create_method
from idsds.protocols import Batch
from idsds.protocols.infidelity import (
    infidelity,
    infidelity_protocol,
    logit_changes,
    max_sensitivity,
    max_sensitivity_protocol,
    perturbations,
)
from tests.methods.nets import ConvNet, Linear, images_of, seeded


@pytest.fixture
def linear():
    return seeded(Linear, height=8, width=12)


@pytest.fixture
def net():
    return seeded(ConvNet, classes=4)


@pytest.fixture
def batch():
    return Batch(images_of(3, 8, 12) - 0.3, torch.tensor([0, 2, 1]), ["a", "b", "c"])


@pytest.mark.parametrize(("perturbation", "sigma", "explainer"), [("gaussian", 0.5, "Gradient"), ("square", 0.4, "IxG")])
@pytest.mark.parametrize("normalise", [False, True])
def test_a_linear_model_explained_by_itself_has_none(linear, batch, perturbation, sigma, explainer, normalise):
    maps = create_method(explainer, linear)(batch.images, batch.targets)
    settings = {"perturbation": perturbation, "sigma": sigma, "samples": 20, "normalise": normalise, "image_ids": batch.image_ids}
    exact = infidelity(linear, maps, batch.images, batch.targets, **settings)
    np.testing.assert_allclose(exact, 0, atol=1e-14)  # captum expands the square when it normalises
    assert (infidelity(linear, maps.roll(1, dims=3), batch.images, batch.targets, **settings) > 1e-6).all()
    scaled = infidelity(linear, 3 * maps, batch.images, batch.targets, **settings)
    assert (scaled < 1e-14).all() if normalise else (scaled > 1e-6).all()


@pytest.mark.parametrize(("perturbation", "sigma"), [("gaussian", 0.5), ("square", 0.4)])
def test_the_formula(net, batch, perturbation, sigma):
    maps = create_method("IxG", net)(batch.images, batch.targets)
    settings = {"sigma": sigma, "samples": 6, "image_ids": batch.image_ids}
    found = infidelity(net, maps, batch.images, batch.targets, perturbation=perturbation, **settings)
    best = infidelity(net, maps, batch.images, batch.targets, perturbation=perturbation, normalise=True, **settings)
    weights, changes = perturbations(batch.images, perturbation, sigma, 6, image_ids=batch.image_ids)
    with torch.no_grad():
        for b, target in enumerate(batch.targets.tolist()):
            mine = slice(6 * b, 6 * b + 6)
            predicted = (weights[mine, :1] * maps[b]).sum(dim=(1, 2, 3))
            real = net(batch.images[b : b + 1])[0, target] - net(batch.images[b : b + 1] - changes[mine])[:, target]
            assert found[b] == pytest.approx(float(((predicted - real) ** 2).mean()), rel=1e-9)
            factor = np.linalg.lstsq(predicted[:, None].numpy(), real.numpy(), rcond=None)[0][0]
            assert best[b] == pytest.approx(float(((factor * predicted - real) ** 2).mean()), rel=1e-9)


def test_the_papers_optimal_explanation_beats_all_others(net, batch):
    """(sum of I I^T)^-1 (sum of I times the change), the minimiser that Yeh et al. derive, on more samples than there are pixels."""
    samples = 400
    weights, _ = perturbations(batch.images, "gaussian", 0.5, samples, image_ids=batch.image_ids)
    optimal = []
    with torch.no_grad():
        for b, target in enumerate(batch.targets.tolist()):
            noise = weights[samples * b : samples * (b + 1)]
            change = net(batch.images[b : b + 1])[0, target] - net(batch.images[b : b + 1] - noise)[:, target]
            flat = noise[:, 0].flatten(1)  # (samples, 96)
            optimal.append(torch.linalg.solve(flat.T @ flat, flat.T @ change).view(1, 8, 12))
    settings = {"sigma": 0.5, "samples": samples, "image_ids": batch.image_ids}
    best = infidelity(net, torch.stack(optimal), batch.images, batch.targets, **settings)
    for name in ("Gradient", "IxG", "IG", "Random"):
        maps = create_method(name, net)(batch.images, batch.targets, batch.image_ids)
        for normalise in (False, True):
            assert (infidelity(net, maps, batch.images, batch.targets, normalise=normalise, **settings) > best).all()


def test_squares_are_squares_of_the_image(batch):
    weights, changes = perturbations(batch.images, "square", 0.5, 50, image_ids=batch.image_ids)
    assert weights.sum(dim=(2, 3)).unique().tolist() == [4 * 6]
    assert len({tuple(mask.nonzero()[0].tolist()) for mask in weights[:, 0]}) > 10
    torch.testing.assert_close(changes, weights * batch.images.repeat_interleave(50, dim=0))


@pytest.mark.parametrize("normalise", [False, True])
def test_protocol_is_captum_with_the_same_noise(net, batch, normalise):
    methods = [create_method(name, net) for name in ("Gradient", "IxG", "Random")]
    prepared = logit_changes(net, batch, sigma=0.3, samples=5)
    columns = infidelity_protocol(net, methods, batch, prepared, sigma=0.3, samples=5, normalise=normalise)
    noise, _ = perturbations(batch.images, "gaussian", 0.3, 5, image_ids=batch.image_ids)
    for method in methods:
        maps = method(batch.images, batch.targets, batch.image_ids)
        expected = captum_infidelity(
            net,
            lambda x: (noise, x - noise),
            batch.images,
            maps.expand_as(batch.images) / 3,
            target=batch.targets,
            n_perturb_samples=5,
            normalize=normalise,
        )
        torch.testing.assert_close(columns[method.name]["score"], expected)
        torch.testing.assert_close(columns[method.name]["normalised" if normalise else "raw"], expected)
        pure = infidelity(net, maps, *(batch.images, batch.targets), sigma=0.3, samples=5, normalise=normalise, image_ids=batch.image_ids)
        torch.testing.assert_close(columns[method.name]["score"], pure)


@pytest.mark.parametrize(("perturbation", "sigma"), [("gaussian", 0.5), ("square", 0.4)])
def test_perturbed_images_go_through_the_net_once_for_all_methods(net, batch, perturbation, sigma, tmp_path):
    """Three computations: the net sees the perturbed images once, and what is added later costs its maps alone."""
    net, batch = net.float(), replace(batch, images=batch.images.float())
    data = TensorDataset(batch.images, batch.targets)
    settings = {"protocol": "infidelity", "images": 3, "samples": 5, "perturbation": perturbation, "sigma": sigma, "progress": False}
    records = evaluate({"net": net}, ["Gradient", "IG", "Random"], data, **settings, output=tmp_path / "r")
    passes = read_json(tmp_path / "r" / "manifest.json")["passes"]
    steps = create_method("IG", net).passes.forward
    assert passes["counted"] == passes["announced"]
    assert passes["counted"]["forward"] == 3 * (5 + 1 + 1 + steps)
    more = evaluate({"net": net}, ["Gradient", "IG", "Random", "IxG-SG"], data, **settings, output=tmp_path / "r")
    assert more[more["method"] != "IxG-SG"]["score"].tolist() == records["score"].tolist()
    maps = create_method("Gradient", net)(batch.images, batch.targets, list("012"))
    shared = {"sigma": sigma, "samples": 5, "perturbation": perturbation, "image_ids": list("012")}
    expected = infidelity(net, maps, batch.images, batch.targets, **shared)
    found = records[records["method"] == "Gradient"].set_index("image_id").loc[list("012"), "score"]
    np.testing.assert_allclose(found, expected, rtol=1e-4)  # float32, and captum sums in another order


def test_a_map_of_zeros_predicts_nothing_and_nan_is_kept(net, batch):
    """Without a factor to choose, both readings are the mean square of the changes; a map that is NaN has no score."""
    for value in (0.0, float("nan")):
        method = OwnMethod("mine", lambda images, targets, value=value: torch.full_like(images[:, :1], value), net)
        prepared = logit_changes(net, batch)
        columns = infidelity_protocol(net, [method], batch, prepared)["mine"]
        for kind in ("raw", "normalised"):
            if value == 0:
                torch.testing.assert_close(columns[kind], prepared["logit_changes"].square().mean(dim=1))
            else:
                assert columns[kind].isnan().all()


def test_sensitivity_of_a_linear_map_is_known(batch):
    """A map that is the image itself changes by the perturbation: the largest norm of the noise over the image's norm."""
    found = max_sensitivity(lambda images: images[:, :1], batch.images, radius=0.1, samples=7, image_ids=batch.image_ids)
    absolute = max_sensitivity(
        lambda images: images[:, :1], batch.images, radius=0.1, samples=7, image_ids=batch.image_ids, normalise=False
    )
    seen = []
    max_sensitivity(lambda images: seen.append(images) or images[:, :1], batch.images, radius=0.1, samples=7, image_ids=batch.image_ids)
    changes = (seen[1].view(3, 7, 3, 8, 12) - batch.images[:, None])[:, :, 0].flatten(2).norm(dim=2)
    norms = batch.images[:, 0].flatten(1).norm(dim=1)
    assert (seen[1].view(3, 7, 3, 8, 12) - batch.images[:, None]).abs().max() <= 0.1
    torch.testing.assert_close(absolute, changes.amax(dim=1))
    torch.testing.assert_close(found, changes.amax(dim=1) / norms)


def test_sensitivity_does_not_depend_on_the_free_memory(net, batch, monkeypatch):
    """On a GPU the size of a good batch follows the memory that is free, which shrinks while methods run."""
    methods = [create_method(name, net) for name in ("IxG", "Saliency")]
    expected = max_sensitivity_protocol(net, methods, batch, {}, samples=7)
    sizes = iter(range(20, 1, -3))
    monkeypatch.setitem(max_sensitivity.__globals__, "default_batch", lambda images: next(sizes))
    found = max_sensitivity_protocol(net, methods, batch, {}, samples=7)
    for name, columns in expected.items():
        for column, values in columns.items():
            torch.testing.assert_close(found[name][column], values)


def test_sensitivity_of_maps_that_do_not_depend_on_the_image(linear, net, batch):
    """The gradient of a linear model is the same everywhere; noise keyed by the image's id is that of the image."""
    columns = max_sensitivity_protocol(linear, [create_method("Gradient", linear)], batch, {}, samples=3)
    np.testing.assert_allclose(columns["Gradient"]["score"], 0, atol=1e-12)
    columns = max_sensitivity_protocol(net, [create_method(name, net) for name in ("Random", "IxG")], batch, {}, samples=3)
    assert columns["Random"]["score"].tolist() == [0, 0, 0]
    assert (columns["IxG"]["score"] > 0).all()


@pytest.mark.parametrize(("perturbation", "sigma"), [("gaussian", 0.5), ("square", 0.4)])
def test_the_normalised_reading_is_blind_to_the_sign(net, batch, perturbation, sigma):
    maps = create_method("IxG", net)(batch.images, batch.targets)
    settings = {"perturbation": perturbation, "sigma": sigma, "samples": 6, "image_ids": batch.image_ids}
    raw, flipped = (infidelity(net, found, batch.images, batch.targets, **settings) for found in (maps, -maps))
    assert (raw != flipped).all()
    raw, flipped = (infidelity(net, found, batch.images, batch.targets, normalise=True, **settings) for found in (maps, -maps))
    torch.testing.assert_close(raw, flipped)


def test_a_net_in_train_mode_is_measured_in_eval_mode(batch):
    """Batch norm in train mode would make an image's value depend on the others."""
    net = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Flatten(), seeded(torch.nn.Linear, in_features=288, out_features=4))
    net = net.to(batch.images)
    found = [infidelity(net.train(mode), batch.images[:, :1], batch.images, batch.targets, samples=3) for mode in (False, True)]
    torch.testing.assert_close(*found, rtol=0, atol=0)
    assert net.training
    assert not net[0].num_batches_tracked


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, b: infidelity(f, b.images, b.images, b.targets, perturbation="gauss"), "unknown perturbation 'gauss'"),
        (lambda f, b: infidelity(f, b.images, b.images, b.targets, samples=0), "samples must be a whole number of at least 1, not 0"),
        (lambda f, b: infidelity(f, b.images, b.images, b.targets, sigma=0.0), "sigma must be above 0"),
        (lambda f, b: infidelity(f, b.images, b.images, b.targets, perturbation="square", sigma=2), "sigma must be in"),
        (lambda f, b: infidelity(f, b.images[:, :, 1:], b.images, b.targets), "returned shape"),
        (lambda f, b: max_sensitivity(f, b.images, radius=-1), "radius must be above 0, not -1"),
        (lambda f, b: max_sensitivity(f, b.images, samples=1.5), "samples must be a whole number"),
    ],
)
def test_mistakes_are_named(batch, call, message):
    def untouched(_images):
        raise AssertionError("the model was run")

    with pytest.raises(ValueError, match=message):
        call(untouched, batch)
