"""From an image file to pixels: reading, the evaluation crop and the training crop.

Evaluation, for every model: the shorter side is resized to 256/224 of the final size (bilinear, antialiased by PIL), then the centre is
cropped. Training: a random crop of 8 to 100 % of the area and of aspect 3/4 to 4/3, resized, and mirrored half the time (torchvision's
defaults, as in the recipe of Hesse et al., NeurIPS 2024). Orientation tags of cameras are not applied, as in torchvision.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from idsds.datasets.base import ImageReadError

# The endings of torchvision.datasets.ImageFolder, and GIF, of which the first frame counts.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
RESIZE = 256 / 224


def to_unit(picture: Image.Image) -> Tensor:
    """Convert an 8-bit RGB picture to float (3, H, W) in [0, 1]."""
    return v2.functional.pil_to_tensor(picture).float() / 255


def read_rgb(path: str | os.PathLike[str]) -> Image.Image:
    """Read a file as an 8-bit RGB picture; grey ones get three equal channels, transparency is dropped.

    Raises:
        ImageReadError: naming the file and the reason, also for a truncated picture.
    """
    try:
        with Image.open(path) as picture:
            picture.load()
            if picture.mode.startswith("I"):  # 16-bit grey, which PIL would clip at 255
                return picture.point(lambda value: value * (1 / 256)).convert("L").convert("RGB")
            if picture.mode == "P" and "transparency" in picture.info:
                return picture.convert("RGBA").convert("RGB")  # PIL warns if it drops a palette's transparency directly
            return picture.convert("RGB")
    except Exception as error:  # PIL's decoders may raise anything on a damaged file
        raise ImageReadError(f"cannot read {os.fspath(path)!r}: {type(error).__name__}: {error}") from error


def evaluation_crop(size: int) -> v2.Transform:
    """Return a transform of PIL pictures to float (3, size, size) in [0, 1]: resize, then centre crop, 224 pixels from 256."""
    return v2.Compose([v2.Resize(round(size * RESIZE)), v2.CenterCrop(size), to_unit])


def training_crop(size: int) -> v2.Transform:
    """Return a transform of PIL pictures to float (3, size, size) in [0, 1] by random crop and mirror, from torch's global generator."""
    return v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip(), to_unit])


def shift_and_mirror(pixels: int) -> v2.Transform:
    """Return a transform of tensors (3, H, W) that shifts by up to ``pixels`` over a black border and mirrors half the time."""
    return v2.Compose([_Shift(pixels), v2.RandomHorizontalFlip()])


class _Shift(torch.nn.Module):
    def __init__(self, pixels: int) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        top, left = torch.randint(2 * self.pixels + 1, (2,)).tolist()
        return torch.nn.functional.pad(image, [self.pixels] * 4)[..., top : top + height, left : left + width]


def keyed(transform: Callable, image: Image.Image | Tensor, generator: torch.Generator) -> Tensor:
    """Apply a torchvision transform with random numbers from ``generator`` alone.

    torchvision draws from torch's global generator, which is seeded from ours during the call and restored afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return transform(image)


class FileImages:
    """Reads the images of a list of files; the ``read`` and the ``augment`` of a data set.

    Args:
        paths: one file per image.
        size: pixels per side of the result.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]], size: int) -> None:
        self.paths, self.size = list(paths), size
        self._evaluation, self._training = evaluation_crop(size), training_crop(size)

    def read(self, index: int) -> Tensor:
        """Read the evaluation crop, float (3, size, size) in [0, 1]."""
        return self._evaluation(read_rgb(self.paths[index]))

    def augment(self, index: int, generator: torch.Generator) -> Tensor:
        """Read a training crop, float (3, size, size) in [0, 1]."""
        return keyed(self._training, read_rgb(self.paths[index]), generator)


class TensorImages:
    """Reads images that are in memory; the ``read`` and the ``augment`` of a data set of small images.

    Args:
        pixels: (N, C, H, W), float in [0, 1] or uint8; one channel becomes three equal ones.
        shift: largest shift in pixels of the augmentation.
    """

    def __init__(self, pixels: Tensor, shift: int = 0) -> None:
        self.pixels, self._augmentation = pixels, shift_and_mirror(shift)

    def read(self, index: int) -> Tensor:
        """Return an image, float (3, H, W) in [0, 1]."""
        image = self.pixels[index]
        image = image if image.is_floating_point() else image.float() / 255
        return image.expand(3, -1, -1)

    def augment(self, index: int, generator: torch.Generator) -> Tensor:
        """Return an image shifted and mirrored at random, float (3, H, W) in [0, 1]."""
        return keyed(self._augmentation, self.read(index), generator)
