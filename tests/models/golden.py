"""Deterministic weights, the study's key lists and the reference's logits; see tests/data/README.md."""

from __future__ import annotations

import argparse
import gzip
import json
import math
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).resolve().parents[1] / "data"
KEY_LISTS = json.loads(gzip.decompress((DATA / "state_dicts.json.gz").read_bytes()))
LOGITS = {name: torch.from_numpy(logits) for name, logits in np.load(DATA / "logits.npz").items()}
NOISE = json.loads((DATA / "logits_noise.json").read_text())

# Gains of convolution and linear weights, and of the weights of normalisation layers, under which the logits are of a usable size.
GAINS = {
    "resnet18": (1.15, 1.0),
    "bagnet33": (1.15, 1.0),
    **dict.fromkeys(("vgg11", "vgg13", "vgg16", "vgg19", "vgg16_bn", "x_vgg16"), (1.5, 1.0)),
    "bcos_resnet50": (1.0, 12.0),
}


def tensor_for(key: str, shape: Iterable[int], dtype: torch.dtype = torch.float32, gains: tuple[float, float] = (1.0, 1.0)) -> Tensor:
    """The deterministic tensor of a key, drawn with the CRC-32 of the key as its seed."""
    shape, leaf = tuple(shape), key.rpartition(".")[-1]
    generator = torch.Generator("cpu").manual_seed(zlib.crc32(key.encode()))
    if leaf == "num_batches_tracked":
        return torch.zeros(shape, dtype=dtype)
    if leaf == "running_var":
        return (1 + 0.1 * torch.rand(shape, generator=generator)).to(dtype)
    drawn = torch.randn(shape, generator=generator)
    if leaf in ("pos_embed", "cls_token"):
        drawn = 0.02 * drawn
    elif leaf == "running_mean" or leaf.startswith("bias"):
        drawn = 0.05 * drawn
    elif leaf == "scale":
        drawn = 1 + 0.05 * drawn
    elif len(shape) == 1:
        drawn = gains[1] * (1 + 0.05 * drawn)
    else:
        drawn = gains[0] * math.sqrt(1 / math.prod(shape[1:])) * drawn
    return drawn.to(dtype)


def filled(state: dict[str, Tensor], name: str = "") -> dict[str, Tensor]:
    """A state_dict with its values replaced by the deterministic ones."""
    return {key: tensor_for(key, value.shape, value.dtype, GAINS.get(name, (1.0, 1.0))) for key, value in state.items()}


def study_state(name: str) -> dict[str, Tensor]:
    """The deterministic weights of one of the study's models, under the prefixed keys of its checkpoint."""
    entries, prefix = KEY_LISTS[name]["entries"], KEY_LISTS[name]["prefix"]
    gains = GAINS.get(name, (1.0, 1.0))
    return {prefix + key: tensor_for(key, shape, getattr(torch, dtype), gains) for key, shape, dtype in entries}


def study_file(state: dict[str, Tensor], path: Path) -> Path:
    """A file as the study's training script saves it after an epoch."""
    weights = [torch.nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.SGD(weights, 1e-3, momentum=0.9, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10, 0.1)
    weights[0].sum().backward()
    optimizer.step()
    content = {
        "epoch": 30,
        "state_dict": state,
        "best_acc1": torch.tensor(75.5),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "args": argparse.Namespace(model="resnet18", lr=1e-3, gpu=None, pretrained=True, data_dir="imagenet"),
    }
    torch.save(content, path)
    return path


def golden_images(name: str) -> Tensor:
    """What the reference's network saw, (2, 3, 224, 224)."""
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    return images if name.startswith("bcos") else images * 2 - 1


def tolerance(name: str) -> float:
    """A ten-thousandth of the logits' spread, and a few times what float32 itself costs the reference."""
    return 1e-4 * NOISE[name]["std_over_classes"] + 4 * NOISE[name]["max_abs_diff_vs_float64"]
