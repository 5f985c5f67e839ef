"""What holds for every data set: items, orders, splits, manifests, pickling."""

import pickle

import pandas as pd
import pytest
import torch

from idsds.common.normalisation import HALF, UNIT
from idsds.common.registry import UnknownNameError
from idsds.datasets import (
    DATASETS,
    ImageDataset,
    as_image_dataset,
    collate,
    create_dataset,
    fingerprint,
    first_images,
    fixed_order,
    list_datasets,
    manifest,
    read_manifest,
    stratified_split,
    write_manifest,
)

EMBEDDED = [name for name in list_datasets() if DATASETS[name].embedded]


def test_the_registry_has_every_data_set():
    wanted = "mnist5k digits fashion_mnist imagenette imagenet image_folder cifar10 food101 stanford_dogs plants99 edible_plants marvel"
    assert set(wanted.split()) <= set(list_datasets())


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


def test_a_data_set_can_be_sent_to_a_spawned_process():
    found = create_dataset("digits")
    again = pickle.loads(pickle.dumps(found.augmented(0, 0)))
    assert torch.equal(again[5][0], found[5][0])


def test_fixed_order_mixes_and_is_stable():
    ids = [f"x/{n}" for n in range(50)]
    order = fixed_order(ids)
    assert sorted(order) == list(range(50))
    assert order != list(range(50))
    more = [f"x/{n}" for n in range(60)]
    assert [i for i in fixed_order(more) if i < 50] == order


@pytest.mark.parametrize("ending", [".csv", ".json"])
def test_a_manifest_names_the_same_subset_for_everyone(tmp_path, ending):
    found = create_dataset("digits", "test")
    path = write_manifest(found, tmp_path / f"subset{ending}", images=17)
    table = read_manifest(path)
    assert table["image_id"].tolist() == [found.image_ids[i] for i in fixed_order(found.image_ids)[:17]]
    chosen = create_dataset("digits", "test", UNIT, manifest=path)
    assert chosen.image_ids == first_images(found, 17).image_ids == table["image_id"].tolist()
    assert chosen.targets == table["target"].tolist()
    assert [chosen.classes[t] for t in chosen.targets] == table["class"].astype(str).tolist()
    assert torch.equal(chosen[4][0], create_dataset("digits", "test", UNIT)[found.image_ids.index(chosen.image_ids[4])][0])
    assert fingerprint(chosen) != fingerprint(found)


def test_manifest_errors(tmp_path):
    found = create_dataset("digits")
    with pytest.raises(ValueError, match=rf"1\.\.{len(found)}"):
        manifest(found, len(found) + 1)
    with pytest.raises(ValueError, match=r"\.csv or \.json"):
        write_manifest(found, tmp_path / "a.txt")
    path = write_manifest(found, tmp_path / "a.csv", images=4)
    table = pd.read_csv(path)
    table.assign(target=(table["target"] + 1) % 10).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"a\.csv.*has target"):
        create_dataset("digits", manifest=path)
    with pytest.raises(ValueError, match=r"a\.csv.*4 images"):
        create_dataset("digits", "train", manifest=path)
    table.drop(columns="target").to_csv(path, index=False)
    with pytest.raises(ValueError, match="target"):
        read_manifest(path)


@pytest.mark.parametrize(("validation", "test"), [(0.5, 0.5), (-0.1, 0), (0, 1.0)])
def test_impossible_shares_are_refused(validation, test):
    with pytest.raises(ValueError, match="fractions"):
        stratified_split(["a"], [0], "train", validation=validation, test=test)


def test_unknown_names_are_named():
    with pytest.raises(UnknownNameError, match="Did you mean 'mnist5k'"):
        create_dataset("mnist5")
    with pytest.raises(UnknownNameError, match="option of data set 'mnist5k'"):
        create_dataset("mnist5k", roots="x")


def test_own_data_sets():
    tensors = [(torch.rand(3, 4, 6), n) for n in range(3)]
    found = as_image_dataset(tensors)
    images, targets, ids = collate([found[0], found[2]])
    assert (images.shape, targets.tolist(), ids) == ((2, 3, 4, 6), [0, 2], ["0", "2"])
    for wrong, reason in (([], "empty"), ([(1, 2)], "float tensor"), ([3], "item"), (iter(()), "__len__")):
        with pytest.raises((TypeError, ValueError), match=reason):
            as_image_dataset(wrong)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 image ids for 1 targets"):
        ImageDataset("x", "test", ["a", "b"], [0], read=lambda i: None, classes=["c"], normalisation=UNIT)
