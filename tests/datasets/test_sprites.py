"""Sprites: what is drawn is what is said to be there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from idsds.common.normalisation import UNIT
from idsds.datasets import collate, create_dataset
from idsds.datasets.splits import permuted
from idsds.datasets.sprites import CLASSES, NAMES, OBJECTS
from idsds.protocols.parts import rivals, sufficient_sets
from idsds.training.checkpoints import trains_from_scratch
from idsds.training.steps import loss_of


def test_classes_can_be_told_apart_and_each_has_two_rivals():
    shared = (CLASSES[:, None] == CLASSES).sum(dim=2) - 5 * torch.eye(len(CLASSES), dtype=torch.long)
    assert shared.max() == 2
    assert (rivals(CLASSES) >= 0).all()
    for target in range(len(CLASSES)):
        assert (sufficient_sets(CLASSES, target).sum(dim=1) >= 2).all()  # no part gives a class away


def test_an_intervention_changes_the_pixels_of_its_part_and_no_others():
    data = create_dataset("sprites", "test", UNIT)
    for index, image_id in enumerate(data.image_ids[:20]):
        whole, regions, parts = data[index][0], data.parts.regions(image_id), data.parts
        assert (regions.sum(dim=0) <= 1).all()
        assert regions[:5].flatten(1).any(dim=1).all()
        assert torch.equal(parts.draw(image_id, parts.whole), whole)
        for part in range(len(NAMES)):
            changed = (parts.draw(image_id, parts.whole - 2**part) != whole).any(dim=0)
            assert torch.equal(changed, regions[part]), (image_id, NAMES[part])
        for number in range(parts.count(image_id)):
            changed = (parts.without_object(image_id, number) != whole).any(dim=0)
            assert torch.equal(changed, regions[5 + number])
        assert not regions[5 + parts.count(image_id) :].any()
        bare = (parts.draw(image_id, 0) != whole).any(dim=0)
        assert torch.equal(bare, regions[:5].any(dim=0))
    counts = [data.parts.count(image_id) for image_id in data.image_ids]
    assert (min(counts), max(counts)) == (0, OBJECTS)


def test_training_drops_parts_and_spreads_the_loss():
    data = create_dataset("sprites", "train", UNIT)
    epoch = data.augmented(0, 0)
    fits = torch.stack([epoch[index][1] for index in range(400)])
    torch.testing.assert_close(fits.sum(dim=1), torch.ones(400))
    for row, target in zip(fits, data.targets[:400], strict=True):
        assert row[target] == row.max()
    untouched = sum(torch.equal(epoch[index][0], data[index][0]) for index in range(400)) / 400
    assert abs(untouched - (1 / 2 + 1 / 12)) < 0.08  # half, and a sixth of the other half; the deviation is .025
    assert torch.equal(epoch[7][0], data.augmented(0, 0)[7][0])
    parts = data.parts
    torch.testing.assert_close(parts.fitting(0, 0), torch.full((10,), 0.1))
    assert parts.fitting(0, 0b11000).nonzero().flatten().tolist() == [0]  # tail and wing of class 0 are its own as a pair
    assert parts.fitting(0, 0b00001).nonzero().flatten().tolist() == [0, 1, 2, 3]


def test_permuted_labels_replace_the_fitting_classes():
    """Else a net would be trained on true labels where they were to be permuted."""
    changed = permuted(create_dataset("sprites", "train", UNIT))
    assert [changed.augmented(0, 0)[index][1] for index in range(20)] == changed.targets[:20]


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy"])
def test_the_loss_takes_a_batch_of_fitting_classes(loss):
    _, targets, _ = collate([create_dataset("sprites", "train", UNIT).augmented(0, 0)[index] for index in range(6)])
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    log = F.log_softmax(logits, dim=1)
    expected = {
        "cross_entropy": -(targets * log).sum(dim=1).mean(),
        "binary_cross_entropy": -(targets * F.logsigmoid(logits) + (1 - targets) * F.logsigmoid(-logits)).mean(),
    }
    torch.testing.assert_close(loss_of(logits, targets, loss), expected[loss])


def test_small_nets_are_trained_on_it():
    for dataset in ("sprites", "mnist5k"):
        assert trains_from_scratch("mini_resnet8", dataset)
        assert trains_from_scratch("mini_vit", dataset)
    assert not trains_from_scratch("resnet50", "sprites")
