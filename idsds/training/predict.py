"""Predictions and accuracy of a model on a split."""

from __future__ import annotations

import hashlib
from contextlib import nullcontext

import pandas as pd
import torch
from lightning_fabric import Fabric
from torch import nn
from torch.utils.data import DataLoader

from idsds.datasets.base import ImageDataset, ImageReadError
from idsds.models.base import Loss
from idsds.training.recipes import Deletion
from idsds.training.steps import delete, loader_of, loss_of, over_processes


@torch.inference_mode()
def accuracy(
    model: nn.Module,
    loader: DataLoader,
    deletion: Deletion | None = None,
    *,
    loss: Loss = "cross_entropy",
    fabric: Fabric | None = None,
) -> tuple[float, float]:
    """Accuracy (share in [0, 1]) and mean loss on a split.

    Args:
        model: returns logits (B, K); is put into eval mode and left as it was.
        loader: batches of (images, targets, image ids); with several processes, of this one's share.
        deletion: None: intact images; else each image loses one patch, the same one at every call.
        loss: which loss to report.
        fabric: sums over its processes and takes its precision.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)
    for images, targets, image_ids in loader:
        if not len(targets):
            continue
        images, targets = images.to(device), targets.to(device)
        if deletion is not None:
            numbers = [int.from_bytes(hashlib.blake2b(i.encode(), digest_size=8).digest(), "big") for i in image_ids]
            images = delete(images, torch.tensor([number % deletion.grid**2 for number in numbers]), image_ids, deletion)
        with fabric.autocast() if fabric else nullcontext():
            logits = model(images).float()
        correct = (logits.argmax(dim=1) == targets).sum()
        sums += torch.tensor([float(loss_of(logits, targets, loss)) * len(targets), float(correct), len(targets)])
    model.train(training)
    summed, right, total = over_processes(fabric, sums)
    if not total:
        raise ImageReadError("none of the images could be read")
    return right / total, summed / total


@torch.inference_mode()
def predicted(model: nn.Module, data: ImageDataset, *, size: int, workers: int = 0, precision: str = "32-true") -> pd.DataFrame:
    """The most probable class of every image that can be read.

    Args:
        model: returns logits (B, K), on the device that is to be used; is put into eval mode.
        data: the images.
        size: of a batch.
        workers: loader processes.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.

    Returns:
        One row per image, in the order of the data set: ``image_id``, ``target``, ``prediction``.

    Raises:
        ImageReadError: where no image can be read.
    """
    model.eval()
    device = next(model.parameters()).device
    dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)
    chosen = [range(start, min(start + size, len(data))) for start in range(0, len(data), size)]
    parts = []
    for images, targets, image_ids in loader_of(data, chosen, workers):
        if not len(targets):
            continue
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            logits = model(images.to(device))  # (B, K)
        parts.append(pd.DataFrame({"image_id": image_ids, "target": targets.numpy(), "prediction": logits.argmax(dim=1).cpu().numpy()}))
    if not parts:
        raise ImageReadError(f"none of the {data.split} images of {data.name!r} could be read")
    return pd.concat(parts, ignore_index=True)
