"""The training loop of ordinary training and in-domain fine-tuning, on 1..N devices.

In-domain fine-tuning (Hesse, Schaub-Meyer, Roth, NeurIPS 2024): half of the images keep all patches; in each of the others, one random
patch of the grid is replaced by the baseline.

Random numbers depend on (seed, epoch, image id), for dropout on (seed, epoch, step, rank): a killed run resumes from its last saved state
and ends with exactly the weights of an uninterrupted run, and N devices see the same images as one.
"""

from __future__ import annotations

import copy
import math
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from idsds.common.files import DamagedFileError, atomic
from idsds.common.hashing import digest
from idsds.common.progress import Progress
from idsds.common.randomness import generator
from idsds.datasets.base import ImageDataset, ImageReadError, collate
from idsds.models.base import Loss, describe
from idsds.training.launch import Machine, forks
from idsds.training.predict import accuracy
from idsds.training.recipes import Deletion, Recipe
from idsds.training.steps import (
    advance,
    deleted_at_random,
    loader_of,
    make_optimizer,
    make_scheduler,
    over_processes,
    shares,
    training_step,
)

# Up to this many pixels a side, training uses one CPU thread.
SMALL = 64


@dataclass(frozen=True)
class EpochResult:
    """Mean loss and accuracy in [0, 1] of one epoch, for training and for intact validation images, for the latter also top-5."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    val_top5: float = math.nan


@dataclass
class TrainingState:
    """A run's state, which together with the keyed randomness determines the rest of the run."""

    run: str
    epoch: int = 0
    step: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])  # loss, correct predictions and images of the epoch so far
    results: list[dict[str, float]] = field(default_factory=list)
    best: tuple[float, float] | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Everything that a training run needs apart from the model, see :func:`fit`."""

    train: Any
    val: Any
    recipe: Recipe
    deletion: Deletion | None
    seed: int
    machine: Machine
    resume: Path | None = None
    label: str = ""
    progress: bool = False
    teacher: nn.Module | None = None

    @property
    def run(self) -> str:
        """The settings that a saved state must share for a run to resume from it."""
        return digest([self.recipe.address, self.deletion and self.deletion.model_dump(), self.seed, len(self.train), len(self.val)])

    def epoch(self, epoch: int) -> Dataset:
        """Return one epoch's training images."""
        if isinstance(self.train, ImageDataset) and self.train.augment is not None:
            return self.train.augmented(self.seed, epoch)
        return self.train

    def batches(self, fabric: Fabric, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's part of each step from ``first`` on: images (B, 3, H, W) with patches deleted, targets (B,)."""
        chosen = shares(
            len(self.train), self.recipe.batch_size, seed=self.seed, epoch=epoch, rank=fabric.global_rank, world=fabric.world_size
        )
        loader = loader_of(self.epoch(epoch), chosen[first:], self.machine.workers, pin=fabric.device.type == "cuda")
        for (images, targets, image_ids), wanted in zip(loader, chosen[first:], strict=True):
            if not len(targets):  # without images there is no loss, and other processes wait for its gradient
                names = ", ".join(repr(self.train.image_ids[index]) for index in wanted)
                raise ImageReadError(f"{self.train.name}: none of the images of a batch could be read: {names}")
            if max(images.shape[-2:]) <= SMALL:  # faster there, and the number of cores changes no weight
                torch.set_num_threads(1)
            images = images.to(fabric.device, non_blocking=True, memory_format=self.machine.layout)
            targets = targets.to(fabric.device, non_blocking=True)
            if self.teacher is not None:
                targets = _probabilities(self.teacher, images)  # (B, K), of the intact images
            if self.deletion is not None:
                images = deleted_at_random(images, image_ids, self.deletion, seed=self.seed, epoch=epoch)
            yield images, targets

    def steps(self, world: int) -> int:
        """Return the number of steps per epoch."""
        return len(shares(len(self.train), self.recipe.batch_size, seed=self.seed, epoch=0, world=world))

    def validation(self, fabric: Fabric, batches: int | None = None) -> DataLoader | Iterator:
        """Return a loader of this process's validation images or first batches; with a teacher, its predictions are the targets."""
        mine = list(range(len(self.val)))[fabric.global_rank :: fabric.world_size]
        size = max(1, self.recipe.batch_size // fabric.world_size)
        chosen = [mine[start : start + size] for start in range(0, len(mine), size)]
        loader = loader_of(self.val, chosen[:batches], self.machine.workers, pin=fabric.device.type == "cuda")
        if self.teacher is None:
            return loader
        return (
            (images, _probabilities(self.teacher, images.to(fabric.device)).argmax(dim=1), image_ids)
            for images, _, image_ids in loader
            if image_ids
        )


@torch.no_grad()
def _probabilities(model: nn.Module, images: Tensor) -> Tensor:
    return model(images).float().softmax(dim=1)


def _with_teacher(plan: Plan, model: nn.Module) -> tuple[Plan, Loss]:
    """Return the plan, with a frozen copy of the current model if the recipe distils it, and the training loss."""
    if plan.recipe.loss == "labels":
        return plan, describe(model).loss
    teacher = copy.deepcopy(model).eval().requires_grad_(False)
    return replace(plan, teacher=teacher), "distill"


def fit(
    model: nn.Module,
    train: Dataset,
    val: Dataset,
    recipe: Recipe,
    *,
    deletion: Deletion | None = None,
    seed: int = 0,
    resume: Path | None = None,
    label: str = "training",
    progress: bool = True,
    **machine: Any,
) -> list[EpochResult]:
    """Train ``model`` in place; it ends with the weights of the epoch with the highest accuracy on intact validation images.

    Args:
        model: made by ``create_model``; its entry decides the loss.
        train: items (image, target, image_id), augmented if the data set has an augmentation.
        val: like ``train``; the epoch is chosen on it, so it must not be the test split.
        recipe: optimiser, schedule, epochs, and the batch size over all devices together.
        deletion: grid and baseline of in-domain fine-tuning; None for ordinary training.
        seed: seed of the image order, augmentation, deletions and dropout.
        resume: file for the run's state; if it exists, the run resumes from it. Remove it once the result is saved.
        machine: the hardware, such as ``device="cuda"``; the names are those of :class:`~idsds.training.launch.Machine`.

    Returns:
        One result per epoch.
    """
    on = Machine(**machine)
    plan = Plan(train, val, recipe, deletion, seed, on, resume, label, progress)
    if not forks(on.devices):
        return [EpochResult(**result) for result in on.launch(_fit, model, plan, None)]
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt"  # forked processes train copies of the model
        results = on.launch(_fit, model, plan, weights)
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    model.eval()
    return [EpochResult(**result) for result in results]


def _fit(fabric: Fabric, model: nn.Module, plan: Plan, weights: Path | None) -> list[dict[str, float]]:
    recipe, rank = plan.recipe, fabric.global_rank
    model.to(fabric.device, memory_format=plan.machine.layout)  # type: ignore[call-overload]
    plan, loss = _with_teacher(plan, model)
    net, optimizer = fabric.setup(model, make_optimizer(model, recipe))
    steps = plan.steps(fabric.world_size)
    scheduler = make_scheduler(optimizer, recipe, steps)
    state = _load(fabric, plan, model, optimizer, scheduler)
    bar = Progress(
        total=recipe.epochs * steps,
        initial=state.epoch * steps + state.step,
        desc=plan.label,
        unit="step",
        disable=not (plan.progress and fabric.is_global_zero),
        mininterval=1,
    )
    with torch.random.fork_rng(devices=[]), bar:
        while state.epoch < recipe.epochs:
            net.train()
            for images, targets in plan.batches(fabric, state.epoch, first=state.step):
                torch.manual_seed(generator(plan.seed, "training", state.epoch, state.step, rank).initial_seed())  # dropout
                summed, correct = training_step(
                    fabric, net, optimizer, images, targets, loss=loss, clip=recipe.clip, accumulate=plan.machine.accumulate
                )
                advance(scheduler, recipe, every="step")
                state.sums = [a + b for a, b in zip(state.sums, (summed, correct, len(targets)), strict=True)]
                state.step += 1
                bar.update()
                _show(bar, state)
                if state.step % plan.machine.save_every == 0 and state.step < steps:
                    _save(fabric, plan, state, model, optimizer, scheduler)
            advance(scheduler, recipe, every="epoch")
            _share_buffers(fabric, model)
            _finish_epoch(fabric, plan, state, model)
            _show(bar, state)
            _save(fabric, plan, state, model, optimizer, scheduler)
    model.load_state_dict(state.best_weights)
    model.eval()
    if weights is not None and fabric.is_global_zero:
        torch.save(state.best_weights, weights)
    return state.results


def _finish_epoch(fabric: Fabric, plan: Plan, state: TrainingState, model: nn.Module) -> None:
    loss = describe(model).loss if plan.teacher is None else "cross_entropy"
    summed, correct, seen = over_processes(fabric, torch.tensor(state.sums, dtype=torch.float64))
    val_accuracy, val_loss, near = accuracy(model, plan.validation(fabric), loss=loss, fabric=fabric)
    state.results.append(asdict(EpochResult(state.epoch, summed / seen, correct / seen, val_loss, val_accuracy, near)))
    if state.best is None or (val_accuracy, -val_loss) > state.best:
        state.best = (val_accuracy, -val_loss)
        state.best_weights = {key: value.detach().to("cpu", copy=True) for key, value in model.state_dict().items()}
    state.epoch, state.step, state.sums = state.epoch + 1, 0, [0.0, 0.0, 0.0]


def _show(bar: Progress, state: TrainingState) -> None:
    """Show loss and accuracy of the epoch so far, or of the last one, on the progress bar."""
    last = state.results[-1] if state.results else {}
    names = {"loss": "train_loss", "accuracy": "train_accuracy", "val_accuracy": "val_accuracy", "val_top5": "val_top5"}
    shown = {name: last.get(key) for name, key in names.items()}
    if state.sums[2]:
        shown |= {"loss": state.sums[0] / state.sums[2], "accuracy": state.sums[1] / state.sums[2]}
    bar.set_postfix({key: f"{value:.3f}" for key, value in shown.items() if value is not None}, refresh=False)


def _share_buffers(fabric: Fabric, model: nn.Module) -> None:
    """Broadcast rank 0's running statistics to every process, as data-parallel training does."""
    if fabric.world_size > 1:
        for buffer in model.buffers():
            buffer.data.copy_(fabric.broadcast(buffer.data, src=0))


def _save(fabric: Fabric, plan: Plan, state: TrainingState, model: nn.Module, optimizer: Any, scheduler: Any) -> None:
    """Write the state atomically, on rank 0 only; rank 0 then holds the sums of all processes."""
    if plan.resume is None:
        return
    sums = over_processes(fabric, torch.tensor(state.sums, dtype=torch.float64))
    state.sums = sums if fabric.is_global_zero else [0.0, 0.0, 0.0]
    if fabric.is_global_zero:
        content = {
            "state": vars(state),
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scheduler": scheduler.state_dict(),
            "precision": fabric.strategy.precision.state_dict(),  # loss scale of fp16
        }
        with atomic(plan.resume) as partial:
            torch.save(content, partial)
    fabric.barrier()


def _load(fabric: Fabric, plan: Plan, model: nn.Module, optimizer: Any, scheduler: Any) -> TrainingState:
    """Restore and return the state of a stopped run; a new state if there is none."""
    if plan.resume is None or not plan.resume.is_file():
        return TrainingState(plan.run)
    try:
        content = torch.load(plan.resume, map_location="cpu", weights_only=True)
        state = TrainingState(**content["state"])
    except Exception as error:  # a damaged or foreign file may raise anything
        raise DamagedFileError(f"cannot continue from {str(plan.resume)!r}: {error}; remove it to start again") from error
    if state.run != plan.run:
        raise DamagedFileError(
            f"{str(plan.resume)!r} belongs to another run (recipe, deletion, seed or number of images); remove it to start again"
        )
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    scheduler.load_state_dict(content["scheduler"])
    fabric.strategy.precision.load_state_dict(content["precision"])
    if not fabric.is_global_zero:
        state.sums = [0.0, 0.0, 0.0]
    return state


@dataclass(frozen=True)
class Rehearsal:
    """The measurements of a dry run: the work left in a run and the resources it needs."""

    steps: int
    images_per_second: float
    hours: float
    memory_gb: float


def rehearse(
    model: nn.Module,
    train: Dataset,
    val: Dataset,
    recipe: Recipe,
    *,
    deletion: Deletion | None = None,
    seed: int = 0,
    resume: Path | None = None,
    measured: int = 3,
    **machine: Any,
) -> Rehearsal:
    """Time ``measured`` batches of training and of validation, each after a warm-up batch, and extrapolate.

    Takes the arguments of :func:`fit`. The model's weights change, but nothing is written; ``hours`` excludes work already done according
    to a state in ``resume``.

    Returns:
        Steps and hours left, training images per second over all devices, and the peak memory of a device in GB (10^9 bytes; on a CPU,
        that of the process).
    """
    plan = Plan(train, val, recipe, deletion, seed, Machine(**machine), resume)
    return Rehearsal(**plan.machine.launch(_rehearse, model, plan, measured))


def _rehearse(fabric: Fabric, model: nn.Module, plan: Plan, measured: int) -> dict[str, float]:
    model.to(fabric.device, memory_format=plan.machine.layout)  # type: ignore[call-overload]
    plan, loss = _with_teacher(plan, model)
    net, optimizer = fabric.setup(model, make_optimizer(model, plan.recipe))
    scheduler = make_scheduler(optimizer, plan.recipe, plan.steps(fabric.world_size))
    state = TrainingState(plan.run) if plan.resume is None else _load(fabric, plan, model, optimizer, scheduler)
    per_epoch = plan.steps(fabric.world_size)
    cuda = fabric.device.type == "cuda"
    net.train()
    seconds = images = 0.0
    started = time.perf_counter()
    for number, (part, targets) in enumerate(plan.batches(fabric, 0)):
        training_step(fabric, net, optimizer, part, targets, loss=loss, clip=plan.recipe.clip, accumulate=plan.machine.accumulate)
        if cuda:
            torch.cuda.synchronize()
        if number == 0 and per_epoch > 1:  # the first batch also starts the loader and selects kernels
            started = time.perf_counter()
            continue
        seconds, images = time.perf_counter() - started, images + len(targets)
        if number == measured:
            break
    seconds, images = over_processes(fabric, torch.tensor([seconds / fabric.world_size, images], dtype=torch.float64))
    loader = plan.validation(fabric, batches=measured)
    started = time.perf_counter()
    accuracy(model, loader, loss="cross_entropy" if plan.teacher is not None else loss, fabric=fabric)
    seen = min(len(plan.val), measured * plan.recipe.batch_size)
    of_validation = (time.perf_counter() - started) / seen
    left = plan.recipe.epochs - state.epoch
    to_train = left * len(plan.train) - state.step * plan.recipe.batch_size
    peak = (
        torch.cuda.max_memory_allocated()
        if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    )
    return {
        "steps": left * per_epoch - state.step,
        "images_per_second": images / seconds,
        "hours": (to_train * seconds / images + left * len(plan.val) * of_validation) / 3600,
        "memory_gb": peak / 1e9,
    }


def batches(dataset: Dataset, indices: Sequence[int], size: int) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Yield batches of (images (B, 3, H, W), targets (B,), image ids) in the order of ``indices``."""
    for start in range(0, len(indices), size):
        yield collate([dataset[index] for index in indices[start : start + size]])
