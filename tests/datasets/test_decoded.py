import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

import idsds
from idsds.common.hashing import OwnImages
from idsds.common.normalisation import HALF, IMAGENET
from idsds.datasets import ImageDataset, collate, create_dataset
from idsds.datasets.base import fixed_order
from idsds.datasets.decoded import Decoded
from idsds.datasets.folders import file_dataset
from idsds.evaluation.run import Source


@pytest.fixture
def photos(tmp_path):
    """Seven files as a data set that leaves out what it cannot read; the fourth is damaged."""
    rng = np.random.default_rng(0)
    files = [tmp_path / f"{number}.png" for number in range(7)]
    for file in files:
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8)).save(file)
    files[3].write_bytes(b"no image")
    return file_dataset("photos", "test", IMAGENET, list(map(str, files)), list("abcdefg"), [0, 1] * 3 + [0], ["x", "y"], 16, "skip")


class Counted(Dataset):
    """A user's data set of six images that counts how often it is read."""

    def __init__(self):
        self.images, self.reads = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)), []

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        self.reads.append(index)
        return self.images[index], index % 2


GROUPS = [[4, 2, 3], [3], [0, 6], [1]]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("keep", [0, 2 * 16 * 16 * 3, None])
def test_batches_are_those_of_the_data_set_however_they_are_read(photos, workers, keep):
    decoded, state = Decoded(photos, keep), torch.random.get_rng_state()
    for again in (decoded, decoded):
        for group, (images, targets, image_ids) in zip(GROUPS, again.batches(GROUPS, workers), strict=True):
            wanted = collate([photos[index] for index in group])
            assert torch.equal(images, wanted[0])
            assert torch.equal(targets, wanted[1])
            assert image_ids == wanted[2]
    assert torch.equal(torch.random.get_rng_state(), state), "reading draws no random numbers"
    assert photos.skipped == ["d"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are counted on Linux")
def test_kept_images_take_no_file_descriptors():
    """What a worker sends lies in shared memory, a descriptor each: a thousand kept images would use up a usual process's limit."""
    import resource  # not on Windows

    data = create_dataset("mnist5k", "test", IMAGENET)
    limits, there = resource.getrlimit(resource.RLIMIT_NOFILE), len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (there + 40, limits[1]))
    try:
        batches = list(Decoded(data).batches([[2 * number, 2 * number + 1] for number in range(60)], workers=1))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert [image_id for *_, ids in batches for image_id in ids] == data.image_ids[:120]


def test_a_kept_image_is_not_read_again_and_serves_another_normalisation(photos, monkeypatch):
    decoded = Decoded(photos)
    list(decoded.batches([[0, 1, 2]]))
    other = ImageDataset("photos", "test", photos.image_ids, photos.targets, photos.read, ["x", "y"], HALF)
    wanted = other[1][0]
    monkeypatch.setattr(type(photos), "pixels", lambda *_: pytest.fail("read again"))
    images = next(decoded.of(other).batches([[1]]))[0]
    assert torch.equal(images[0], wanted)
    assert decoded._kept[1][0].dtype == torch.uint8, "whole multiples of 1 / 255 take a byte"


def test_images_are_read_once_for_all_models_and_seeds(tmp_path):
    """The first item is looked at to see what the data set is; hashing, planning, two nets and two seeds share the rest."""
    nets = {name: nn.Sequential(nn.Flatten(), nn.Linear(192, 2)) for name in "ab"}
    for output in (None, tmp_path / "run"):
        data = Counted()
        idsds.evaluate(nets, ["IxG", "Random"], data, "single_deletion", seed=[0, 1], output=output, progress=False)
        assert max(data.reads.count(index) for index in range(2, 6)) == 1
        assert max(data.reads.count(index) for index in range(6)) <= 8  # nets and methods are tried on the first two
    records = idsds.load_records(tmp_path / "run")
    again = idsds.evaluate(nets, ["IxG", "Random"], Counted(), "single_deletion", seed=[0, 1], workers=2, progress=False)
    assert (records["score"] == again["score"]).all()


def test_a_run_without_a_folder_reads_files_once_and_hashes_nothing(photos, monkeypatch):
    reads, read = [], photos.read
    photos.read = lambda index: reads.append(index) or read(index)
    photos.targets[3] = 7  # of the file that cannot be read, which needs no class
    nets = {name: nn.Sequential(nn.Flatten(), nn.Linear(768, 2)) for name in "ab"}
    monkeypatch.setattr(OwnImages, "_hash", lambda *_: pytest.fail("hashed"))
    with pytest.warns(UserWarning, match="skipped: d"):
        idsds.evaluate(nets, ["IxG", "Random"], photos, "single_deletion", progress=False)
    looked_at = {0, 1, 3, *fixed_order(photos.image_ids)[:3]}  # the first ones, to see what the images are
    assert {reads.count(index) for index in {*range(7)} - looked_at} == {1}
    assert {*reads} == {*range(7)}


def test_without_room_images_are_read_again(monkeypatch):
    monkeypatch.setenv("IDSDS_IMAGES_GB", "0")
    data = Counted()
    idsds.evaluate({"net": nn.Sequential(nn.Flatten(), nn.Linear(192, 2))}, ["IxG"], data, "single_deletion", progress=False)
    assert data.reads.count(5) == 2
    monkeypatch.setenv("IDSDS_IMAGES_GB", "much")
    with pytest.raises(ValueError, match="IDSDS_IMAGES_GB must be a number of gigabytes of at least 0, not 'much'"):
        Decoded(data)
    monkeypatch.delenv("IDSDS_IMAGES_GB")
    with pytest.raises(ValueError, match="workers must be a whole number of at least 0, not -1"):
        idsds.evaluate({"net": nn.Flatten()}, ["IxG"], data, "single_deletion", workers=-1)


def test_nets_of_another_size_do_not_share_images():
    """The key of what is shared leaves out the normalisation, and nothing else."""
    plan = SimpleNamespace(jobs=(0, 1))
    jobs = [
        SimpleNamespace(own_images=None, data=("digits", "test", normalisation, view), dataset=create_dataset("digits", "test"))
        for normalisation, view in ((None, None), (HALF, None), (None, (16, 1.0)))
    ]
    source = Source(plan, [0, 1, 2])
    first, same, other = (source._of(job) for job in jobs)
    assert first._kept is same._kept
    assert first._kept is not other._kept
