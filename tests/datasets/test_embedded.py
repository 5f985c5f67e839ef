"""Data sets that come with packages."""

import pytest
import torch

from idsds.common.normalisation import HALF, UNIT
from idsds.datasets import DATASETS, create_dataset, list_datasets

EMBEDDED = [name for name in list_datasets() if DATASETS[name].embedded]


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_data(name):
    found = {split: create_dataset(name, split, UNIT) for split in ("train", "val", "test")}
    ids = [i for part in found.values() for i in part.image_ids]
    assert len(ids) == len(set(ids))
    image, target, image_id = found["test"][3]
    size = DATASETS[name].image_size
    assert (image.shape, image.dtype) == ((3, size, size), torch.float32)
    assert 0 <= image.min() < image.max() <= 1
    assert (target, image_id) == (found["test"].targets[3], found["test"].image_ids[3])
    classes = set(found["train"].targets) if DATASETS[name].distill else set(range(DATASETS[name].num_classes))
    assert set(found["val"].targets) == classes


@pytest.mark.parametrize("name", [name for name in EMBEDDED if DATASETS[name].normalisation != HALF])  # 0.5 / 0.5 is a choice
def test_statistics_are_those_of_the_training_images(name):
    found = create_dataset(name, "train", UNIT)
    pixels = torch.stack([found[i][0] for i in range(0, len(found), 3)])
    normalisation = DATASETS[name].normalisation
    # Every third image: the standard error of a mean over 479 or more images of spread below 0.1 is under 0.004.
    assert normalisation.mean[0] == pytest.approx(pixels.mean().item(), abs=0.012)
    assert normalisation.std[0] == pytest.approx(pixels.std().item(), abs=0.012)
