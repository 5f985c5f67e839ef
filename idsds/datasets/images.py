"""From image files to pixels: reading, the evaluation crop and the training crop.

Evaluation, for every model: the shorter side is resized to 256 / 224 times the crop's size (bilinear, antialiased by PIL), then the
centre is cropped. Training: a random crop of 8 to 100 % of the area with an aspect ratio of 3/4 to 4/3 is resized, and flipped
horizontally half the time (torchvision's defaults, as in the recipe of Hesse et al., NeurIPS 2024). Cameras' orientation tags are applied
to a user's own folders (``image_folder``) but not to published data sets, as in torchvision.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms import v2

from idsds.datasets.base import ImageDataset, ImageReadError

# The extensions of torchvision.datasets.ImageFolder, and GIF, whose first frame is used.
EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp", ".gif")
RESIZE = 256 / 224
#: Number of pixels above which an image is downscaled while it is read; ImageNet's largest has 44 million.
LARGE, LARGE_SIDE = 50_000_000, 4096


def to_unit(picture: Image.Image) -> Tensor:
    """Convert an 8-bit RGB image to float (3, H, W) in [0, 1]."""
    return v2.functional.pil_to_tensor(picture).float() / 255


def read_rgb(path: str | os.PathLike[str], upright: bool = False) -> Image.Image:
    """Read a file as an 8-bit RGB image; greyscale images get three equal channels, transparency is dropped.

    Args:
        upright: whether to apply the camera's orientation tag.

    Images of more than :data:`LARGE` pixels are downscaled to at most 4,096 pixels per side while they are read, to bound memory.

    Raises:
        ImageReadError: for an unreadable or truncated file, or values that are not valid pixels; the message names file and reason.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > LARGE:
                picture.thumbnail((LARGE_SIDE, LARGE_SIDE))
            picture.load()
            if upright:
                ImageOps.exif_transpose(picture, in_place=True)
            return _as_rgb(picture)
    except Exception as error:  # PIL's decoders may raise nearly anything for a damaged file
        raise ImageReadError(f"cannot read {os.fspath(path)!r}: {type(error).__name__}: {error}") from error


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":  # PIL would clip values above 255
        values = np.asarray(picture, dtype=np.float64)
        low, high = float(values.min()), float(values.max())
        scale = (255 if high <= 1 else 1) if picture.mode == "F" else 1 / 256
        if not np.isfinite(values).all() or low < 0 or high * scale >= 256:
            allowed = "[0, 1] or [0, 255]" if picture.mode == "F" else "[0, 65535]"
            raise ValueError(f"its values go from {low:g} to {high:g}, but a picture of mode {picture.mode!r} must lie in {allowed}")
        return Image.fromarray((values * scale).astype(np.uint8)).convert("RGB")
    if picture.mode == "P" and "transparency" in picture.info:
        return picture.convert("RGBA").convert("RGB")  # PIL warns when a palette's transparency is dropped directly
    return picture.convert("RGB")


def evaluation_crop(size: int, share: float | None = None, interpolation: str = "bilinear", squash: bool = False) -> v2.Transform:
    """Return a transform of PIL images to float (3, size, size) in [0, 1]: resize, then centre crop.

    Args:
        share: fraction of the resized image's shorter side kept by the crop; None for 224 / 256.
        squash: whether to resize to a square regardless of the aspect ratio.
    """
    side = round(size * RESIZE) if share is None else int(size / share)
    resize = v2.Resize((side, side) if squash else side, v2.InterpolationMode(interpolation))
    return v2.Compose([resize, v2.CenterCrop(size), to_unit])


def training_crop(size: int, interpolation: str = "bilinear") -> v2.Transform:
    """Return a transform of PIL images to float (3, size, size) in [0, 1]: random crop and flip, from torch's global generator."""
    return v2.Compose([v2.RandomResizedCrop(size, interpolation=v2.InterpolationMode(interpolation)), v2.RandomHorizontalFlip(), to_unit])


def keyed(transform: Callable, image: Image.Image | Tensor, generator: torch.Generator) -> Tensor:
    """Apply a torchvision transform with random numbers from ``generator`` alone.

    torchvision draws from torch's global generator, which is seeded from ``generator`` for the call and restored afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return transform(image)


def stamp_of(path: str | os.PathLike[str]) -> str:
    """Return a file's size and modification time; empty if it is missing."""
    try:
        found = os.stat(path)
    except OSError:
        return ""
    return f"{found.st_size} {found.st_mtime_ns}"


class FileImages:
    """Reader of image files: the ``read`` and ``augment`` of a data set.

    Args:
        share, interpolation, squash: see :func:`evaluation_crop`.
    """

    def __init__(
        self,
        paths: Sequence[str | os.PathLike[str]],
        size: int,
        upright: bool = False,
        share: float | None = None,
        interpolation: str = "bilinear",
        squash: bool = False,
    ) -> None:
        self.paths, self.size, self.upright = list(paths), size, upright
        self._evaluation, self._training = evaluation_crop(size, share, interpolation, squash), training_crop(size, interpolation)

    def viewed(self, size: int, share: float, interpolation: str = "bilinear", squash: bool = False) -> FileImages:
        """Return a reader of the same files with another size and crop."""
        return FileImages(self.paths, size, self.upright, share, interpolation, squash)

    def stamp(self, index: int) -> str:
        """Return :func:`stamp_of` a file."""
        return stamp_of(self.paths[index])

    def file_size(self, index: int) -> tuple[int, int]:
        """Return a file's height and width in pixels, reading only its header."""
        try:
            with Image.open(self.paths[index]) as picture:
                return picture.height, picture.width
        except OSError as error:
            raise ImageReadError(f"cannot read {os.fspath(self.paths[index])!r}: {error}") from error

    def read(self, index: int) -> Tensor:
        """Return the evaluation crop, float (3, size, size) in [0, 1]."""
        return self._evaluation(read_rgb(self.paths[index], self.upright))

    def augment(self, index: int, generator: torch.Generator) -> Tensor:
        """Return a random training crop, float (3, size, size) in [0, 1]."""
        return keyed(self._training, read_rgb(self.paths[index], self.upright), generator)


class TensorImages:
    """Reader of images in memory: the ``read`` and ``augment`` of a data set of small images.

    Args:
        pixels: (N, C, H, W), float in [0, 1] or uint8; one channel becomes three equal ones.
        shift: the augmentation's largest shift, in pixels, with black borders.
    """

    def __init__(self, pixels: Tensor, shift: int = 0) -> None:
        self.pixels = pixels
        self._augmentation = v2.Compose([v2.RandomCrop(tuple(pixels.shape[-2:]), padding=shift), v2.RandomHorizontalFlip()])

    def read(self, index: int) -> Tensor:
        """Return an image, float (3, H, W) in [0, 1]."""
        image = self.pixels[index]
        image = image if image.is_floating_point() else image.float() / 255
        return image.expand(3, -1, -1)

    def augment(self, index: int, generator: torch.Generator) -> Tensor:
        """Return a randomly shifted and flipped image, float (3, H, W) in [0, 1]."""
        return keyed(self._augmentation, self.read(index), generator)


def viewed(dataset: ImageDataset, view: tuple[Any, ...] | None) -> ImageDataset:
    """Return a data set's images as a net expects them.

    Args:
        view: pixels per side, the fraction of the shorter side kept by the crop, and optionally the interpolation and whether to squash;
            None to leave the images unchanged.

    Returns:
        A data set that reads the same files in that way; the same data set if its images are not files.
    """
    images = getattr(dataset.read, "__self__", None)
    if view is None or not isinstance(images, FileImages):
        return dataset
    found, seen = copy.copy(dataset), images.viewed(*view)
    found.read, found.augment, found.view = seen.read, dataset.augment and seen.augment, view
    return found
