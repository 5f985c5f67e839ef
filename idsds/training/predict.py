"""Predictions and accuracy of a model on a split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from idsds.datasets.base import ImageDataset, ImageReadError
from idsds.models.base import Loss
from idsds.training.recipes import Deletion
from idsds.training.steps import delete, loader_of, loss_of, over_processes

#: k of top-k accuracy.
TOP = 5


def outputs(
    model: nn.Module, loader: DataLoader, deletion: Deletion | None = None, autocast: Callable[[], AbstractContextManager] = nullcontext
) -> Iterator[tuple[Tensor, Tensor, list[str]]]:
    """Yield logits (B, K) as float32, targets (B,), both on the model's device, and image ids, batch by batch.

    The model runs in eval mode without autograd; its mode is restored afterwards.

    Args:
        model: returns logits (B, K).
        loader: batches of (images, targets, image ids); batches without readable images are skipped.
        deletion: None for intact images; otherwise one patch of each image is deleted, the same at every call.
        autocast: returns the context manager that sets the precision.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    try:
        for images, targets, image_ids in loader:
            if not len(targets):
                continue
            images, targets = images.to(device), targets.to(device)
            with torch.inference_mode():
                if deletion is not None:
                    numbers = [int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8).digest(), "big") for i in image_ids]
                    images = delete(images, torch.tensor([number % deletion.grid**2 for number in numbers]), image_ids, deletion)
                with autocast():
                    logits = model(images).float()
            yield logits, targets, image_ids
    finally:
        model.train(training)


def in_top(logits: Tensor, targets: Tensor, k: int = TOP) -> Tensor:
    """Return which targets (B,) are among the ``k`` largest logits (B, K); all of them if K <= k."""
    return (logits.topk(min(k, logits.shape[1]), dim=1).indices == targets[:, None]).any(dim=1)


def accuracy(
    model: nn.Module,
    loader: DataLoader,
    deletion: Deletion | None = None,
    *,
    loss: Loss = "cross_entropy",
    fabric: Fabric | None = None,
) -> tuple[float, float, float]:
    """Return accuracy in [0, 1], mean loss and top-5 accuracy on a split.

    Args:
        model, loader, deletion: see :func:`outputs`; with several processes, the loader yields this process's part.
        loss: which loss to report.
        fabric: sums over its processes and takes its precision.

    Raises:
        ImageReadError: if no image could be read.
    """
    sums = torch.zeros(4, dtype=torch.float64)
    for logits, targets, _ in outputs(model, loader, deletion, fabric.autocast if fabric else nullcontext):
        correct = (logits.argmax(dim=1) == targets).sum()
        among = in_top(logits, targets).sum()
        sums += torch.tensor([float(loss_of(logits, targets, loss)) * len(targets), float(correct), len(targets), float(among)])
    summed, right, total, near = over_processes(fabric, sums)
    if not total:
        raise ImageReadError("none of the images could be read")
    return right / total, summed / total, near / total


def predicted(model: nn.Module, data: ImageDataset, *, size: int, workers: int = 0, precision: str = "32-true") -> pd.DataFrame:
    """Return the most probable class of every readable image.

    Args:
        model: returns logits (B, K), on the device to use; its mode is restored afterwards.
        size: images per batch.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.

    Returns:
        One row per image, in the order of the data set: ``image_id``, ``target``, ``prediction``, ``top5`` (whether the target is among
        the five largest logits).

    Raises:
        ImageReadError: if no image can be read.
    """
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    autocast = partial(torch.autocast, next(model.parameters()).device.type, dtype=dtype, enabled=dtype is not None)
    chosen = [range(start, min(start + size, len(data))) for start in range(0, len(data), size)]
    parts = [
        pd.DataFrame(
            {
                "image_id": image_ids,
                "target": targets.cpu().numpy(),
                "prediction": logits.argmax(dim=1).cpu().numpy(),
                "top5": in_top(logits, targets).cpu().numpy(),
            }
        )
        for logits, targets, image_ids in outputs(model, loader_of(data, chosen, workers), autocast=autocast)
    ]
    if not parts:
        raise ImageReadError(f"none of the {data.split} images of {data.name!r} could be read")
    return pd.concat(parts, ignore_index=True)
