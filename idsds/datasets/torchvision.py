"""Data sets in the layouts of torchvision's classes of the same name; nothing is downloaded.

``val`` is a keyed, stratified fraction ``held_out`` of the official training images, ``test`` the official test (or validation) images;
for the location of files and the effect of ``held_out=0`` see :mod:`idsds.datasets.folders`.
"""

from __future__ import annotations

import gzip
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from idsds.common.normalisation import IMAGENET, Normalisation
from idsds.datasets.base import ImageDataset, ImageReadError, OnError, register_dataset
from idsds.datasets.folders import Layout, Root, data_root, folder_dataset, imagenet_classes, listed_dataset
from idsds.datasets.images import TensorImages
from idsds.datasets.splits import VALIDATION, official_half, within_half

FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
# The folder of the Debian package dataset-fashion-mnist.
FASHION_PACKAGE = "/usr/share/datasets/fashion-mnist"


def _small(
    name: str, split: str, half: str, normalisation: Normalisation, held_out: float, classes: list[str], data: tuple
) -> ImageDataset:
    """Return a data set of 32 x 32 images in memory, ``data`` = pixels (N, C, 32, 32) uint8 and targets."""
    pixels, targets = data
    ids = [f"{name}/{half}/{index:05d}" for index in range(len(targets))]
    images = TensorImages(pixels, shift=4)
    whole = ImageDataset(name, split, ids, targets, images.read, classes, normalisation, images.augment)
    return whole.subset(within_half(ids, targets, split, held_out))


def read_idx(path: Path) -> Tensor:
    """Read an IDX file of unsigned bytes, plain or gzipped: two zero bytes, type 8, number of dimensions, their sizes, the values.

    Raises:
        ImageReadError: if the file has another format or is truncated; the message names it.
    """
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            raw = file.read()
    except (OSError, EOFError) as error:
        raise ImageReadError(f"cannot read {str(path)!r}: {error}") from error
    if raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise ImageReadError(f"{str(path)!r} is not an IDX file of unsigned bytes: it begins with {raw[:4].hex(' ')!r}")
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4).tolist()
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3])
    if len(values) != int(np.prod(shape)):
        raise ImageReadError(f"{str(path)!r} ends early: {len(values)} of {int(np.prod(shape))} bytes for the shape {tuple(shape)}")
    return torch.from_numpy(values.reshape(shape).copy())


@cache
def _fashion(root: Path, half: str) -> tuple[Tensor, list[int]]:
    prefix = {"train": "train", "test": "t10k"}[half]
    found = []
    for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
        names = [folder / f"{prefix}-{kind}{end}" for folder in (root, root / "FashionMNIST" / "raw", root / "raw") for end in ("", ".gz")]
        path = next((name for name in names if name.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"data set 'fashion_mnist': {prefix}-{kind} (or .gz) is not in {str(root)!r} or its FashionMNIST/raw")
        found.append(read_idx(path))
    images, labels = found
    if len(images) != len(labels):
        raise ImageReadError(f"data set 'fashion_mnist': {len(images)} images and {len(labels)} labels in {str(root)!r}")
    return F.pad(images[:, None], [2, 2, 2, 2]), labels.tolist()  # (N, 1, 28, 28) -> (N, 1, 32, 32)


@register_dataset(
    num_classes=10,
    image_size=32,
    normalisation=Normalisation((0.2190,) * 3, (0.3318,) * 3),
    source="Fashion-MNIST (Xiao et al., arXiv 1708.07747): the four IDX files, or Debian's package dataset-fashion-mnist",
)
def fashion_mnist(split: str, normalisation: Normalisation, root: Root = None, held_out: float = VALIDATION) -> ImageDataset:
    """Load 28 x 28 photos of clothing zero-padded to 32 x 32, with three equal channels; 55,200 / 4,800 / 10,000 images."""
    wanted = "the IDX files train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte (or .gz)"
    folder, half = data_root("fashion_mnist", root, wanted, fallbacks=[FASHION_PACKAGE]), official_half(split, held_out)
    return _small("fashion_mnist", split, half, normalisation, held_out, FASHION, _fashion(folder, half))


@register_dataset(
    num_classes=10,
    image_size=32,
    normalisation=Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    source="CIFAR-10 (Krizhevsky, 2009): cifar-10-python.tar.gz, unpacked",
)
def cifar10(split: str, normalisation: Normalisation, root: Root = None, held_out: float = VALIDATION) -> ImageDataset:
    """Load 32 x 32 photos from ``cifar-10-batches-py/``, read and checksummed by torchvision; 46,000 / 4,000 / 10,000 images."""
    from torchvision.datasets import CIFAR10

    wanted = "the folder cifar-10-batches-py of cifar-10-python.tar.gz"
    folder, half = data_root("cifar10", root, wanted), official_half(split, held_out)
    try:
        found = CIFAR10(folder, train=half == "train", download=False)
    except RuntimeError as error:
        raise FileNotFoundError(f"data set 'cifar10': {str(folder)!r} does not hold {wanted}, or a file of it is damaged") from error
    pixels = torch.from_numpy(found.data).permute(0, 3, 1, 2)  # (N, 32, 32, 3) -> (N, 3, 32, 32)
    return _small("cifar10", split, half, normalisation, held_out, found.classes, (pixels, found.targets))


@register_dataset(
    num_classes=10,
    image_size=224,
    normalisation=IMAGENET,
    source="Imagenette (Howard, fast.ai): imagenette2.tgz, or its 320 or 160 pixel version",
)
def imagenette(
    split: str,
    normalisation: Normalisation,
    root: Root = None,
    image_size: int = 224,
    held_out: float = VALIDATION,
    on_error: OnError = "raise",
    imagenet_labels: bool = False,
) -> ImageDataset:
    """Load ten easy classes of ImageNet from ``imagenette2/{train,val}/<wnid>`` (or ``imagenette2-320``, ``imagenette2-160``).

    With ``imagenet_labels`` the targets are ImageNet's 1,000 indices, for models with 1,000 logits; otherwise 0 to 9.
    """
    bases = ("imagenette2", "imagenette2-320", "imagenette2-160", "")
    layout = Layout("imagenette2/{train,val}/<wnid>/*.JPEG", bases=bases)
    options = {"image_size": image_size, "held_out": held_out, "on_error": on_error}
    named = imagenet_classes() if imagenet_labels else None
    return folder_dataset("imagenette", split, normalisation, layout, root, named=named, **options)


@register_dataset(
    num_classes=101,
    image_size=224,
    normalisation=IMAGENET,
    source="Food-101 (Bossard et al., ECCV 2014): food-101.tar.gz, or Kaggle kmader/food41",
)
def food101(
    split: str,
    normalisation: Normalisation,
    root: Root = None,
    image_size: int = 224,
    held_out: float = VALIDATION,
    on_error: OnError = "raise",
) -> ImageDataset:
    """Load 101,000 photos of dishes from ``food-101/images/<class>/*.jpg`` with ``meta/{train,test}.json`` (Kaggle: ``meta/meta``)."""
    wanted = "the folder food-101 with images/<class>/*.jpg and meta/train.json, meta/test.json"
    folder, half = data_root("food101", root, wanted), official_half(split, held_out)
    places = [(base, base / meta / f"{half}.json") for base in (folder, folder / "food-101") for meta in ("meta", "meta/meta")]
    base, listing = next(((base, path) for base, path in places if path.is_file()), (folder, None))
    if listing is None:
        raise FileNotFoundError(f"data set 'food101': {str(folder)!r} does not hold {wanted}")
    by_class = json.loads(listing.read_text(encoding="utf-8"))  # class -> ["class/number", ...]
    classes = sorted(by_class)
    listed = [name for key in classes for name in sorted(by_class[key])]
    options = {"image_size": image_size, "held_out": held_out, "on_error": on_error}
    return listed_dataset("food101", split, normalisation, base / "images", listed, classes, suffix=".jpg", **options)
