"""Metrics of Quantus by name: the values are Quantus' own, image by image, for every name."""

from __future__ import annotations

import inspect
import warnings

import numpy as np
import pytest
import torch

import idsds
from idsds.common.randomness import generator, seeded
from idsds.evaluation.arguments import protocol_settings
from idsds.methods import OwnMethod, create_method
from idsds.methods.libraries import MissingLibraryError
from idsds.protocols import PROTOCOLS, Batch, libraries, list_protocols
from idsds.protocols.libraries import LEFT_OUT, METRICS, as_scores
from idsds.protocols.localisation import mosaics
from tests.methods.nets import ConvNet, images_of
from tests.methods.nets import seeded as net_of

quantus = pytest.importorskip("quantus", reason="the extra quantus is not installed")
# What keeps a test fast, beside the options of the adapter; features_in_step is a sixteenth of 16 x 16 pixels, k a quarter of 32 x 32.
FEWER = {"FaithfulnessCorrelation": {"nr_runs": 8}, "MonotonicityCorrelation": {"nr_samples": 2}}
STEPS, TOP = 16, 256


@pytest.fixture(scope="module")
def net():
    return net_of(ConvNet, classes=4, dtype=torch.float32)


@pytest.fixture
def batch():
    companions = images_of(8, 16, 16, torch.float32, seed=1) - 0.5, torch.arange(8) % 4
    return Batch(images_of(3, 16, 16, torch.float32) - 0.5, torch.tensor([0, 3, 1]), ["a", "b", "c"], companions=lambda: companions)


def scores(name, net, batch, methods=("IxG",), **settings):
    entry = PROTOCOLS[f"quantus/{name}"]
    made = [create_method(method, net) for method in methods]
    return {key: columns["score"] for key, columns in entry.function(net, made, batch, {}, **settings).items()}


def part(batch, place):
    return Batch(batch.images[place, None], batch.targets[place, None], [batch.image_ids[place]], companions=batch.companions)


def direct(name, net, batch, place):
    """Quantus called by hand for one image, with maps computed here."""

    def explain(model, inputs, targets, **_):
        images = torch.tensor(np.asarray(inputs), dtype=torch.float32, requires_grad=True)
        (gradient,) = torch.autograd.grad(model(images).gather(1, torch.tensor(np.asarray(targets)).long()[:, None]).sum(), images)
        return (gradient * images).sum(dim=1, keepdim=True).detach().numpy()

    options = {**METRICS[name].options, **FEWER.get(name, {})}
    options.pop("n_perturb_samples", None)  # one sample equals Quantus' ten
    options |= {"features_in_step": STEPS} if "features_in_step" in options else {"k": TOP} if "k" in options else {}
    if name in ("MPRT", "SmoothMPRT", "EfficientMPRT"):
        options["seed"] = 0
    if name == "RandomLogit":
        options |= {
            "num_classes": 4,
            "seed": int(torch.randint(2**31, (), generator=generator(0, "quantus/RandomLogit", batch.image_ids[place]))),
        }
    images, targets, given = batch.images[place, None], batch.targets[place, None], {}
    if METRICS[name].asks == "localised":
        found, cells = mosaics(batch, 2, 0)
        images, cell = found[place, None], int(cells[place])
        mask = np.zeros((1, 1, 32, 32))
        mask[0, 0, 16 * (cell // 2) : 16 * (cell // 2) + 16, 16 * (cell % 2) : 16 * (cell % 2) + 16] = 1
        given = {"custom_batch": np.eye(4)[[cell]]} if name == "Focus" else {"s_batch": mask}
    if name in ("Sufficiency", "Consistency"):
        others = batch.companions()
        images, targets = torch.cat([images, others[0]]), torch.cat([targets, others[1]])
    with seeded(0, f"quantus/{name}", batch.image_ids[place]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric = getattr(quantus, name)(disable_warnings=True, display_progressbar=False, **options)
        given |= {"x_batch": images.numpy(), "y_batch": targets.numpy(), "a_batch": explain(net, images, targets)}
        found = metric(model=net, explain_func=explain, **given)
    if isinstance(found, dict):
        found = [np.mean([values[0] for layer, values in found.items() if layer != "original"])]
    return float(np.mean(found[0]))


@pytest.mark.parametrize("name", list(METRICS))
class TestEveryMetric:
    def test_values_are_those_of_quantus(self, name, net, batch):
        settings = {key: value for key, value in FEWER.get(name, {}).items() if key in METRICS[name].options}
        found = scores(name, net, batch, **FEWER.get(name, settings))["IxG"]
        assert found.shape == (3,)
        low, high = METRICS[name].range
        assert ((found >= low - 1e-6) & (found <= high + 1e-6)).all()
        for place in (0, 2):
            np.testing.assert_allclose(found[place], direct(name, net, batch, place), rtol=1e-4, atol=1e-6)

    def test_batch_equals_loop_and_random_numbers_are_keyed(self, name, net, batch):
        together = scores(name, net, batch, ("IxG", "Gradient"), **FEWER.get(name, {}))
        states = np.random.get_state(), torch.random.get_rng_state()
        np.random.rand(3), torch.rand(3)
        alone = scores(name, net, part(batch, 1), **FEWER.get(name, {}))["IxG"]
        np.random.set_state(states[0]), torch.random.set_rng_state(states[1])
        torch.testing.assert_close(alone, together["IxG"][1:2], rtol=1e-4, atol=1e-6)

    def test_its_entry_says_what_it_is(self, name):
        entry = PROTOCOLS[f"quantus/{name}"]
        assert name in entry.source
        assert inspect.getdoc(entry.function)
        assert entry.level == "image"
        assert set(protocol_settings(entry, {})) == set(METRICS[name].options)
        # Where Quantus states another direction than its values have, the reason is given.
        stated = getattr(quantus, name).score_direction.value == "higher"
        assert (stated == entry.higher_is_better) == (not METRICS[name].direction)


def test_every_metric_of_quantus_is_here_or_left_out_with_a_reason():
    there = {metric.__name__ for metrics in quantus.AVAILABLE_METRICS.values() for metric in metrics.values()}
    assert there == set(METRICS) | set(LEFT_OUT)
    assert not set(METRICS) & set(LEFT_OUT)


def test_what_is_left_out_fails_as_stated(net, batch):
    given = {"model": net, "x_batch": batch.images.numpy(), "y_batch": batch.targets.numpy()}
    given |= {"a_batch": batch.images.mean(dim=1, keepdim=True).numpy()}
    for name, error in (("ROAD", IndexError), ("IROF", AssertionError)):
        with pytest.raises(error):
            getattr(quantus, name)(disable_warnings=True)(**given)
    assert len(quantus.SensitivityN(disable_warnings=True, features_in_step=16)(**given)) != len(batch.images)


def test_undefined_scores_are_kept(net, batch):
    def method(images, targets):
        maps = images[:, 0].clone()
        maps[targets == 0] = torch.nan
        maps[targets == 3] = 0
        return maps

    method = OwnMethod("mine", method, net)
    for name in ("Sparseness", "FaithfulnessEstimate"):
        with pytest.warns(RuntimeWarning, match="'mine' gave a NaN"):
            found = PROTOCOLS[f"quantus/{name}"].function(net, [method], batch, {})["mine"]["score"]
        assert found.isnan().tolist() == [True, True, False]


def test_a_correlation_that_is_undefined_is_a_nan(net, batch):
    """Quantus' Spearman correlation of one image, where it is undefined, is a float that is asked for its shape."""
    method = create_method("IxG", net)
    call = libraries._Call("SmoothMPRT", net, method, {}, None)
    one = np.ones((1, 4))
    call.metric = lambda images, image_id: lambda **_: quantus.similarity_func.correlation_spearman(one, one, batched=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert call.scores(batch, method(batch.images, batch.targets)[1:2], [1], None).isnan().all()
    call = libraries._Call("Continuity", net, method, {"nr_steps": 8}, None)
    call.explain = lambda model, inputs, targets, **_: np.zeros((len(inputs), 1, 16, 16))
    assert call.scores(batch, method(batch.images, batch.targets)[1:2], [1], None).isnan().all()


def test_a_net_in_double_precision_stays_as_it_is(batch):
    net = net_of(ConvNet, classes=4)
    batch = Batch(batch.images.double(), batch.targets, batch.image_ids)
    found = scores("MaxSensitivity", net, batch, nr_samples=2)["IxG"]
    assert found.isfinite().all()
    assert next(net.parameters()).dtype == torch.float64


def test_maps_of_all_methods_share_a_call_and_equal_images_a_pass(net, batch, monkeypatch):
    """NonSensitivity perturbs an image alike for every map: a pass per value, whatever the number of methods."""
    calls, seen = [], []
    monkeypatch.setattr(libraries._Call, "scores", lambda self, *given, run=libraries._Call.scores: calls.append(1) or run(self, *given))
    small = Batch(batch.images[..., :4, :4], batch.targets, batch.image_ids)
    with net.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0]))):
        together = scores("NonSensitivity", net, small, ("Random", "Center"))
    assert (len(calls), len(seen), set(seen)) == (1, 1 + 3 * 16, {3})
    for name, found in together.items():
        assert torch.equal(found, scores("NonSensitivity", net, small, (name,))[name])
    scores("Selectivity", net, batch, ("Random", "Center"), perturb_baseline="uniform")
    assert len(calls) == 1 + 2 + 6  # random perturbations are keyed by the image, so that each has a call of its own


@pytest.mark.parametrize("name", ["FaithfulnessEstimate", "Infidelity"])
def test_a_softmax_at_the_end_of_a_net_is_removed_whatever_the_number_of_methods(net, batch, name):
    """Quantus' metrics on logits: a method's scores are those of its own call."""
    probabilities = torch.nn.Sequential(net, torch.nn.Softmax(dim=1))
    together = scores(name, probabilities, batch, ("IxG", "Saliency"))
    for method, found in together.items():
        torch.testing.assert_close(found, scores(name, probabilities, batch, (method,))[method])


def test_curves_layers_and_truth_values():
    assert as_scores([np.array([1.0, 0.5]), np.array([0.0, 0.5])], 2).tolist() == [0.75, 0.25]
    assert as_scores([np.True_, np.False_], 2).tolist() == [1, 0]
    assert as_scores({"original": [1.0, 1.0], "a": [0.0, 0.2], "b": [0.5, 0.4]}, 2).tolist() == pytest.approx([0.25, 0.3])


def test_they_are_listed_and_run_by_the_engine():
    assert list_protocols(library="quantus") == [f"quantus/{name}" for name in METRICS]
    assert not [name for name in list_protocols() if "/" in name]
    with pytest.raises(ValueError, match=r"unknown library of protocols 'quantum'\. Did you mean 'quantus'"):
        list_protocols(library="quantum")
    with pytest.raises(ValueError, match=r"unknown protocol 'quantus/Sparsness'\. Did you mean 'quantus/Sparseness'"):
        PROTOCOLS["quantus/Sparsness"]
    net = {"net": net_of(idsds.create_model, "mini_resnet8", dtype=torch.float32)}
    records = idsds.evaluate(net, ["IxG", "Random"], "digits", "quantus/Focus", images=3, progress=False, batch_size=2)
    assert len(records) == 6
    assert set(records["protocol"]) == {"quantus/Focus"}
    assert records["score"].between(0, 1).all()


def test_without_quantus_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(libraries, "find_spec", lambda name: None)
    assert "quantus/Focus" in list_protocols(library="quantus")
    with pytest.raises(MissingLibraryError, match=r"'quantus/Focus' needs quantus.*pip install 'idsds\[quantus\]'"):
        idsds.evaluate(["mini_resnet8"], ["IG"], protocol="quantus/Focus")
