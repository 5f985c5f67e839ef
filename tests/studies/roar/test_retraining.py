"""Retraining: images whose pixels are replaced, and what is counted."""

import torch
from torch import nn

from idsds.datasets import create_dataset
from idsds.protocols.roar import MASK, pixel_ranks
from idsds.studies.roar import retraining as retrained
from idsds.studies.roar.retraining import channel_means, fill_colour, modified


def test_top_5_is_counted_over_five_of_ten_classes():
    data = create_dataset("digits").subset(range(30))
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)).eval()
    found = retrained.predictions(net, data, 16)
    logits = torch.stack([net(data[index][0][None])[0] for index in range(30)])
    order = logits.argsort(dim=1, descending=True).tolist()
    assert found["predicted"] == [classes[0] for classes in order]
    assert found["top5"] == [int(target in classes[:5]) for target, classes in zip(data.targets, order, strict=True)]
    assert 0 < sum(found["top5"]) < 30


def test_pixels_are_replaced_by_the_training_mean_in_the_space_of_the_pixels():
    data = create_dataset("synthetic", "val").subset(range(6))
    fill = channel_means(data)
    torch.testing.assert_close(fill, torch.stack([data.read(index) for index in range(6)]).mean(dim=(0, 2, 3)))
    for _ in range(2):  # computed, then from the disk
        torch.testing.assert_close(fill_colour("mean", data), fill)
    assert fill_colour("black", data).tolist() == [0, 0, 0]
    ranks = pixel_ranks(torch.randn(6, 1, 32, 32), range(6))
    changed = modified(data, ranks, 0.25, "remove", fill, flip=True)
    image, _, image_id = changed[3]
    replaced = (ranks[3] < 256).expand(3, -1, -1)
    assert image_id == data.image_ids[3]
    torch.testing.assert_close(image[~replaced], data[3][0][~replaced])
    torch.testing.assert_close(image, data.normalisation(torch.where(replaced, fill[:, None, None], data.read(3))))
    seen = [changed.augmented(seed, 0)[3][0] for seed in range(8)]
    assert all(torch.equal(each, image) or torch.equal(each, image.flip(2)) for each in seen)
    assert len({torch.equal(each, image) for each in seen}) == 2


def test_a_mask_alone_shows_no_image():
    """White where a pixel is replaced, black elsewhere, in the space of the net; of whatever image, and mirrored like one."""
    data = create_dataset("synthetic", "val").subset(range(6))
    ranks = pixel_ranks(torch.randn(6, 1, 32, 32), range(6))
    changed = modified(data, ranks, 0.25, MASK, torch.tensor([0.2, 0.3, 0.4]), flip=True)
    replaced = (ranks[3] < 256).expand(3, -1, -1)
    torch.testing.assert_close(changed.read(3), replaced.float())
    torch.testing.assert_close(changed[3][0], data.normalisation(replaced.float()))
    other = create_dataset("synthetic", "test").subset(range(6))
    torch.testing.assert_close(modified(other, ranks, 0.25, MASK, torch.zeros(3)).read(3), changed.read(3))
    seen = [changed.augmented(seed, 0)[3][0] for seed in range(8)]
    assert len({torch.equal(each, changed[3][0]) for each in seen}) == 2
