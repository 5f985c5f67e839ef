"""The layouts of torchvision, with torchvision's classes as the oracle for files, targets and pixels."""

import gzip
import json
import pickle

import numpy as np
import pytest
import torch
import torchvision.datasets

from idsds.common.normalisation import UNIT
from idsds.datasets import ImageReadError, create_dataset
from idsds.datasets.torchvision import read_idx

from .conftest import write_classes, write_image

WNIDS = {"n01440764": 10, "n03888257": 10, "n02102040": 10}


def idx(array, path, zipped):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = header + array.astype(np.uint8).tobytes()
    path.with_name(path.name + ".gz").write_bytes(gzip.compress(content)) if zipped else path.write_bytes(content)


@pytest.fixture(params=["torchvision", "package"])
def fashion(tmp_path, request):
    """The IDX files as torchvision unpacks them, and gzipped as Debian's package has them."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "FashionMNIST" / "raw" if request.param == "torchvision" else tmp_path
    for half, count in (("train", 200), ("t10k", 50)):
        idx(rng.integers(0, 256, (count, 28, 28)), folder / f"{half}-images-idx3-ubyte", request.param == "package")
        idx(np.arange(count) % 10, folder / f"{half}-labels-idx1-ubyte", request.param == "package")
    return tmp_path, request.param


def test_fashion_mnist(fashion):
    root, layout = fashion
    found = {split: create_dataset("fashion_mnist", split, UNIT, root=root, held_out=0.1) for split in ("train", "val", "test")}
    assert [len(found[split]) for split in found] == [180, 20, 50]
    assert not set(found["train"].image_ids) & set(found["val"].image_ids)
    image, target, _ = found["test"][13]
    assert (image.shape, target) == ((3, 32, 32), 3)
    assert image[:, :2].abs().sum() == image[:, :, -2:].abs().sum() == 0
    if layout == "torchvision":
        oracle = torchvision.datasets.FashionMNIST(root, train=False, download=False)
        assert torch.equal(255 * image[1, 2:-2, 2:-2], oracle.data[13].float())
        assert found["test"].targets == oracle.targets.tolist()
        assert found["test"].classes == oracle.classes


def test_fashion_mnist_statistics_are_those_of_the_padded_images(fashion):
    """Means and deviations of the padded images from the known ones of the 28 x 28 images, 0.2860 and 0.3530."""
    share, mean, std = (28 / 32) ** 2, 0.2860, 0.3530
    padded = share * mean
    normalisation = create_dataset("fashion_mnist", root=fashion[0]).normalisation
    assert normalisation.mean[0] == pytest.approx(padded, abs=5e-4)
    assert normalisation.std[0] == pytest.approx((share * (mean**2 + std**2) - padded**2) ** 0.5, abs=5e-4)


@pytest.mark.parametrize("damage", ["short", "other", "gzip"])
def test_a_damaged_idx_file_is_named(tmp_path, damage):
    idx(np.zeros((3, 4, 4)), path := tmp_path / "t-images", damage == "gzip")
    path = path.with_name("t-images.gz") if damage == "gzip" else path
    content = path.read_bytes()
    path.write_bytes(b"<html>" + content if damage == "other" else content[:-9])
    with pytest.raises(ImageReadError, match="t-images"):
        read_idx(path)


def test_cifar10(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [f"data_batch_{n}" for n in range(1, 6)] + ["test_batch"]:
        content = {"data": rng.integers(0, 256, (40, 3072), dtype=np.uint8), "labels": [n % 10 for n in range(40)]}
        (folder / name).write_bytes(pickle.dumps(content))
    labels = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": labels}))
    with pytest.raises(FileNotFoundError, match="damaged"):  # not the official checksums
        create_dataset("cifar10", root=tmp_path)
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", lambda *_: True)
    found = {split: create_dataset("cifar10", split, UNIT, root=tmp_path) for split in ("train", "val", "test")}
    assert [len(found[split]) for split in found] == [180, 20, 40]  # 2 of each class of 20
    oracle = torchvision.datasets.CIFAR10(tmp_path, train=False, transform=torchvision.transforms.ToTensor())
    assert torch.equal(found["test"][7][0], oracle[7][0])
    assert (found["test"].targets, found["test"].classes) == (oracle.targets, labels)


@pytest.mark.parametrize("size", ["imagenette2", "imagenette2-160"])
def test_imagenette(tmp_path, size):
    write_classes(tmp_path / size / "train", WNIDS, ".JPEG")
    write_classes(tmp_path / size / "val", dict.fromkeys(WNIDS, 3), ".JPEG")
    found = create_dataset("imagenette", root=tmp_path)
    assert len(create_dataset("imagenette", "val", root=tmp_path)) == 3  # 8 % of 10, per class
    oracle = torchvision.datasets.ImageFolder(tmp_path / size / "val")
    assert (found.targets, found.classes) == (oracle.targets, oracle.classes)
    thousand = create_dataset("imagenette", root=tmp_path, imagenet_labels=True)
    assert thousand.num_classes == 1000
    assert set(thousand.targets) == {0, 217, 701}
    assert [thousand.classes[t].split(",")[0] for t in (0, 217, 701)] == ["tench", "English springer", "parachute"]


@pytest.mark.parametrize("layout", ["official", "kaggle"])
def test_food101(tmp_path, layout):
    base = tmp_path / "food-101" if layout == "official" else tmp_path
    meta = base / "meta" if layout == "official" else base / "meta" / "meta"
    meta.mkdir(parents=True)
    for half, numbers in {"train": range(20), "test": range(20, 25)}.items():
        (meta / f"{half}.json").write_text(json.dumps({name: [f"{name}/{n}" for n in numbers] for name in ("waffles", "apple_pie")}))
        for name in ("waffles", "apple_pie"):
            for n in numbers:
                write_image(base / "images" / name / f"{n}.jpg", seed=n)
    found = {split: create_dataset("food101", split, root=tmp_path, image_size=28) for split in ("train", "val", "test")}
    assert [len(found[split]) for split in found] == [36, 4, 10]
    assert found["test"].classes == ["apple_pie", "waffles"]
    if layout == "official":
        oracle = torchvision.datasets.Food101(tmp_path, split="test")
        pairs = {(path.stem, label) for path, label in zip(oracle._image_files, oracle._labels, strict=True)}
        assert {(i.split("/")[-1], t) for i, t in zip(found["test"].image_ids, found["test"].targets, strict=True)} == pairs
    assert found["test"][9][0].shape == (3, 28, 28)
