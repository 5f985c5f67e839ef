"""The steps of one image's infidelity: closed forms for the optimal map, the package's other functions for the rest."""

import numpy as np
import pytest
import torch
from torch import nn

from idsds.infidelity_steps import (
    OPTIMAL,
    InfidelityStepsSettings,
    Step,
    best_factor,
    explain_infidelity,
    findings,
    optimal_map,
    steps_table,
)
from idsds.interventions import delete_patches
from idsds.methods import create_method
from idsds.models import MODELS, create_model, register_model
from idsds.models.checkpoints import save_checkpoint
from idsds.planning import named_dataset
from idsds.plots import infidelity_steps as plot
from idsds.protocols.infidelity import infidelity, perturbations
from idsds.protocols.single_deletion import deletion_drops, patch_sums
from idsds.settings import SettingsError


class Small(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Linear(4 * 49, num_classes)

    def forward(self, x):
        return self.fc(self.act(self.conv(x)).flatten(1))


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_HOME", str(tmp_path))
    register_model("small_steps", family="test", num_classes=10, input_size=32, training={"epochs": 1})(Small)
    torch.manual_seed(0)
    save_checkpoint(create_model("small_steps"), tmp_path / "net.safetensors")
    given = {"dataset": "digits", "model": "small_steps", "methods": ["Gradient", "IxG", "Random"], "image": 2, "sigmas": [0.001, 0.5]}
    given |= {"samples": 30, "device": "cpu", "output": "runs/x/how", "checkpoints": {"small_steps": str(tmp_path / "net.safetensors")}}
    yield given
    MODELS.remove("small_steps")


def test_the_optimal_map_of_a_linear_model_is_its_gradient():
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(400, 12, generator=generator, dtype=torch.float64)
    gradient = torch.randn(12, generator=generator, dtype=torch.float64)
    assert torch.allclose(optimal_map(weights, weights @ gradient), gradient, atol=1e-10)
    noisy = weights @ gradient + torch.randn(400, generator=generator, dtype=torch.float64)
    moments = (weights.T @ weights / 400).inverse() @ (weights.T @ noisy / 400)  # the paper's formula
    assert torch.allclose(optimal_map(weights, noisy), moments, atol=1e-10)


def test_the_best_factor_is_that_of_least_squares():
    generator = torch.Generator().manual_seed(2)
    foretold, changes = torch.randn(2, 50, generator=generator, dtype=torch.float64)
    oracle = np.linalg.lstsq(foretold[:, None].numpy(), changes.numpy(), rcond=None)[0]
    assert float(best_factor(foretold, changes)) == pytest.approx(oracle.item())
    assert float(best_factor(torch.zeros(5), torch.ones(5))) == 0


def test_the_steps_of_one_image(settings):
    steps = explain_infidelity(InfidelityStepsSettings(**settings), progress=False)
    assert [step.name for step in steps] == ["noise, sigma 0.001", "noise, sigma 0.5", "square, 25% of side", "one patch"]
    data = named_dataset("digits", "test", None)
    from idsds.datasets import fixed_order

    image, target, image_id = data[fixed_order(data.image_ids)[2]]
    images, targets = image[None], torch.tensor([target])
    model = create_model("small_steps", num_classes=10, checkpoint=settings["checkpoints"]["small_steps"])
    maps = {name: create_method(name, model, seed=0)(images, targets, [image_id]) for name in ("Gradient", "IxG")}

    # One patch after the other: the drops and patch sums of the deletion protocol.
    drops, sums = deletion_drops(model, images, targets)[0], patch_sums(maps["IxG"])[0]
    assert steps[3].infidelity["IxG"] == pytest.approx(float((sums - drops).square().mean()), rel=1e-4)
    assert steps[3].zero == pytest.approx(float(drops.square().mean()), rel=1e-4)
    assert steps[3].infidelity[OPTIMAL] < 1e-8 * steps[3].zero
    largest = delete_patches(images, torch.zeros_like(images), drops.abs().argmax()[None], 4)
    assert np.allclose(steps[3].picture, data.normalisation.invert(largest[0]).permute(1, 2, 0).numpy(), atol=1e-6)

    # Noise: half of twice as many perturbations judge; with all of them it is the protocol's number.
    weights, taken = perturbations(images, "gaussian", 0.5, 60, seed=0, image_ids=[image_id])
    with torch.no_grad():
        changes = (model(images) - model(images - taken))[:, target]
    errors = ((weights[:, :1] * maps["Gradient"]).flatten(1).sum(1) - changes).square()
    assert steps[1].infidelity["Gradient"] == pytest.approx(float(errors[30:].mean()), rel=1e-4)
    protocol = infidelity(model, maps["Gradient"], images, targets, sigma=0.5, samples=60, seed=0, image_ids=[image_id])
    assert float(protocol) == pytest.approx(float(errors.mean()), rel=1e-4)
    # A piecewise linear net under next to no noise does what its gradient says.
    assert steps[0].infidelity["Gradient"] < 1e-3 * steps[0].zero

    table, said = steps_table(steps), findings(steps)
    assert len(table) == 4 * 4
    assert len(said) == 5
    assert "Gradient has the lowest infidelity" in said[0]
    figure = plot(steps)
    labels = [axes.get_title() + axes.get_xlabel() for axes in figure.axes]
    assert any("lower is better" in label for label in labels)
    assert any("squared logits" in label for label in labels)


def test_silence_that_wins_and_orders_that_change_are_counted():
    """By hand: for the first a map of zeros beats both maps, for the second neither; scaling turns the order of the first alone."""
    facts = {"taken": np.zeros((2, 2)), "picture": np.zeros((2, 2, 3)), "logit": 1.0, "changes": np.array([1.0, 0.0])}
    facts |= {"predicted": {"a": np.array([1.0, 0.5]), "b": np.array([3.0, 0.1])}, "zero": 0.5, "maps": ("a", "b", OPTIMAL)}
    loud = Step(name="p", infidelity={"a": 2.0, "b": 3.0, OPTIMAL: 0.1}, normalised={"a": 0.4, "b": 0.3, OPTIMAL: 0.1}, **facts)
    good = Step(name="q", infidelity={"a": 0.2, "b": 0.3, OPTIMAL: 0.1}, normalised={"a": 0.1, "b": 0.2, OPTIMAL: 0.1}, **facts)
    last = findings([loud, good])[-1]
    assert "A map of zeros beats every given map for 1 of 2;" in last
    assert "their order is another for 1 of 2." in last
    scatter = plot([loud, good]).axes[2].lines[:2]
    assert [line.get_marker() for line in scatter] == ["o", "s"]
    assert [line.get_markerfacecolor() for line in scatter] == ["#003A5D", "none"]
    assert all(line.get_markersize() == 3 for line in scatter)


@pytest.mark.parametrize(("changes", "named"), [({"model": "small_step"}, "small_steps"), ({"sigmas": []}, "sigmas"), ({"grid": 5}, "5")])
def test_faults_are_named(settings, changes, named):
    with pytest.raises(SettingsError, match=named):
        InfidelityStepsSettings(**{**settings, **changes})
