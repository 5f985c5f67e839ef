"""What holds for every data set: items, orders, splits, manifests, pickling."""

import pickle

import pytest
import torch

from idsds.common.normalisation import UNIT
from idsds.common.registry import UnknownNameError
from idsds.datasets import (
    ImageDataset,
    as_image_dataset,
    collate,
    create_dataset,
    fixed_order,
    list_datasets,
)


def test_the_registry_has_every_data_set():
    wanted = "mnist5k digits fashion_mnist imagenette imagenet image_folder cifar10 food101 stanford_dogs plants99 edible_plants marvel"
    assert set(wanted.split()) <= set(list_datasets())


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
