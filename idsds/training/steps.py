"""The parts of the training loop: one step, one pass over the validation images, and their random numbers.

Nothing here starts processes or writes files; :mod:`idsds.training.loop` does.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from idsds.common.interventions import baseline_images, delete_patches, patch_numbers
from idsds.common.randomness import generator
from idsds.datasets.base import collate
from idsds.models.base import Loss
from idsds.training.recipes import Deletion, Recipe


def drawn_patches(image_ids: Sequence[str], grid: int, *, seed: int, epoch: int) -> Tensor:
    """Return the patch to delete from each image, (B,): -1 (none) for half of them, otherwise an index in [0, grid * grid)."""
    patches = []
    for image_id in image_ids:
        word = hashlib.blake2b(f"deletion {seed} {epoch} {image_id}".encode(), digest_size=8).digest()
        keep, number = word[0] & 1, int.from_bytes(word[1:], "big")
        patches.append(-1 if keep else number % (grid * grid))
    return torch.tensor(patches)


def loss_of(logits: Tensor, targets: Tensor, loss: Loss) -> Tensor:
    """Return the mean cross entropy, the mean binary cross entropy over all B * K logits (B-cos), or the mean divergence (``distill``).

    Targets are classes (B,) or probabilities of classes (B, K). For ``distill`` they are probabilities, and the loss is the
    Kullback-Leibler divergence from them.
    """
    if loss == "distill":
        return F.kl_div(F.log_softmax(logits, dim=1), targets, reduction="batchmean")
    if loss == "binary_cross_entropy":
        wanted = F.one_hot(targets, logits.shape[1]) if targets.ndim == 1 else targets
        return F.binary_cross_entropy_with_logits(logits, wanted.to(logits.dtype))
    return F.cross_entropy(logits, targets)


def make_optimizer(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimiser over all parameters in one group: biases and norms decay too, as in the reference."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    return torch.optim.AdamW(model.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the recipe's schedule for epochs of ``steps`` steps."""
    if recipe.schedule == "one_cycle":
        # With 4 steps the first quarter is step 0 alone, and torch divides by its index.
        total = max(8, recipe.epochs * steps)
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.lr, total_steps=total, pct_start=0.25)
    return torch.optim.lr_scheduler.StepLR(optimizer, recipe.step_epochs, recipe.step_factor)


def advance(scheduler: torch.optim.lr_scheduler.LRScheduler, recipe: Recipe, every: str) -> None:
    """Advance the schedule: one-cycle schedules after each step, step schedules after each epoch."""
    if (recipe.schedule == "one_cycle") == (every == "step"):
        with warnings.catch_warnings():
            # With fp16 the scaler may skip the first step of the optimiser, and torch warns about it.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            scheduler.step()


def shares(count: int, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    """Return the images of one of ``world`` processes in each step, in the epoch's keyed order.

    The batches themselves do not depend on ``world``. A last batch with fewer images than processes is merged into the previous one, so
    that every process has an image.

    Raises:
        ValueError: if there are fewer images than processes.
    """
    if count < world or batch_size < world:
        raise ValueError(f"{count} images in batches of {batch_size} are too few for {world} processes")
    whole = list(torch.randperm(count, generator=generator(seed, "order", epoch)).split(batch_size))
    if len(whole[-1]) < world:
        whole[-2:] = [torch.cat(whole[-2:])]
    return [batch[rank::world].tolist() for batch in whole]


def training_step(
    fabric: Fabric,
    net: _FabricModule,
    optimizer: torch.optim.Optimizer,
    images: Tensor,
    targets: Tensor,
    *,
    loss: Loss = "cross_entropy",
    clip: float = 0.0,
    accumulate: int = 1,
) -> tuple[float, int]:
    """Take one optimiser step on this process's part of a batch.

    Every image has the same weight in the gradient, even if the batch is divided unevenly.

    Args:
        net: set up by ``fabric``, in training mode, returns logits (B, K).
        images: (B, 3, H, W), normalised, patches deleted, on the device.
        targets: (B,), or probabilities (B, K) to distil.
        loss: see :func:`loss_of`.
        clip: largest L2 norm of the gradient, 0 for no limit.
        accumulate: number of passes into which the part is split, if a device cannot hold all its activations at once.

    Returns:
        The part's summed loss and number of correct predictions.
    """
    count = over_processes(fabric, torch.tensor([float(len(targets))]))[0]
    optimizer.zero_grad()
    summed, correct = 0.0, 0
    parts = list(zip(images.chunk(accumulate), targets.chunk(accumulate), strict=True))
    for number, (part, wanted) in enumerate(parts, start=1):
        with fabric.no_backward_sync(net, enabled=number < len(parts)) if fabric.world_size > 1 else nullcontext():
            logits = net(part)
            value = loss_of(logits.float(), wanted, loss)
            # Gradients are averaged over processes; the factor gives every image the weight 1 / count.
            fabric.backward(value * (len(wanted) * fabric.world_size / count))
        summed += float(value.detach()) * len(wanted)
        correct += int((logits.detach().argmax(dim=1) == (wanted if wanted.ndim == 1 else wanted.argmax(dim=1))).sum())
    if clip:
        fabric.clip_gradients(net, optimizer, max_norm=clip)
    optimizer.step()
    return summed, correct


def deleted_at_random(images: Tensor, image_ids: list[str], deletion: Deletion, *, seed: int, epoch: int) -> Tensor:
    """Return an epoch's training images, (B, 3, H, W): half of them intact, the others without one patch or, with ``share``, several.

    With ``share``, the number of patches is uniform in 1 .. ``deletion.most``, and so is the choice among sets of that size.
    """
    if deletion.share is None:
        return delete(images, drawn_patches(image_ids, deletion.grid, seed=seed, epoch=epoch), image_ids, deletion, seed)
    masks = []
    for image_id in image_ids:
        draw = generator(seed, "random masks", epoch, image_id)
        intact, count = torch.rand(2, generator=draw).tolist()
        order = torch.randperm(deletion.grid**2, generator=draw)
        masks.append(order < (0 if intact < 0.5 else 1 + int(count * deletion.most)))
    lost = torch.stack(masks).to(images.device)[:, patch_numbers(images, deletion.grid)][:, None]  # (B, 1, H, W)
    return torch.where(lost, baseline_images(images, deletion.baseline, seed=seed, image_ids=image_ids), images)


def delete(images: Tensor, patches: Tensor, image_ids: list[str], deletion: Deletion, seed: int = 0) -> Tensor:
    """Return the images (B, 3, H, W) with one patch each replaced by the baseline; ``patches`` (B,), -1 for none."""
    replacement = baseline_images(images, deletion.baseline, seed=seed, image_ids=image_ids)
    return delete_patches(images, replacement, patches, deletion.grid)


def over_processes(fabric: Fabric | None, sums: Tensor) -> list[float]:
    """Return each number summed over all processes."""
    if fabric is None or fabric.world_size == 1:
        return sums.tolist()
    reduced = fabric.all_reduce(sums.to(fabric.device), reduce_op="sum")
    assert isinstance(reduced, Tensor)
    return reduced.tolist()


def loader_of(dataset: Dataset, chosen: Sequence[Sequence[int]], workers: int = 0, *, pin: bool = False) -> DataLoader:
    """Return a loader of batches (images, targets, image ids) of the given indices."""
    return DataLoader(dataset, batch_sampler=[list(batch) for batch in chosen], collate_fn=collate, num_workers=workers, pin_memory=pin)
