"""One training loop for everything that is trained: ordinary training and in-domain fine-tuning.

In-domain fine-tuning (Hesse, Schaub-Meyer, Roth, NeurIPS 2024): half of the images keep all patches, the others lose exactly one random
patch of the grid, replaced by the baseline. What is drawn for an image depends on (seed, epoch, image id) alone.
"""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from idsds.datasets.base import collate
from idsds.interventions import baseline_images, delete_patches
from idsds.models.base import Loss, describe
from idsds.randomness import generator
from idsds.settings import Deletion, Recipe


@dataclass(frozen=True)
class EpochResult:
    """What one epoch ended with: mean training loss, and loss and accuracy (share in [0, 1]) on intact validation images."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float


def drawn_patches(image_ids: Sequence[str], grid: int, *, seed: int, epoch: int) -> Tensor:
    """Which patch each image loses, (B,): -1 (none) for half of them, else a number in [0, grid * grid)."""
    patches = []
    for image_id in image_ids:
        word = hashlib.blake2b(f"deletion {seed} {epoch} {image_id}".encode(), digest_size=8).digest()
        keep, number = word[0] & 1, int.from_bytes(word[1:], "big")
        patches.append(-1 if keep else number % (grid * grid))
    return torch.tensor(patches)


def loss_of(logits: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """Mean cross entropy, or the mean binary cross entropy of all B * K logits against one-hot targets (B-cos)."""
    if loss == "binary_cross_entropy":
        return F.binary_cross_entropy_with_logits(logits, F.one_hot(targets, logits.shape[1]).to(logits.dtype))
    return F.cross_entropy(logits, targets)


@torch.inference_mode()
def accuracy(
    model: nn.Module, loader: DataLoader, deletion: Deletion | None = None, *, loss: Loss = "cross_entropy"
) -> tuple[float, float]:
    """Accuracy (share in [0, 1]) and mean loss on a split.

    Args:
        model: returns logits (B, K); is put into eval mode and left as it was.
        loader: batches of (images, targets, image ids).
        deletion: None: intact images; else each image loses one patch, the same one at every call.
        loss: which loss to report.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    correct, total, summed = 0, 0, 0.0
    for images, targets, image_ids in loader:
        images, targets = images.to(device), targets.to(device)
        if deletion is not None:
            numbers = [int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8).digest(), "big") for i in image_ids]
            patches = torch.tensor([number % deletion.grid**2 for number in numbers])
            replacement = baseline_images(images, deletion.baseline, image_ids=image_ids)
            images = delete_patches(images, replacement, patches, deletion.grid)
        logits = model(images).float()
        correct += int((logits.argmax(dim=1) == targets).sum())
        summed += float(loss_of(logits, targets, loss)) * len(targets)
        total += len(targets)
    model.train(training)
    return correct / total, summed / total


def fit(
    model: nn.Module,
    train: Dataset,
    val: Dataset,
    recipe: Recipe,
    *,
    deletion: Deletion | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "32-true",
    label: str = "training",
    progress: bool = True,
) -> list[EpochResult]:
    """Train in place; the weights left in ``model`` are those of the epoch with the best accuracy on intact validation images.

    Args:
        model: made by ``create_model``; its entry decides the loss.
        train: items (image, target, image_id).
        val: as ``train``; it chooses the epoch, so it must not be the test split.
        recipe: optimiser, schedule, epochs.
        deletion: grid and baseline of in-domain fine-tuning; None: ordinary training.
        seed: of the order of the images, the deletions and dropout.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: as lightning-fabric names it: ``32-true``, ``bf16-mixed``, ``16-mixed``.
        label: what the progress bar says.
        progress: whether to show it.

    Returns:
        One result per epoch.
    """
    fabric = Fabric(accelerator=device, devices=1, precision=precision)
    loss = describe(model).loss
    model.to(memory_format=torch.channels_last)  # up to twice as fast, on a CPU too
    net, optimizer = fabric.setup(model, _optimizer(model, recipe))
    train_loader = DataLoader(train, recipe.batch_size, shuffle=True, collate_fn=collate, generator=(order := torch.Generator()))
    val_loader = DataLoader(val, 256, collate_fn=collate)
    scheduler = _scheduler(optimizer, recipe, steps=len(train_loader))
    results: list[EpochResult] = []
    best: tuple[float, float] | None = None
    best_state = {}
    bar = tqdm(total=recipe.epochs * len(train_loader), desc=label, unit="step", disable=not progress, mininterval=1)
    with torch.random.fork_rng(devices=[]), bar:
        for epoch in range(recipe.epochs):
            torch.manual_seed(generator(seed, "training", epoch).initial_seed())  # dropout
            order.manual_seed(generator(seed, "order", epoch).initial_seed())
            net.train()
            summed, seen = 0.0, 0
            for images, targets, image_ids in fabric.setup_dataloaders(train_loader, use_distributed_sampler=False):
                if deletion is not None:
                    patches = drawn_patches(image_ids, deletion.grid, seed=seed, epoch=epoch)
                    replacement = baseline_images(images, deletion.baseline, seed=seed, image_ids=image_ids)
                    images = delete_patches(images, replacement, patches, deletion.grid)
                optimizer.zero_grad()
                value = loss_of(net(images.contiguous(memory_format=torch.channels_last)), targets, loss)
                fabric.backward(value)
                if recipe.clip:
                    fabric.clip_gradients(net, optimizer, max_norm=recipe.clip)
                optimizer.step()
                _step(scheduler, recipe, every="step")
                summed, seen = summed + float(value.detach()) * len(targets), seen + len(targets)
                bar.update()
            _step(scheduler, recipe, every="epoch")
            val_accuracy, val_loss = accuracy(net, val_loader, loss=loss)
            results.append(EpochResult(epoch, summed / seen, val_loss, val_accuracy))
            bar.set_postfix(loss=f"{summed / seen:.3f}", val_accuracy=f"{val_accuracy:.3f}")
            if best is None or (val_accuracy, -val_loss) > best:
                best, best_state = (val_accuracy, -val_loss), copy.deepcopy(model.state_dict())
    model.load_state_dict(best_state)
    model.eval()
    return results


def _optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)


def _scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    if recipe.schedule == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=max(2, recipe.epochs * steps), pct_start=0.25)
    return torch.optim.lr_scheduler.StepLR(optimizer, recipe.step_epochs, recipe.step_factor)


def _step(scheduler: torch.optim.lr_scheduler.LRScheduler, recipe: Recipe, every: str) -> None:
    """One-cycle schedules go by the step, step schedules by the epoch."""
    if (recipe.schedule == "one_cycle") == (every == "step"):
        with warnings.catch_warnings():
            # With fp16 the scaler may skip the first optimiser step, which torch warns about.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            scheduler.step()


def batches(dataset: Dataset, indices: Sequence[int], size: int) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Batches of (images (B, 3, H, W), targets (B,), image ids) in the order of ``indices``."""
    for start in range(0, len(indices), size):
        yield collate([dataset[index] for index in indices[start : start + size]])
