import torch

from idsds.datasets import create_dataset
from idsds.datasets.photos import CROPS, PHOTOS, POOL


def test_five_fixed_crops_of_each_photo():
    photos = create_dataset("photos20")
    assert len(photos) == len(set(photos.image_ids)) == len(PHOTOS) * len(CROPS)
    image, target, image_id = photos[0]
    assert (image.shape, target, image_id) == ((3, 224, 224), PHOTOS[0][0], "photos20/00/centre")
    assert torch.equal(image, photos[0][0])
    assert [photos.classes[target] for target in photos.targets[::25]] == ["bull mastiff", "thatch", "drum", "goose"]
    crops = [photos.read(index) for index in range(len(CROPS))]
    # 288 - 224 = 64 pixels: the centre begins at 32, the crop at the bottom right at 64.
    assert torch.equal(crops[0][:, 32:, 32:], crops[4][:, :-32, :-32])
    assert torch.equal(crops[1][:, 64:, :], crops[3][:, :-64, :])
    assert torch.equal(crops[1][:, :, 64:], crops[2][:, :, :-64])


def test_the_pool_has_random_crops():
    pool = create_dataset("photos20", "train")
    assert len(pool) == POOL * len(PHOTOS)
    first, again, other = (pool.augmented(seed=0, epoch=epoch)[0][0] for epoch in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, pool.augmented(seed=0, epoch=0)[1][0]), "two of a photo differ"


def test_subsets_keep_their_groups():
    photos = create_dataset("photos20")
    assert photos.groups == ["photo " + image_id.split("/")[1] for image_id in photos.image_ids]
    assert photos.subset([7, 0]).groups == ["photo 01", "photo 00"]
