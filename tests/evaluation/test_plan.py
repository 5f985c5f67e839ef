import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

import idsds
from idsds.common.normalisation import UNIT
from idsds.common.registry import UnknownNameError
from idsds.evaluation.arguments import Arguments, make_plan
from idsds.evaluation.job import fingerprint_of
from tests.evaluation.linear import Linear, data


def plan_of(**changes):
    settings = {"models": {"net": Linear()}, "methods": ["IxG"], "dataset": data(), "protocol": "idsds", "images": 4, "seeds": [0]}
    settings |= {"checkpoints": {}, "device": "cpu", "precision": "32-true", "batch_size": None, "shard": 256}
    settings |= {"settings": {"grid": 4, "baseline": "zeros"}}
    return make_plan(Arguments(**{**settings, **changes}))


def addresses(**changes):
    """Of the records and of the drops, each with those of the images."""
    plan = plan_of(**changes)
    job = plan.jobs[0]
    columns, records = (next(unit for unit in plan.units(job, True) if (unit.group is None) == which) for which in (True, False))
    images = tuple(job.images(job.indices[:3]).values())
    return (records.address, images), (columns.address, images)


def test_an_address_is_the_same_for_the_same_thing_and_whatever_does_not_matter():
    assert addresses() == addresses()
    assert addresses() == addresses(batch_size=3)
    assert addresses() == addresses(images=3)  # a block says which images it holds
    assert addresses() == addresses(shard=3)
    assert addresses() == addresses(methods=["IxG", "IxG abs", "IxG relu", "Random"])
    assert addresses() == addresses(models={"net": Linear().train().to(memory_format=torch.channels_last)})


@pytest.mark.parametrize(
    ("changes", "drops_too"),
    [
        ({"methods": ["IxG-SG"]}, False),
        ({"methods": {"mine": lambda images, targets: images}}, False),
        ({"models": {"net": Linear(scale=2.0)}}, True),
        ({"dataset": data(shift=0.1)}, True),
        ({"seeds": [1]}, True),
        ({"precision": "bf16-mixed"}, True),
        ({"channels_last": False}, True),
        ({"settings": {"grid": 2, "baseline": "zeros"}}, True),
        ({"settings": {"grid": 4, "baseline": "blur"}}, True),
    ],
)
def test_an_address_holds_what_determines_a_record(changes, drops_too):
    (records, drops), (other_records, other_drops) = addresses(), addresses(**changes)
    assert records != other_records
    assert (drops != other_drops) == drops_too


def test_the_class_explained_enters_an_address_only_where_it_is_the_prediction(monkeypatch):
    contents = []
    monkeypatch.setattr("idsds.evaluation.plan.digest", lambda content: contents.append(content) or "digest")
    addresses()
    assert not any("target" in content for content in contents if isinstance(content, dict))  # the addresses that it had before
    monkeypatch.undo()
    assert not set(addresses()) & set(addresses(target="prediction"))


def test_drops_are_shared_by_protocols_and_lists_of_grids():
    assert addresses()[1] == addresses(protocol="single_deletion")[1]
    assert addresses()[1] == addresses(settings={"grid": [4, 2], "baseline": "zeros"})[1]


def test_a_method_that_is_registered_anew_has_another_address():
    def version(factor):
        def Again(model, images, targets):
            return factor * images

        idsds.register_method("Again", replace=True)(Again)
        return addresses(methods=["Again"])[0]

    try:
        assert version(1) == version(1)
        assert version(1) != version(2)
    finally:
        from idsds.methods import METHODS

        METHODS.remove("Again")


class Files(Dataset):
    """Its state does not hold the pixels: they are made when they are asked for."""

    value = 0.0

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return torch.full((3, 8, 16), type(self).value), 0


def test_own_data_are_addressed_by_their_pixels(monkeypatch):
    before = addresses(dataset=Files(), images=2)
    assert before == addresses(dataset=Files(), images=2)
    monkeypatch.setattr(Files, "value", 1.0)
    assert before != addresses(dataset=Files(), images=2)


def test_a_data_set_of_the_registry_is_addressed_by_its_normalisation_too():
    keys = [fingerprint_of("digits", "test", None), fingerprint_of("digits", "train", None), fingerprint_of("digits", "test", UNIT)]
    assert len(set(keys)) == 3
    job = plan_of(models=["mini_resnet8"], dataset="digits").jobs[0]
    assert fingerprint_of(*job.data) == keys[0]
    assert job.data_key == plan_of(models=["mini_resnet8"], dataset="digits", images=2).jobs[0].data_key
    assert job.images([3, 1]) == {job.dataset.image_ids[i]: job.dataset.image_ids[i] for i in (3, 1)}


def test_own_things_have_the_same_hash_in_another_process():
    code = """
import functools, torch
from torch import nn
from idsds.common.hashing import own_digest
scale = 3
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
        self.names = ["a", "b"]
        [p.data.fill_(0.5) for p in self.parameters()]
    def forward(self, x):
        return scale * self.layers(x)
def mine(images, targets, power=2):
    return images ** power * scale
print(own_digest(Net()), own_digest(mine), own_digest(functools.partial(mine, power=3)), own_digest(lambda i, t: i * scale))
"""
    once, again, other = (
        subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout.split()
        for text in (code, code, code.replace("scale = 3", "scale = 4"))
    )
    assert once == again
    assert len(set(once)) == 4
    assert all(a != b for a, b in zip(once[1:], other[1:], strict=True))  # each refers to scale


def test_several_grids_in_one_pass_equal_one_after_the_other(tmp_path):
    calls = []

    def counted(images, targets):
        calls.append(len(images))
        return images**3

    arguments = {
        "methods": {"mine": counted, "IxG": None, "IxG-SG": None, "Random": None},
        "dataset": data(),
        "images": 6,
        "progress": False,
    }
    both = idsds.evaluate({"net": Linear()}, **arguments, grid=[4, 2], output=tmp_path)
    assert calls == [1, 1, 2, 6]  # the trial, and each image once for both grids
    for grid in (2, 4):
        one = idsds.evaluate({"net": Linear()}, **arguments, grid=grid)
        some = both[both.grid == grid].reset_index(drop=True)
        assert one.image_id.tolist() == some.image_id.tolist()
        np.testing.assert_array_equal(one.score, some.score)
        for column in ("drops", "patch_sums"):
            np.testing.assert_array_equal(np.stack(one[column]), np.stack(some[column]))
    manifest = idsds.common.files.read_json(tmp_path / "manifest.json")
    assert manifest["passes"]["counted"] == manifest["passes"]["announced"] == {"forward": 6 * (17 + 5 + 1 + 4), "backward": 6 * 5}
    assert set(idsds.rank(both)["grid"]) == {2, 4}


def test_transforms_share_the_computation():
    plan = plan_of(methods=["IxG", "IxG abs", "IxG relu"])
    assert plan.jobs[0].groups == (("IxG", "IxG abs", "IxG relu"),)
    records = idsds.evaluate({"net": Linear()}, ["IxG", "IxG relu"], data(), images=2, progress=False)
    images = torch.stack([data()[int(i)][0] for i in records.image_id[:2]])
    targets = torch.tensor(records.target[:2].to_numpy())
    maps = (images * Linear().fc.weight[targets].detach().view(-1, 3, 8, 16)).sum(1).relu()
    sums = maps.view(2, 4, 2, 4, 4).sum((2, 4)).flatten(1)
    # products of float32 of size 1 in sums of 24
    np.testing.assert_allclose(np.stack(records[records.method == "IxG relu"].patch_sums), sums, atol=1e-5)


def test_a_split_is_chosen_by_name():
    plan = plan_of(models=["mini_resnet8"], dataset="digits", split="train", settings={"grid": 4})
    assert plan.jobs[0].dataset.split == "train"
    with pytest.raises(UnknownNameError, match="Did you mean 'train'"):
        plan_of(models=["mini_resnet8"], dataset="digits", split="trian")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"settings": {"grid": [4, 4]}}, r"grid must be a number or a list of different numbers, not \[4, 4\]"),
        ({"settings": {"grid": [4, 5]}}, "grid 5 does not divide"),
        ({"settings": {"grid": [4, 2]}, "protocol": "insertion"}, "protocol 'insertion' takes one grid"),
    ],
)
def test_bad_grids_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        plan_of(**changes)
