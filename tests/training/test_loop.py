"""The training loop: draws, losses, one golden step, precisions, processes, resuming after a kill."""

import copy
import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing import ProcessExitedException

from idsds.common.files import DamagedFileError
from idsds.common.normalisation import UNIT
from idsds.datasets import create_dataset
from idsds.datasets.base import ImageDataset, ImageReadError, first
from idsds.models import create_model
from idsds.training.predict import accuracy
from idsds.training.recipes import Deletion, Recipe
from idsds.training.steps import loader_of
from tests.training.nets import SGD, Tiny, TinyNormed, assert_same, fit, rehearse, toy, weights


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


def test_a_batch_without_one_readable_image_is_named():
    def read(index):
        if index:
            raise ImageReadError("gone")
        return torch.zeros(3, 8, 8)

    data = ImageDataset("photos", "train", ["a", "b", "c"], [0, 1, 2], read, list("rgb"), UNIT, on_error="skip")
    with pytest.raises(ImageReadError, match=r"photos: none of the images of a batch could be read: '[bc]'$"):
        fit(Tiny(), data, toy(6, "val"), SGD.model_copy(update={"batch_size": 1}), device="cpu", progress=False)


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
