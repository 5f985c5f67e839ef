"""The steps of one image's infidelity: closed forms for the optimal map, the package's other functions for the rest."""

import numpy as np
import pytest
import torch
from scipy import stats

from idsds.common.interventions import delete_patches
from idsds.common.settings import SettingsError
from idsds.datasets import fixed_order
from idsds.evaluation.job import named_dataset
from idsds.evaluation.run import PassCounter
from idsds.methods import create_method
from idsds.models import create_model
from idsds.protocols.infidelity import infidelity, perturbations
from idsds.protocols.single_deletion import deletion_drops, patch_sums
from idsds.studies.how_infidelity_works import study as infidelity_steps
from idsds.studies.how_infidelity_works.findings import (
    claims_table,
    similarity,
    steps_table,
    winners_of,
)
from tests.studies.how_infidelity_works.conftest import METHODS


def explained(settings):
    """The image, its target and id, and the net."""
    data = named_dataset("digits", "test", None)
    image, target, image_id = data[fixed_order(data.image_ids)[settings.image]]
    model = create_model(settings.model, num_classes=10, checkpoint=settings.checkpoints[settings.model])
    return model, image[None], target, image_id, data.normalisation


def test_the_steps_of_one_image(settings):
    chosen = settings()
    walk = chosen.walk(progress=False)
    steps, optimal = walk.steps, "optimal (8 x 8 cells)"
    assert [step.name for step in steps] == ["noise, sigma 0.001", "noise, sigma 0.5", "square, 25% of side", "one patch"]
    assert [list(step.predicted) for step in steps] == [[*METHODS, optimal]] * 4
    model, images, target, image_id, normalisation = explained(chosen)
    targets = torch.tensor([target])
    assert walk.image_id == image_id
    assert walk.label == str(target)
    maps = {name: create_method(name, model, seed=0)(images, targets, [image_id]) for name in ("Gradient", "IxG")}

    # One patch after the other: the drops and patch sums of the deletion protocol.
    drops, sums = deletion_drops(model, images, targets)[0], patch_sums(maps["IxG"])[0]
    assert steps[3].errors["IxG"].mean() == pytest.approx(float((sums - drops).square().mean()), rel=1e-4)
    assert steps[3].zero.mean() == pytest.approx(float(drops.square().mean()), rel=1e-4)
    largest = delete_patches(images, torch.zeros_like(images), drops.abs().argmax()[None], 4)
    assert np.allclose(steps[3].picture, normalisation.invert(largest[0]).permute(1, 2, 0).numpy(), atol=1e-6)
    assert (steps[3].fitted, steps[3].different, steps[3].seen) == (16, 16, 16)
    assert [step.by_construction for step in steps] == [False, False, False, True]
    assert steps[3].errors[optimal].mean() < 1e-8 * steps[3].zero.mean()

    # Noise and squares are judged by the protocol's own perturbations, so that the numbers are the protocol's.
    for step, kind, size in ((steps[1], "gaussian", 0.5), (steps[2], "square", 0.25)):
        same = {"perturbation": kind, "sigma": size, "samples": 30, "seed": 0, "image_ids": [image_id]}
        for name, found in maps.items():
            assert step.errors[name].mean() == pytest.approx(float(infidelity(model, found, images, targets, **same)), rel=1e-3)
            scaled = float(infidelity(model, found, images, targets, normalise=True, **same))
            assert step.scaled[name].mean() == pytest.approx(scaled, rel=1e-2)
    # A piecewise linear net under next to no noise does what its gradient says.
    assert steps[0].errors["Gradient"].mean() < 1e-3 * steps[0].zero.mean()


def test_what_is_drawn_sums_to_what_is_predicted(settings):
    chosen = settings()
    walk = chosen.walk(progress=False)
    _, images, _, image_id, _ = explained(chosen)
    for step in walk.steps:
        assert list(step.products) == ["Gradient", "IxG"]
        for name, product in step.products.items():
            assert product.sum() == pytest.approx(step.predicted[name][0], rel=1e-4, abs=1e-7)
    weights, taken = perturbations(images, "gaussian", 0.5, 30, seed=0, image_ids=[image_id])
    assert np.allclose(walk.steps[1].products["IxG"], weights[0, 0].numpy() * walk.maps["IxG"], atol=1e-7)
    assert np.allclose(walk.steps[1].taken, taken[0].mean(dim=0).numpy())


def test_on_pixels_the_optimal_map_of_noise_is_the_gradient_whatever_else_the_noise_does(settings):
    """The net's logit is w x - |x|^2 / 2: its gradient is w - x, and noise lowers it by |d|^2 / 2 besides, which no map can predict."""
    chosen = settings("linear_steps", optimal_cells=32, sigmas=[0.01, 1.0], methods=["Gradient"], samples=100)
    walk = chosen.walk(progress=False)
    model, images, target, image_id, _ = explained(chosen)
    gradient = (model.fc.weight[target].view(3, 32, 32) - images[0]).sum(dim=0).detach().numpy()
    assert np.allclose(walk.maps["Gradient"], gradient, atol=1e-5)
    for step in walk.steps[:2]:
        assert list(step.predicted) == ["Gradient", "optimal (pixels)"]
        assert (step.fitted, step.different, step.seen) == (3 * 32 * 32, 3 * 32 * 32 // 2, 0)
        assert np.abs(step.optimal - gradient).max() < 1e-2 * np.abs(gradient).max()  # the logit is float32
        assert similarity(step.optimal, gradient, 32) == pytest.approx((1, 1), abs=1e-3)
    row = steps_table(walk).query("perturbation == 'noise, sigma 1'").iloc[0]
    noise, _ = perturbations(images, "gaussian", 1.0, 100, seed=0, image_ids=[image_id])
    lost = noise.square().flatten(1).sum(dim=1).numpy() / 2  # w x - |x|^2 / 2 less the same of x - d: gradient d + |d|^2 / 2
    assert row["mean_change"] == pytest.approx(lost.mean(), rel=0.1)
    assert row["floor"] == pytest.approx(row["mean_change"] ** 2)
    assert row["floor"] < row["infidelity"] * 1.01


def test_on_coarse_cells_the_optimal_map_is_no_worse_than_silence(settings):
    """Without a ridge it was three times as bad: all that such cells cannot predict was taken for something that they can."""
    chosen = settings(samples=60)
    for step in chosen.walk(progress=False).steps[:2]:
        assert step.ridge > 0
        assert step.errors[chosen.optimal].mean() < 1.2 * step.zero.mean()


def test_what_judges_the_optimal_map_is_not_what_it_is_fitted_to(settings):
    """Of squares there are (32 - 8 + 1)^2 = 625: three times 1,024 draws hold nearly all of them, and the sentence says so."""
    walk = settings(optimal_cells=32, sigmas=[0.5]).walk(progress=False)
    square = walk.steps[1]
    assert square.fitted == 3 * 32 * 32
    expected = 625 * (1 - (1 - 1 / 625) ** (3 * 32 * 32))  # different ones among so many draws
    assert square.different == pytest.approx(expected, abs=5)
    assert square.seen >= 28
    assert square.by_construction == (square.seen == 30 and square.ridge == 0), "one that was not seen is judged"
    assert claims_table(walk)["by_construction"].tolist() == [step.by_construction for step in walk.steps]
    table = steps_table(walk).set_index(["perturbation", "map"])
    assert table.loc[("one patch", "optimal (pixels)"), ["fitted_to", "different", "seen"]].tolist() == [16, 16, 16]
    assert table.loc[("noise, sigma 0.5", "optimal (pixels)"), "seen"] == 0
    assert table.loc[("noise, sigma 0.5", "Gradient"), ["fitted_to", "seen"]].isna().all()


def test_the_passes_announced_are_those_counted(settings, monkeypatch):
    chosen = settings(others=2, samples=5, methods=["Gradient", "IxG", "IG", "Random"])
    plan = chosen.plan().table
    assert list(plan) == ["model", "work", "epochs", "forward", "backward"]
    assert set(plan["model"]) == {"small_steps"}
    assert plan["epochs"].isna().all()
    counter, load = PassCounter(), infidelity_steps.Job.load

    def watched(job, progress=False):
        model = load(job, progress)
        watching.append(counter.watch(model))
        watching[-1].__enter__()
        return model

    watching: list = []
    monkeypatch.setattr(infidelity_steps.Job, "load", watched)
    chosen.walk(progress=False)
    watching[0].__exit__(None, None, None)
    # Three images, each intact once, under 5 of each drawn kind and 16 patches; 3 x 64 for each drawn kind's optimal map.
    assert plan.loc[~plan["work"].isin(["Gradient, IxG", "IG", "Random"]), "forward"].sum() == 3 * (1 + 3 * 5 + 16) + 3 * 3 * 64
    assert counter.facts == {"forward": plan["forward"].sum(), "backward": plan["backward"].sum()}


def test_the_cost_of_a_net_that_is_not_there_counts_its_training_and_trains_nothing(settings, tmp_path):
    plan = settings(checkpoints={}).plan().table
    assert plan.set_index("work").loc["train", "epochs"] == 1
    assert plan["forward"].isna().sum() == 1
    assert not list(tmp_path.rglob("*trained*"))


def test_on_other_images_the_winners_are_counted(settings):
    chosen = settings(others=2)
    walk = chosen.walk(progress=False)
    for other in (1, 2):  # what wins there is what wins where that image is the one explained
        alone = settings(image=2 + other).walk(progress=False)
        for step in alone.steps:
            assert walk.winners[step.name][other - 1] == winners_of(step, METHODS)[0]
    table = steps_table(walk)
    given = table[table["map"].isin(METHODS)]
    assert (given.groupby("perturbation")["wins_elsewhere"].sum() == 2).all()
    low, high = stats.beta.ppf([0.025], 2, 1).item(), 1.0  # exact interval for 2 of 2
    claims = claims_table(walk).set_index("perturbation")
    assert claims.loc["noise, sigma 0.001", ["lowest", "same_elsewhere", "other_images"]].tolist() == ["Gradient", 2, 2]
    assert claims.loc["noise, sigma 0.001", ["low", "high"]].tolist() == pytest.approx([low, high])
    assert claims_table(settings().walk(progress=False))["low"].isna().all()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"sigmas": []}, "sigmas"),
        ({"grid": 5}, "5"),
        ({"optimal_cells": 5}, "5"),
        ({"others": -1}, "others"),
        ({"methods": ["IxC"]}, "IxG"),
    ],
)
def test_faults_are_named(settings, changes, named):
    with pytest.raises(SettingsError, match=named):
        settings(**changes)
