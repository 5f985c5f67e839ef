"""The training loop: draws, losses, one golden step, precisions, processes, resuming after a kill."""

import copy
import json
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn
from torch.multiprocessing import ProcessExitedException

from idsds.common.files import DamagedFileError
from idsds.common.interventions import baseline_images, delete_patches
from idsds.common.normalisation import UNIT
from idsds.common.settings import SettingsError
from idsds.datasets import create_dataset
from idsds.datasets.base import ImageDataset, ImageReadError, first
from idsds.datasets.images import TensorImages
from idsds.models import create_model
from idsds.models.weights import rename_keys
from idsds.training.launch import launch
from idsds.training.loop import fit, rehearse
from idsds.training.predict import accuracy
from idsds.training.recipes import PAPER, Deletion, Recipe
from idsds.training.steps import drawn_patches, loader_of, loss_of, make_optimizer, make_scheduler, shares, training_step

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "data" / "golden_step.json").read_text())
SGD = Recipe(epochs=3, batch_size=10, optimizer="sgd", lr=0.05, schedule="step", step_epochs=2, clip=0.0)


class Tiny(nn.Module):
    """No normalisation over the batch and no dropout: the gradient of a batch is the mean of its images' gradients."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv, self.fc = nn.Conv2d(3, 6, 3, stride=2), nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(self.conv(x).relu().mean((2, 3)))


class TinyNormed(Tiny):
    """With running statistics and dropout, which a resume must restore and redraw."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.drop = nn.BatchNorm2d(6), nn.Dropout(0.3)

    def forward(self, x):
        return self.fc(self.drop(self.norm(self.conv(x)).relu().mean((2, 3))))


def toy(count: int, name: str = "toy", augment: bool = True) -> ImageDataset:
    """8 x 8 images whose class is the brightest channel."""
    rng = torch.Generator().manual_seed(count)
    pixels, targets = torch.rand(count, 3, 8, 8, generator=rng), [n % 3 for n in range(count)]
    for image, target in zip(pixels, targets, strict=True):
        image[target] += 0.5
    images = TensorImages(pixels / 1.5, shift=1)
    ids = [f"{name}/{n}" for n in range(count)]
    return ImageDataset(name, "train", ids, targets, images.read, list("rgb"), UNIT, images.augment if augment else None)


def weights(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    assert all(torch.equal(a[key], b[key]) for key in a)


def test_half_of_the_images_lose_one_uniformly_drawn_patch():
    ids = [f"x/{n}" for n in range(16000)]
    drawn = drawn_patches(ids, 4, seed=0, epoch=0)
    # 4 standard deviations of 16,000 fair coins are 253.
    assert abs((drawn == -1).sum().item() - 8000) < 253
    assert stats.chisquare(np.bincount(drawn[drawn >= 0], minlength=16)).pvalue > 1e-4
    assert drawn.max() == 15
    assert torch.equal(drawn[500:520], drawn_patches(ids[500:520], 4, seed=0, epoch=0))
    for other in (drawn_patches(ids, 4, seed=1, epoch=0), drawn_patches(ids, 4, seed=0, epoch=1)):
        assert abs((other == drawn).float().mean().item() - (1 / 4 + 1 / 64)) < 0.02


def test_losses_against_their_formulas():
    logits = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 6, 3, 3, 1])
    hot = torch.eye(7, dtype=torch.float64)[targets]
    cross = -(logits - torch.log(torch.exp(logits).sum(1, keepdim=True)))[range(5), targets].mean()
    sigmoid = 1 / (1 + torch.exp(-logits))
    binary = -(hot * torch.log(sigmoid) + (1 - hot) * torch.log(1 - sigmoid)).mean()
    assert torch.allclose(loss_of(logits, targets, "cross_entropy"), cross, rtol=1e-12)
    assert torch.allclose(loss_of(logits, targets, "binary_cross_entropy"), binary, rtol=1e-12)


def test_the_papers_recipe():
    recipe = json.loads((Path(__file__).resolve().parents[1] / "data" / "recipe.json").read_text())
    optimizer = make_optimizer(Tiny(), PAPER)
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.SGD
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (recipe["momentum"], recipe["weight_decay"], recipe["nesterov"])
    assert (PAPER.epochs, PAPER.batch_size, PAPER.clip) == (recipe["epochs"], recipe["batch_size"], 0)
    scheduler, rates = make_scheduler(optimizer, PAPER, steps=2), []
    for _ in range(PAPER.epochs):
        rates.append(group["lr"])
        optimizer.step()
        scheduler.step()
    wanted = [rate for decade in recipe["schedule"]["lr_by_epoch"].values() for rate in [decade] * 10]
    assert rates == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [20, 21, 25])
def test_shares_of_the_processes_make_up_the_batches(world, count):
    parts = [shares(count, 10, seed=0, epoch=1, rank=rank, world=world) for rank in range(world)]
    batches = [sorted(i for part in step for i in part) for step in zip(*parts, strict=True)]
    assert sorted(i for batch in batches for i in batch) == list(range(count))
    assert all(part for step in zip(*parts, strict=True) for part in step)
    alone = shares(count, 10, seed=0, epoch=1)
    assert batches[0] == sorted(alone[0])
    assert alone != shares(count, 10, seed=0, epoch=2)


def test_more_processes_than_images_are_refused():
    with pytest.raises(ValueError, match="2 images"):
        shares(2, 10, seed=0, epoch=0, world=3)


def _golden(fabric, name, precision):
    from tests.models.golden import study_state

    model = create_model(name)
    model.load_state_dict(rename_keys(model, study_state(name)))
    own_key = getattr(model, "own_key", str)
    model.to(getattr(torch, precision)).train()
    images = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(3)).to(getattr(torch, precision))
    images = images if name.startswith("bcos") else images * 2 - 1
    patches = torch.tensor([-1 if cell is None else 4 * cell[0] + cell[1] for cell in GOLDEN["deleted_patches_row_col"]])
    images = delete_patches(images, baseline_images(images, "zeros"), patches, 4)
    targets, before = torch.tensor(GOLDEN["labels"]), weights(model)
    net, optimizer = fabric.setup(model, make_optimizer(model, PAPER))
    step = {"loss": model.entry.loss, "clip": PAPER.clip}
    found = {"input_mean": images.mean().item(), "loss_before": training_step(fabric, net, optimizer, images, targets, **step)[0] / 4}
    for key in ("conv1.weight", "fc.weight"):
        parameter = model.get_parameter(own_key(key))
        found[f"grad_l2_{key}"] = parameter.grad.norm().item()
        found[f"update_l2_{key}"] = (parameter.detach() - before[own_key(key)]).norm().item()
    found["grad_l2_total"] = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    found["bn1.running_var_sum_after_1_forward"] = model.get_buffer(own_key("bn1.running_var")).sum().item()
    found["loss_after_1_step"] = training_step(fabric, net, optimizer, images, targets, **step)[0] / 4
    found["loss_after_2_steps"] = loss_of(model(images), targets, model.entry.loss).item()
    return found


@pytest.mark.parametrize(("name", "precision", "tolerance"), [("resnet18", "float64", 1e-6), ("bcos_resnet50", "float32", 1e-3)])
def test_golden_step(name, precision, tolerance):
    """Two optimiser steps of the reference on two intact and two deleted images.

    In float64 resnet18 agrees to 1e-6. The float32 gradient of the classifier of bcos_resnet50, a sum of cancelling terms, differs by
    8e-4; its losses agree to 4e-7. (The reference's own float32 and float64 runs differ by up to 7e-3, in the classifier's update.)
    """
    found = launch(_golden, name, precision, device="cpu")
    wanted = GOLDEN["results"][f"{name}_{precision}"]
    for key, value in found.items():
        assert value == pytest.approx(wanted[key], rel=tolerance), key


def test_an_uneven_batch_weighs_every_image_alike():
    """One step equals plain SGD on the mean loss, whether or not the batch is passed in parts."""
    data = toy(7, augment=False)
    images, targets = torch.stack([data[i][0] for i in range(7)]), torch.tensor(data.targets)
    model = Tiny()
    F.cross_entropy(model(images), targets).backward()
    wanted = {key: p.detach() - 0.05 * (p.grad + 1e-2 * p.detach()) for key, p in model.named_parameters()}

    def step(fabric, accumulate):
        net, optimizer = fabric.setup(other := Tiny(), make_optimizer(other, SGD))
        training_step(fabric, net, optimizer, images, targets, accumulate=accumulate)
        return weights(other)

    for accumulate in (1, 3, 7):
        found = launch(step, accumulate, device="cpu")
        assert all(torch.allclose(found[key], wanted[key], atol=1e-6) for key in wanted)


def test_clipping_limits_the_norm_of_the_gradient():
    data = toy(6)

    def step(fabric):
        net, optimizer = fabric.setup(model := Tiny(), make_optimizer(model, SGD))
        images, targets = torch.stack([data[i][0] for i in range(6)]), torch.tensor(data.targets)
        training_step(fabric, net, optimizer, images, targets, clip=1e-3)
        return torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()

    assert launch(step, device="cpu") == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("baseline", ["zeros", "blur", "uniform"])
def test_training_learns_with_every_baseline(baseline):
    model = Tiny()
    results = fit(model, toy(90), toy(30, "val"), SGD, deletion=Deletion(baseline=baseline), device="cpu", progress=False)
    assert [result.epoch for result in results] == [0, 1, 2]
    assert results[-1].train_loss < results[0].train_loss
    assert not model.training
    loader = loader_of(toy(30, "val"), [range(30)])
    assert accuracy(model, loader)[0] == max(result.val_accuracy for result in results)
    best = max(results, key=lambda result: (result.val_accuracy, -result.val_loss))
    assert best.val_top5 == accuracy(model, loader)[2] >= best.val_accuracy


def test_two_gloo_processes_equal_one_with_the_whole_batch():
    """Same losses and weights; 43 images in batches of 10 end with an uneven batch of 3. Sums in another order differ by rounding."""
    found = {}
    for devices in (1, 2):
        model = Tiny()
        results = fit(
            model, toy(43), toy(15, "val"), SGD, deletion=Deletion(baseline="uniform"), device="cpu", devices=devices, progress=False
        )
        found[devices] = (results, weights(model))
    for one, two in zip(found[1][0], found[2][0], strict=True):
        assert two.train_loss == pytest.approx(one.train_loss, rel=1e-5)
        assert two.val_loss == pytest.approx(one.val_loss, rel=1e-5)
        assert (two.train_accuracy, two.val_accuracy) == pytest.approx((one.train_accuracy, one.val_accuracy))
    assert all(torch.allclose(found[1][1][key], found[2][1][key], atol=1e-5) for key in found[1][1])
    assert "MASTER_PORT" not in os.environ


@pytest.mark.parametrize("schedule", ["step", "one_cycle"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_precisions(precision, schedule):
    recipe = SGD.model_copy(update={"schedule": schedule, "epochs": 2})
    model = Tiny()
    results = fit(model, toy(60), toy(30, "val"), recipe, device="cpu", precision=precision, progress=False)
    assert all(np.isfinite(result.train_loss) for result in results)
    assert all(value.dtype == torch.float32 for value in model.state_dict().values())
    reference = fit(Tiny(), toy(60), toy(30, "val"), recipe, device="cpu", progress=False)
    # bfloat16 keeps 8 bits.
    assert results[-1].train_loss == pytest.approx(reference[-1].train_loss, rel=0.02)
    assert (results == reference) == (precision == "32-true")


@pytest.mark.parametrize("steps", range(1, 9))
def test_one_cycle_of_any_length(steps):
    recipe = SGD.model_copy(update={"schedule": "one_cycle", "epochs": 1})
    optimizer = make_optimizer(Tiny(), recipe)
    scheduler = make_scheduler(optimizer, recipe, steps)
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert all(0 < rate <= recipe.lr * 1.0001 for rate in rates)


def test_devices_and_precisions_that_are_not_there_are_refused():
    for wrong, reason in (
        ({"precision": "16-mixed", "device": "cpu"}, "needs a CUDA device"),
        ({"precision": "fp8"}, "unknown precision"),
        ({"device": "cpu", "devices": 0}, r"devices must be in 1\.\."),
        ({"device": "tpu"}, "unknown device"),
    ):
        with pytest.raises(SettingsError, match=reason):
            fit(Tiny(), toy(9), toy(9), SGD, progress=False, **wrong)


class StopError(Exception):
    """Stands for whatever ends a run."""


class Ending(ImageDataset):
    """A data set that ends the run when the ``at``-th image is read."""

    def __init__(self, source: ImageDataset, at: int, how=None) -> None:
        vars(self).update(vars(source))
        self.left, self.how = at, how

    def item(self, index, generator=None):
        self.left -= 1
        if self.left < 0:
            if self.how is None:
                raise StopError
            self.how()
        return super().item(index, generator)


WHOLE = {"deletion": Deletion(), "device": "cpu", "progress": False}


@pytest.fixture(scope="module")
def whole():
    """A run that nothing stopped: its model and results."""
    model = TinyNormed()
    return model, fit(model, toy(40), toy(12, "val"), SGD, **WHOLE)


@pytest.mark.parametrize("at", [0, 23, 39, 40, 79, 119])
def test_a_stopped_run_goes_on_to_the_very_same_weights(tmp_path, whole, at):
    """40 images, 3 epochs in batches of 10: stopped within an epoch, with its last image, with the first of the next."""
    whole, results = whole
    settings = {**WHOLE, "save_every": 2}
    resume, model = tmp_path / "state.pt", TinyNormed()
    with pytest.raises(StopError):
        fit(model, Ending(toy(40), at), toy(12, "val"), SGD, resume=resume, **settings)
    assert resume.exists() == (at > 20)
    again = TinyNormed()
    assert fit(again, toy(40), toy(12, "val"), SGD, resume=resume, **settings) == results
    assert_same(weights(again), weights(whole))
    # What is finished is not done again.
    assert fit(TinyNormed(), Ending(toy(40), 0), toy(12, "val"), SGD, resume=resume, **settings) == results


@pytest.mark.parametrize("at", [4, 12])
def test_a_run_stopped_in_validation_goes_on(tmp_path, whole, at):
    whole, results = whole
    with pytest.raises(StopError):
        fit(TinyNormed(), toy(40), Ending(toy(12, "val"), at), SGD, resume=tmp_path / "s.pt", **WHOLE)
    again = TinyNormed()
    assert fit(again, toy(40), toy(12, "val"), SGD, resume=tmp_path / "s.pt", **WHOLE) == results
    assert_same(weights(again), weights(whole))


def _killed(folder):
    torch.set_num_threads(1)
    ending = Ending(toy(40), 61, how=lambda: os.kill(os.getpid(), signal.SIGKILL))
    fit(TinyNormed(), ending, toy(12, "val"), SGD, resume=folder / "s.pt", **WHOLE)


def test_a_killed_process_leaves_a_state_to_go_on_from(tmp_path, whole):
    process = multiprocessing.get_context("fork").Process(target=_killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["s.pt"]
    again = TinyNormed()
    assert fit(again, toy(40), toy(12, "val"), SGD, resume=tmp_path / "s.pt", **WHOLE) == whole[1]
    assert_same(weights(again), weights(whole[0]))


class Counting(TinyNormed):
    """Notes the number of threads that each pass has."""

    def forward(self, images):
        self.threads = {*vars(self).get("threads", ()), torch.get_num_threads()}
        return super().forward(images)


@pytest.mark.parametrize(("size", "expected"), [(8, {1}), (72, {3})])
def test_small_images_train_on_one_thread_so_that_cores_change_no_weight(size, expected):
    images = torch.rand(6, 3, size, size, generator=torch.Generator().manual_seed(0))
    train = ImageDataset("small", "train", [str(i) for i in range(6)], [0, 1] * 3, images.__getitem__, list("ab"), UNIT)
    net, before = Counting(), torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        fit(net, train, train, SGD, progress=False)
        assert net.threads == expected
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_two_processes_that_died_go_on_to_the_very_same_weights(tmp_path):
    """Both die in the second step of the second epoch, after the state of its first step was written."""
    settings, resume = {**WHOLE, "devices": 2, "save_every": 1}, tmp_path / "s.pt"
    results = fit(whole := TinyNormed(), toy(40), toy(12, "val"), SGD, **settings)
    with pytest.raises(ProcessExitedException):
        fit(TinyNormed(), Ending(toy(40), 28, how=lambda: os._exit(1)), toy(12, "val"), SGD, resume=resume, **settings)
    state = torch.load(resume, weights_only=True)["state"]
    assert (state["epoch"], state["step"], state["sums"][2]) == (1, 1, 10)
    again = TinyNormed()
    assert fit(again, toy(40), toy(12, "val"), SGD, resume=resume, **settings) == results
    assert_same(weights(again), weights(whole))


def test_a_kill_while_the_state_is_written_leaves_the_one_before(tmp_path, monkeypatch, whole):
    resume, calls = tmp_path / "s.pt", []
    settings = {**WHOLE, "resume": resume}

    def half(content, path):
        calls.append(1)
        if len(calls) == 2:
            Path(path).write_bytes(b"half of it")
            raise StopError
        return save(content, path)

    save = torch.save
    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(StopError):
        fit(TinyNormed(), toy(40), toy(12, "val"), SGD, **settings)
    again = TinyNormed()
    assert fit(again, toy(40), toy(12, "val"), SGD, **settings) == whole[1]
    assert_same(weights(again), weights(whole[0]))


def test_a_state_of_another_run_or_a_damaged_one_is_refused(tmp_path):
    resume = tmp_path / "s.pt"
    fit(Tiny(), toy(20), toy(6, "val"), SGD, resume=resume, device="cpu", progress=False)
    with pytest.raises(DamagedFileError, match="another run"):
        fit(Tiny(), toy(20), toy(6, "val"), SGD, seed=1, resume=resume, device="cpu", progress=False)
    resume.write_bytes(resume.read_bytes()[:900])
    with pytest.raises(DamagedFileError, match=r"s\.pt.*remove it"):
        fit(Tiny(), toy(20), toy(6, "val"), SGD, resume=resume, device="cpu", progress=False)


@pytest.mark.parametrize("workers", [1])
def test_loader_processes_do_not_change_the_result(workers):
    found = []
    for number in (0, workers):
        model = TinyNormed()
        results = fit(model, toy(30), toy(9, "val"), SGD, deletion=Deletion(), workers=number, device="cpu", progress=False)
        found.append((results, weights(model)))
    assert found[0][0] == found[1][0]
    assert_same(found[0][1], found[1][1])


def test_skipped_images_are_left_out_of_the_means():
    def read(index):
        if index % 2:
            raise ImageReadError("gone")
        return TensorImages(torch.full((1, 3, 8, 8), 0.5)).read(0)

    data = ImageDataset("x", "val", ["a", "b", "c", "d"], [0, 1, 2, 0], read, list("rgb"), UNIT, on_error="skip")
    share, _, _ = accuracy(model := Tiny(), loader_of(data, [[0, 1], [1, 3], [2]]))
    right = model(torch.full((1, 3, 8, 8), 0.5)).argmax().item()
    assert share == ((right == 0) + (right == 2)) / 2
    with pytest.raises(ImageReadError, match="none of the images"):
        accuracy(Tiny(), loader_of(data, [[1, 3]]))


def test_a_batch_without_one_readable_image_is_named():
    def read(index):
        if index:
            raise ImageReadError("gone")
        return torch.zeros(3, 8, 8)

    data = ImageDataset("photos", "train", ["a", "b", "c"], [0, 1, 2], read, list("rgb"), UNIT, on_error="skip")
    with pytest.raises(ImageReadError, match=r"photos: none of the images of a batch could be read: '[bc]'$"):
        fit(Tiny(), data, toy(6, "val"), SGD.model_copy(update={"batch_size": 1}), device="cpu", progress=False)


def test_accuracy_on_deleted_images_is_that_of_images_with_a_hole():
    data = toy(64, augment=False)
    seen = []

    class Watching(Tiny):
        def forward(self, x):
            seen.append(x.clone())
            return super().forward(x)

    loader = loader_of(data, [range(32), range(32, 64)])
    accuracy(model := Watching(), loader, Deletion(grid=4))
    first = torch.cat(seen)
    holes = (first == 0).all(1).unflatten(1, (4, 2)).unflatten(3, (4, 2)).all(4).all(2).flatten(1)  # (64, 16)
    assert (holes.sum(1) == 1).all()
    assert len(set(holes.int().argmax(1).tolist())) > 8
    accuracy(model, loader, Deletion(grid=4))
    assert torch.equal(torch.cat(seen[2:]), first)


def test_rehearsal_counts_what_is_left(tmp_path):
    found = rehearse(Tiny(), toy(55), toy(20, "val"), SGD, deletion=Deletion(), device="cpu")
    assert found.steps == 3 * 6
    assert found.images_per_second > 10
    assert 0 < found.hours < 0.1
    assert 0.05 < found.memory_gb < 100
    resume = tmp_path / "s.pt"
    with pytest.raises(StopError):
        fit(Tiny(), Ending(toy(55), 80), toy(20, "val"), SGD, resume=resume, device="cpu", progress=False, save_every=1)
    state = resume.read_bytes()
    assert rehearse(Tiny(), toy(55), toy(20, "val"), SGD, resume=resume, device="cpu").steps == 3 * 6 - 8
    assert resume.read_bytes() == state


def test_the_progress_bar_shows_loss_accuracy_and_time_left(capsys):
    fit(Tiny(), toy(20), toy(6, "val"), SGD, device="cpu", label="fine-tuning: tiny")
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("fine-tuning: tiny", "6/6", "val_accuracy=", "val_top5=", "loss=", "accuracy="))


@pytest.fixture(scope="module")
def digits():
    return first(create_dataset("mnist5k", "train"), 192), first(create_dataset("mnist5k", "val"), 64)


def test_no_label_is_used_and_the_net_with_a_hole_comes_closer_to_what_it_said(digits):
    train, val = digits
    torch.manual_seed(0)
    net = create_model("mini_resnet8")
    fit(net, train, val, Recipe(epochs=2, batch_size=32), progress=False)
    before = copy.deepcopy(net)
    recipe, deletion = Recipe(epochs=3, batch_size=32, lr=1e-3, loss="distill"), Deletion(grid=4)
    fit(net, train, val, recipe, deletion=deletion, progress=False)
    other = copy.deepcopy(before)
    shuffled = [copy.copy(part) for part in digits]
    for part in shuffled:
        part.targets = [(target + 3) % 10 for target in part.targets]
    fit(other, *shuffled, recipe, deletion=deletion, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))

    images = torch.stack([val[index][0] for index in range(len(val))])
    holed = images.clone()
    holed[:, :, 8:16, 8:16] = 0
    with torch.no_grad():
        said = before(images).softmax(1)
        divergence = [float(F.kl_div(F.log_softmax(model(holed), 1), said, reduction="batchmean")) for model in (before, net)]
        agree = (net(images).argmax(1) == said.argmax(1)).float().mean()
    assert divergence[1] < divergence[0]
    assert agree > 0.9
