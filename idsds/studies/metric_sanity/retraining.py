"""ROAR and KAR on known ground truth: the accuracy that retrained nets lose with patches whose importance is a formula.

The net that is explained is a :class:`~idsds.datasets.synthetic.PatchModel`, and so are those that are retrained: of the same form, from
fresh weights. There are hundreds of them, each with a few hundred weights and all of one shape, so that they are trained side by side as
one batched product, and not by the loop of :mod:`idsds.training.loop`, which trains one net after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from idsds.common.randomness import generator
from idsds.datasets import create_dataset
from idsds.datasets.synthetic import CLASSES, GRID, PIXELS, PatchModel
from idsds.protocols.roar import SCORES, Kind, pixel_ranks, replace_pixels
from idsds.studies.metric_sanity.known_maps import Known, first_images, noisy_maps

#: The fractions of the paper, the unmodified images first.
SHARES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class KnownRetraining:
    """How often and how nets are retrained.

    Args:
        repetitions: how often everything is drawn again: the maps' noise, the order of equal pixels, and the nets' weights.
        shares: of the pixels that are replaced, ascending from 0.
        train, test: how many images of the synthetic splits, in their fixed order.
        epochs, batch_size, lr: of Adam.
    """

    repetitions: int = 5
    shares: Sequence[float] = SHARES
    train: int = 200
    test: int = 200
    epochs: int = 10
    batch_size: int = 100
    lr: float = 0.05

    @property
    def passes(self) -> int:
        """Forward passes (and as many backward) per training image for one method and repetition; the unmodified images are shared."""
        return self.epochs * (len(self.shares) - 1)


RETRAINING = KnownRetraining()


def known_areas(kind: Kind, model: PatchModel, levels: Sequence[float], seed: int, importance: Known, how: KnownRetraining) -> Tensor:
    """Return ROAR's or KAR's score of the exact map, of the same with noise of each of L levels, and of noise alone, (repetitions, L + 1).

    The model labels every image correctly, so that prediction and label agree. Noise alone is the control, whose own score is therefore 0.
    """
    shares = torch.tensor(how.shares, dtype=torch.float64)
    curves = (known_curves(kind, model, levels, seed + repetition, importance, how) for repetition in range(how.repetitions))
    return torch.stack([SCORES[kind](each, each[-1:].expand_as(each), shares) for each in curves])


def known_curves(kind: Kind, model: PatchModel, levels: Sequence[float], seed: int, importance: Known, how: KnownRetraining) -> Tensor:
    """Accuracy on test images after retraining, (L + 1, S), in [0, 1]: by map and fraction of the pixels that were replaced."""
    explained = model.double()
    train, test = _images("train", how.train), _images("test", how.test)
    fill = train[0].mean(dim=(0, 2, 3))
    patches: dict[str, list[Tensor]] = {"train": [_patches(train[0])], "test": [_patches(test[0])]}
    for known in noisy_maps(explained, levels, seed, importance):
        for split, (images, targets, ids) in (("train", train), ("test", test)):
            ranks = pixel_ranks(known(images.double(), targets, ids), ids, seed)
            patches[split] += [_patches(replace_pixels(images, ranks, share, kind, fill)) for share in how.shares[1:]]
    weights = _trained(model, torch.stack(patches["train"]), train[1], seed, how)
    with torch.inference_mode():
        predicted = _logits(model, weights, torch.stack(patches["test"])).argmax(dim=2)  # (N, B)
    accuracy = (predicted == test[1]).double().mean(dim=1)
    maps = len(levels) + 1
    return torch.cat([accuracy[:1].expand(maps, 1), accuracy[1:].view(maps, -1)], dim=1)


@cache
def _images(split: str, count: int) -> tuple[Tensor, Tensor, Sequence[str]]:
    return first_images(create_dataset("synthetic", split), count)


def _patches(images: Tensor) -> Tensor:
    """(B, 3, H, W) to (B, patches, pixels of a patch)."""
    return F.unfold(images, PIXELS, stride=PIXELS).mT


def _logits(model: PatchModel, weights: Tensor, patches: Tensor) -> Tensor:
    """Logits (N, B, K) of N nets of the model's form, each with its weights (N, K, D) and its images (N, B, patches, D)."""
    strengths = patches.flatten(1, 2) @ weights.mT  # (N, B * patches, K)
    strengths = strengths.unflatten(1, (-1, GRID, GRID)).flatten(0, 1).permute(0, 3, 1, 2)  # (N * B, K, rows, columns)
    return model.readout(strengths).unflatten(0, (len(weights), -1))


def _trained(model: PatchModel, patches: Tensor, targets: Tensor, seed: int, how: KnownRetraining) -> Tensor:
    """Weights (N, K, D) of N nets, trained on their images (N, B, patches, D); all begin alike and see the images in one order."""
    draw = generator(seed, "known retraining")
    size = patches.shape[-1]
    start = torch.randn(len(CLASSES), size, generator=draw) / size
    weights = start.repeat(len(patches), 1, 1).requires_grad_()
    # Adam treats each weight by itself, and the sum of the nets' losses has each net's own gradient: as if each were trained alone.
    optimizer = torch.optim.Adam([weights], lr=how.lr)
    for _ in range(how.epochs):
        for chosen in torch.randperm(len(targets), generator=draw).split(how.batch_size):
            logits = _logits(model, weights, patches[:, chosen])
            loss = F.cross_entropy(logits.flatten(0, 1), targets[chosen].repeat(len(patches)), reduction="sum") / len(chosen)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return weights.detach()
