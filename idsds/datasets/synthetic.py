"""Images with class evidence in known patches, and closed-form models for which the importance of each patch is known exactly.

An image is a 4 x 4 grid of patches of 8 x 8 pixels. A patch holds evidence for a class (its stripes, at some strength), a distractor
(stripes that no class uses), or background, which is orthogonal to all stripes and thus carries no evidence. Evaluating explanations on
images with known parts is the idea of FunnyBirds (Hesse, Schaub-Meyer, Roth, ICCV 2023, arXiv 2308.06248); here nothing is downloaded,
and importances are formulas, not measurements.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idsds.common.normalisation import HALF, Normalisation
from idsds.common.randomness import generator
from idsds.common.registry import check_name
from idsds.datasets.base import ImageDataset, register_dataset

GRID, PIXELS = 4, 8  # patches per image side, pixels per patch side
CLASSES = ("rows", "columns", "checks", "narrow rows")
SIZES = {"train": 1200, "val": 200, "test": 300}
# Patches per image with stripes of the target, of other classes, and of no class; the rest is background.
EVIDENCE, OTHERS, DISTRACTORS = 6, 3, 3

Importance = Literal["deletion", "shapley"]


@cache
def stripes() -> Tensor:
    """Return six mutually orthogonal, zero-mean patterns of +1 and -1, (6, 8, 8): one per class, then two that no class uses."""
    steps = torch.arange(PIXELS)
    flat, wide, narrow = torch.ones(PIXELS), 1.0 - 2 * (steps // 4 % 2), 1.0 - 2 * (steps // 2 % 2)
    pairs = [(wide, flat), (flat, wide), (wide, wide), (narrow, flat), (flat, narrow), (narrow, narrow)]
    return torch.stack([torch.outer(rows, columns) for rows, columns in pairs])


def synthetic_image(target: int, image_id: str) -> tuple[Tensor, Tensor]:
    """Generate one image and return it with its content.

    Args:
        target: the class whose stripes are in six patches, with strengths spread evenly over (0.1, 0.6].
        image_id: keys everything else: the choice of patches, the other strengths, the background.

    Returns:
        The image (3, 32, 32) in [-1, 1], and the strength of each pattern in each patch, (16, 6).
    """
    draw = generator(0, "synthetic", image_id)
    strengths = torch.zeros(GRID * GRID, len(stripes()))
    places = torch.randperm(GRID * GRID, generator=draw)
    strengths[places[:EVIDENCE], target] = 0.6 * torch.linspace(1 / EVIDENCE, 1, EVIDENCE)
    for number, place in enumerate(places[EVIDENCE : EVIDENCE + OTHERS + DISTRACTORS].tolist()):
        if number < OTHERS:  # weaker than the target's, so that the label is correct
            pattern, most = (target + 1 + number) % len(CLASSES), 0.3
        else:
            pattern, most = len(CLASSES) + number % 2, 0.6
        strengths[place, pattern] = most * (0.2 + 0.8 * torch.rand((), generator=draw))
    background = 0.4 * torch.rand(GRID * GRID, 3, PIXELS, PIXELS, generator=draw) - 0.2
    base = stripes() / PIXELS  # of unit length
    background = background - torch.einsum("kyx,pcyx,khw->pchw", base, background, base)
    patches = background + torch.einsum("pk,khw->phw", strengths, stripes())[:, None]  # (16, 3, 8, 8)
    image = patches.view(GRID, GRID, 3, PIXELS, PIXELS).permute(2, 0, 3, 1, 4).reshape(3, GRID * PIXELS, GRID * PIXELS)
    return image, strengths


@register_dataset(
    num_classes=len(CLASSES),
    image_size=GRID * PIXELS,
    normalisation=HALF,
    embedded=True,
    source="made by this package, nothing to download",
)
def synthetic(split: str, normalisation: Normalisation) -> ImageDataset:
    """Generate 32 x 32 images of four classes with known evidence; 1,200 / 200 / 300 images."""
    image_ids = [f"synthetic/{split}/{index:04d}" for index in range(SIZES[split])]
    targets = [index % len(CLASSES) for index in range(SIZES[split])]
    return ImageDataset(
        "synthetic",
        split,
        image_ids=image_ids,
        targets=targets,
        read=lambda index: (synthetic_image(targets[index], image_ids[index])[0] + 1) / 2,
        classes=CLASSES,
        normalisation=normalisation,
    )


class PatchModel(nn.Module):
    """A model whose logits are sums and products of the evidence in single patches, (B, 3, H, W) -> (B, K).

    ``logit_k = gain * (sum_p g(e_pk) + interaction * sum_(p, q) g(e_pk) g(e_qk))``

    where ``e_pk`` is the strength of class k's stripes in patch p, a linear function of its pixels; g is the identity, or a saturating
    ``tanh(saturation * e) / saturation``; and (p, q) are the left and right neighbours of each pair of columns. A patch of zeros has e =
    0, and so does, exactly, a patch without the class's stripes, because g(e), but not its gradient, is rounded to multiples of 2^-20
    (about 1e-6). In float64 the drop for a patch without evidence is therefore also 0; in float32 the sum over patches may round.

    Args:
        interaction: weight of the products; 0 for a purely additive model.
        saturation: steepness of the tanh; 0 for g(e) = e, which with ``interaction=0`` is a linear model.
        gain: scale of the logits.
    """

    def __init__(self, interaction: float = 0.0, saturation: float = 0.0, gain: float = 4.0) -> None:
        super().__init__()
        self.interaction, self.saturation, self.gain = interaction, saturation, gain
        self.window: tuple[int, int] | None = None
        self.evidence = nn.Conv2d(3, len(CLASSES), PIXELS, stride=PIXELS, bias=False)
        patterns = stripes()[: len(CLASSES)]  # (K, 8, 8)
        self.evidence.weight.data = (patterns / (3 * PIXELS**2))[:, None].repeat(1, 3, 1, 1)
        self.eval()

    def _saturated(self, strengths: Tensor) -> Tensor:
        """Return g(e), (B, K, rows, columns), in steps of 2^-20."""
        terms = torch.tanh(self.saturation * strengths) / self.saturation if self.saturation else strengths
        # Without evidence the inner product rounds to 1e-8, not 0, and most patches would be ranked by rounding errors. Rounding to steps
        # makes it 0; the gradient passes straight through.
        exact = (terms * 2**20).round() / 2**20
        terms = terms + (exact - terms).detach()
        if self.window is None:
            return terms
        side, cell = self.window
        seen = terms.new_zeros(side**2).index_fill(0, torch.tensor(cell, device=terms.device), 1).view(side, side)
        height, width = (length // side for length in terms.shape[-2:])
        return terms * seen.repeat_interleave(height, 0).repeat_interleave(width, 1)

    def within(self, side: int, cell: int) -> PatchModel:
        """Return a copy that depends on one cell of a mosaic of ``side`` x ``side`` images alone, see DiFull."""
        found = copy.deepcopy(self)
        found.window = (side, cell)
        return found

    @staticmethod
    def _partner(terms: Tensor) -> Tensor:
        """Return the other patch of each pair, (B, K, rows, columns)."""
        return terms.unflatten(3, (-1, 2)).flip(4).flatten(3)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.readout(self.evidence(images))

    def readout(self, strengths: Tensor) -> Tensor:
        """Return logits (B, K) from the strengths e of each class's stripes in each patch, (B, K, rows, columns)."""
        terms = self._saturated(strengths)
        products = terms * self._partner(terms) / 2  # each pair is counted twice
        return self.gain * (terms + self.interaction * products).sum(dim=(2, 3))

    @torch.no_grad()
    def importance(self, images: Tensor, targets: Tensor, kind: Importance = "deletion") -> Tensor:
        """Return the exact importance of each patch for the target's logit, against a baseline of zeros.

        Args:
            images, targets: (B, 3, H, W), normalised, and (B,).
            kind: ``deletion``, the drop in the logit when the patch alone is replaced by zeros, which attributes a product fully to both
                of its patches; ``shapley``, the Shapley value, which divides each product equally.

        Returns:
            (B, n), row-major patches.
        """
        check_name("kind of importance", kind, ("deletion", "shapley"))
        terms = self._saturated(self.evidence(images))
        share = 1.0 if kind == "deletion" else 0.5
        values = self.gain * (terms + share * self.interaction * terms * self._partner(terms))  # (B, K, rows, columns)
        return values[torch.arange(len(images), device=images.device), targets].flatten(1)

    def exact_maps(self, images: Tensor, targets: Tensor, kind: Importance = "deletion") -> Tensor:
        """Spread :meth:`importance` evenly over the pixels of each patch, (B, 1, H, W), so that patch sums return it."""
        values = self.importance(images, targets, kind)
        rows, columns = images.shape[-2] // PIXELS, images.shape[-1] // PIXELS
        return F.interpolate(values.view(-1, 1, rows, columns), scale_factor=PIXELS, mode="nearest") / PIXELS**2
