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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import Dataset

from idsds.common.files import DamagedFileError, atomic
from idsds.common.hashing import digest
from idsds.common.progress import Progress
from idsds.common.randomness import generator
from idsds.datasets.base import ImageDataset, ImageReadError, collate
from idsds.models.base import describe
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
    """Everything that a training run needs apart from the model.

    Args:
        train: items (image, target, image_id), augmented if the data set has an augmentation.
        val: like ``train``; the epoch is chosen on it, so it must not be the test split.
        recipe: optimiser, schedule, epochs, and the batch size over all devices together.
        deletion: grid and baseline of in-domain fine-tuning; None for ordinary training.
        seed: seed of the image order, augmentation, deletions and dropout.
        machine: the hardware, and how it is used.
        resume: file for the run's state; if it exists, the run resumes from it. Remove it once the result is saved.
    """

    train: Any
    val: Any
    recipe: Recipe
    deletion: Deletion | None = None
    seed: int = 0
    machine: Machine = field(default_factory=Machine)
    resume: Path | None = None
    label: str = "training"
    progress: bool = True

    @property
    def run(self) -> str:
        """The settings that a saved state must share for a run to resume from it."""
        return digest([self.recipe.address, self.deletion and self.deletion.model_dump(), self.seed, len(self.train), len(self.val)])


def fit(model: nn.Module, plan: Plan) -> list[EpochResult]:
    """Train ``model`` in place; it ends with the weights of the epoch with the highest accuracy on intact validation images.

    Args:
        model: made by ``create_model``; its entry decides the loss.

    Returns:
        One result per epoch.
    """
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.pt" if forks(plan.machine.devices) else None  # forked processes train copies of the model
        results = plan.machine.launch(_fit, model, plan, weights)
        if weights is not None:
            model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    model.eval()
    return [EpochResult(**result) for result in results]


@torch.no_grad()
def _probabilities(model: nn.Module, images: Tensor) -> Tensor:
    return model(images).float().softmax(dim=1)


class Run:
    """One process's part of a run: the model on its device, its optimiser and schedule, and the state."""

    def __init__(self, fabric: Fabric, model: nn.Module, plan: Plan) -> None:
        self.fabric, self.model, self.plan = fabric, model, plan
        model.to(fabric.device, memory_format=plan.machine.layout)  # type: ignore[call-overload]
        self.teacher: nn.Module | None = None
        self.loss = self.val_loss = describe(model).loss
        if plan.recipe.loss == "distill":
            self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
            self.loss, self.val_loss = "distill", "cross_entropy"
        self.net, self.optimizer = fabric.setup(model, make_optimizer(model, plan.recipe))
        self.steps = len(shares(len(plan.train), plan.recipe.batch_size, seed=plan.seed, epoch=0, world=fabric.world_size))
        self.scheduler = make_scheduler(self.optimizer, plan.recipe, self.steps)
        self.state = self.load()

    def batches(self, epoch: int, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield this process's part of each step from ``first`` on: images (B, 3, H, W) with patches deleted, targets (B,)."""
        plan, fabric, train = self.plan, self.fabric, self.plan.train
        if isinstance(train, ImageDataset) and train.augment is not None:
            train = train.augmented(plan.seed, epoch)
        chosen = shares(len(train), plan.recipe.batch_size, seed=plan.seed, epoch=epoch, rank=fabric.global_rank, world=fabric.world_size)
        loader = loader_of(train, chosen[first:], plan.machine.workers, pin=fabric.device.type == "cuda")
        for (images, targets, image_ids), wanted in zip(loader, chosen[first:], strict=True):
            if not len(targets):  # without images there is no loss, and other processes wait for its gradient
                names = ", ".join(repr(plan.train.image_ids[index]) for index in wanted)
                raise ImageReadError(f"{plan.train.name}: none of the images of a batch could be read: {names}")
            if max(images.shape[-2:]) <= SMALL:  # faster there, and the number of cores changes no weight
                torch.set_num_threads(1)
            images = images.to(fabric.device, non_blocking=True, memory_format=plan.machine.layout)
            targets = targets.to(fabric.device, non_blocking=True)
            if self.teacher is not None:
                targets = _probabilities(self.teacher, images)  # (B, K), of the intact images
            if plan.deletion is not None:
                images = deleted_at_random(images, image_ids, plan.deletion, seed=plan.seed, epoch=epoch)
            yield images, targets

    def step(self, images: Tensor, targets: Tensor) -> tuple[float, int]:
        """Take one optimiser step, see :func:`~idsds.training.steps.training_step`."""
        how = {"loss": self.loss, "clip": self.plan.recipe.clip, "accumulate": self.plan.machine.accumulate}
        return training_step(self.fabric, self.net, self.optimizer, images, targets, **how)  # type: ignore[arg-type]

    def validate(self, batches: int | None = None) -> tuple[float, float, float]:
        """Return accuracy, loss and top-5 accuracy on all validation images or the first batches; a teacher's predictions are targets."""
        plan, fabric = self.plan, self.fabric
        mine = range(len(plan.val))[fabric.global_rank :: fabric.world_size]
        size = max(1, plan.recipe.batch_size // fabric.world_size)
        chosen = [mine[start : start + size] for start in range(0, len(mine), size)]
        loader: Any = loader_of(plan.val, chosen[:batches], plan.machine.workers, pin=fabric.device.type == "cuda")
        if (teacher := self.teacher) is not None:
            read = ((images.to(fabric.device), image_ids) for images, _, image_ids in loader if image_ids)
            loader = ((images, _probabilities(teacher, images).argmax(dim=1), image_ids) for images, image_ids in read)
        return accuracy(self.model, loader, loss=self.val_loss, fabric=fabric)

    def finish_epoch(self) -> None:
        """Validate, and keep the weights if they are the best so far."""
        state = self.state
        if self.fabric.world_size > 1:  # every process takes rank 0's running statistics, as in data-parallel training
            for buffer in self.model.buffers():
                buffer.data.copy_(self.fabric.broadcast(buffer.data, src=0))
        summed, correct, seen = over_processes(self.fabric, torch.tensor(state.sums, dtype=torch.float64))
        val_accuracy, val_loss, near = self.validate()
        state.results.append(asdict(EpochResult(state.epoch, summed / seen, correct / seen, val_loss, val_accuracy, near)))
        if state.best is None or (val_accuracy, -val_loss) > state.best:
            state.best = (val_accuracy, -val_loss)
            state.best_weights = {key: value.detach().to("cpu", copy=True) for key, value in self.model.state_dict().items()}
        state.epoch, state.step, state.sums = state.epoch + 1, 0, [0.0, 0.0, 0.0]

    def parts(self) -> dict[str, Any]:
        """Return the parts whose state is saved."""
        # The precision has the loss scale of fp16.
        precision = self.fabric.strategy.precision
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler, "precision": precision}

    def save(self) -> None:
        """Write the state atomically, on rank 0 only; rank 0 then holds the sums of all processes."""
        if self.plan.resume is None:
            return
        sums = over_processes(self.fabric, torch.tensor(self.state.sums, dtype=torch.float64))
        self.state.sums = sums if self.fabric.is_global_zero else [0.0, 0.0, 0.0]
        if self.fabric.is_global_zero:
            content = {"state": vars(self.state), **{name: part.state_dict() for name, part in self.parts().items()}}
            with atomic(self.plan.resume) as partial:
                torch.save(content, partial)
        self.fabric.barrier()

    def load(self) -> TrainingState:
        """Restore and return the state of a stopped run; a new state if there is none."""
        resume, run = self.plan.resume, self.plan.run
        if resume is None or not resume.is_file():
            return TrainingState(run)
        try:
            content = torch.load(resume, map_location="cpu", weights_only=True)
            state = TrainingState(**content["state"])
        except Exception as error:  # a damaged or foreign file may raise anything
            raise DamagedFileError(f"cannot continue from {str(resume)!r}: {error}; remove it to start again") from error
        if state.run != run:
            raise DamagedFileError(
                f"{str(resume)!r} belongs to another run (recipe, deletion, seed or number of images); remove it to start again"
            )
        for name, part in self.parts().items():
            part.load_state_dict(content[name])
        if not self.fabric.is_global_zero:
            state.sums = [0.0, 0.0, 0.0]
        return state


def _fit(fabric: Fabric, model: nn.Module, plan: Plan, weights: Path | None) -> list[dict[str, float]]:
    run, recipe = Run(fabric, model, plan), plan.recipe
    state, steps = run.state, run.steps
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
            run.net.train()
            for images, targets in run.batches(state.epoch, first=state.step):
                key = ("training", state.epoch, state.step, fabric.global_rank)
                torch.manual_seed(generator(plan.seed, *key).initial_seed())  # dropout
                summed, correct = run.step(images, targets)
                advance(run.scheduler, recipe, every="step")
                state.sums = [a + b for a, b in zip(state.sums, (summed, correct, len(targets)), strict=True)]
                state.step += 1
                bar.update()
                _show(bar, state)
                if state.step % plan.machine.save_every == 0 and state.step < steps:
                    run.save()
            advance(run.scheduler, recipe, every="epoch")
            run.finish_epoch()
            _show(bar, state)
            run.save()
    model.load_state_dict(state.best_weights)
    if weights is not None and fabric.is_global_zero:
        torch.save(state.best_weights, weights)
    return state.results


def _show(bar: Progress, state: TrainingState) -> None:
    """Show loss and accuracy of the epoch so far, or of the last one, on the progress bar."""
    last = state.results[-1] if state.results else {}
    names = {"loss": "train_loss", "accuracy": "train_accuracy", "val_accuracy": "val_accuracy", "val_top5": "val_top5"}
    shown = {name: last.get(key) for name, key in names.items()}
    if state.sums[2]:
        shown |= {"loss": state.sums[0] / state.sums[2], "accuracy": state.sums[1] / state.sums[2]}
    bar.set_postfix({key: f"{value:.3f}" for key, value in shown.items() if value is not None}, refresh=False)


@dataclass(frozen=True)
class Rehearsal:
    """The work left in a run and the resources it needs.

    Args:
        steps, hours: what is left, without the work already done according to the state in the plan's ``resume``.
        images_per_second: training images, over all devices.
        memory_gb: peak memory of a device in GB (10^9 bytes; on a CPU, that of the process).
    """

    steps: int
    images_per_second: float
    hours: float
    memory_gb: float


def rehearse(model: nn.Module, plan: Plan) -> Rehearsal:
    """Time three batches of training and of validation, each after a warm-up batch, and extrapolate.

    The model's weights change, but nothing is written.
    """
    return plan.machine.launch(_rehearse, model, plan)


def _rehearse(fabric: Fabric, model: nn.Module, plan: Plan) -> Rehearsal:
    run, cuda, measured = Run(fabric, model, plan), fabric.device.type == "cuda", 3
    run.net.train()
    seconds = images = 0.0
    started = time.perf_counter()
    for number, (part, targets) in enumerate(run.batches(0)):
        run.step(part, targets)
        if cuda:
            torch.cuda.synchronize()
        if number == 0 and run.steps > 1:  # the first batch also starts the loader and selects kernels
            started = time.perf_counter()
            continue
        seconds, images = time.perf_counter() - started, images + len(targets)
        if number == measured:
            break
    seconds, images = over_processes(fabric, torch.tensor([seconds / fabric.world_size, images], dtype=torch.float64))
    started = time.perf_counter()
    run.validate(batches=measured)
    seen = min(len(plan.val), measured * plan.recipe.batch_size)
    of_validation = (time.perf_counter() - started) / seen
    left = plan.recipe.epochs - run.state.epoch
    to_train = left * len(plan.train) - run.state.step * plan.recipe.batch_size
    unit = 1 if sys.platform == "darwin" else 1024  # of the resident memory, in bytes
    peak = torch.cuda.max_memory_allocated() if cuda else unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Rehearsal(
        steps=left * run.steps - run.state.step,
        images_per_second=images / seconds,
        hours=(to_train * seconds / images + left * len(plan.val) * of_validation) / 3600,
        memory_gb=peak / 1e9,
    )


def batches(dataset: Dataset, indices: Sequence[int], size: int) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Yield batches of (images (B, 3, H, W), targets (B,), image ids) in the order of ``indices``."""
    for start in range(0, len(indices), size):
        yield collate([dataset[index] for index in indices[start : start + size]])
