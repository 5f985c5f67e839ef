"""Checkpoints: every accepted form gives the same weights, every other one a clear error, and nothing in a file is executed."""

import argparse
import hashlib
import os

import pytest
import safetensors.torch
import torch
from torch import nn

from idsds.models import CheckpointError, create_model, load_checkpoint, save_checkpoint
from idsds.models.weights import check_checkpoint
from tests.models.golden import filled, study_file


@pytest.fixture
def state():
    return filled(create_model("mini_resnet8").state_dict())


def loaded(path, name="mini_resnet8"):
    return create_model(name, checkpoint=path).state_dict()


def assert_same(found, wanted):
    assert list(found) == list(wanted)
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("prefix", ["", "module.", "module.model.", "model."])
@pytest.mark.parametrize("whole", [True, False], ids=["training file", "state_dict"])
def test_study_files_and_plain_state_dicts(state, prefix, whole, tmp_path):
    prefixed = {prefix + key: value for key, value in state.items()}
    path = tmp_path / "best.pth.tar"
    if whole:
        study_file(prefixed, path)
    else:
        torch.save(prefixed, path)
    assert_same(loaded(path), state)


def test_a_prefix_inside_the_keys(tmp_path):
    """A VGG of which only the features ran in DataParallel, as torchvision's old training script did it."""
    wanted = filled(create_model("mini_vgg11").state_dict())
    torch.save({key.replace("features.", "features.module."): value for key, value in wanted.items()}, tmp_path / "vgg.pth")
    assert_same(loaded(tmp_path / "vgg.pth", "mini_vgg11"), wanted)


def test_a_net_whose_own_keys_look_like_a_prefix(tmp_path):
    net = nn.Sequential()
    net.add_module("module", nn.Linear(3, 2))
    wanted = filled(net.state_dict())
    load_checkpoint(net, save_checkpoint(wanted, tmp_path / "own.safetensors"))
    assert_same(net.state_dict(), wanted)


def test_both_names_of_a_bcos_weight(tmp_path):
    wanted = filled(create_model("mini_bcos").state_dict())
    torch.save(wanted, tmp_path / "package.pth")
    study_file({"module.model." + key.replace(".linear.", "."): value for key, value in wanted.items()}, tmp_path / "study.pth.tar")
    assert_same(loaded(tmp_path / "package.pth", "mini_bcos"), wanted)
    assert_same(loaded(tmp_path / "study.pth.tar", "mini_bcos"), wanted)


def test_safetensors_roundtrip_of_model_and_state(state, tmp_path):
    assert_same(loaded(save_checkpoint(state, tmp_path / "new" / "folder" / "a.safetensors")), state)
    model = create_model("mini_resnet8", checkpoint=tmp_path / "new" / "folder" / "a.safetensors")
    assert_same(loaded(save_checkpoint(model, str(tmp_path / "b.safetensors"))), state)


def test_tied_weights_can_be_saved(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    wanted = {key: value.clone() for key, value in net.state_dict().items()}
    load_checkpoint(net, save_checkpoint(net, tmp_path / "tied.safetensors"))
    assert_same(net.state_dict(), wanted)


def test_a_save_that_fails_leaves_the_old_file(state, tmp_path, monkeypatch):
    path = save_checkpoint(state, tmp_path / "a.safetensors")

    def fails(tensors, unfinished):
        unfinished.write_bytes(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(safetensors.torch, "save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        save_checkpoint(filled(state, "resnet18"), path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.safetensors", "a.safetensors.sha256"]
    assert_same(loaded(path), state)


class Malicious:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("where", ["alone", "beside the weights", "in the options"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_refused_and_not_executed(state, where, zipped, tmp_path):
    code, path = Malicious(tmp_path / "executed"), tmp_path / "evil.pth.tar"
    content = {
        "alone": code,
        "beside the weights": {"state_dict": state, "hook": code},
        "in the options": {"state_dict": state, "args": argparse.Namespace(lr=code)},
    }[where]
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"evil\.pth\.tar.*nothing in it was executed"):
        loaded(path)
    assert not (tmp_path / "executed").exists()
    torch.load(path, weights_only=False)  # the trap does work: this executes it
    assert (tmp_path / "executed").exists()


def test_a_whole_module_is_refused(tmp_path):
    torch.save(create_model("mini_resnet8"), tmp_path / "module.pth")
    with pytest.raises(CheckpointError, match=r"module\.pth"):
        loaded(tmp_path / "module.pth")


def test_the_permission_for_a_namespace_does_not_outlive_the_load(state, tmp_path):
    loaded(study_file(state, tmp_path / "a.pth.tar"))
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("suffix", [".pth.tar", ".safetensors"])
def test_a_truncated_file(state, suffix, share, tmp_path):
    path = tmp_path / f"cut{suffix}"
    if suffix == ".safetensors":
        save_checkpoint(state, path)
    else:
        study_file(state, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=rf"(cannot read )?the checkpoint '.*cut{suffix}'( is not what was written)?"):
        loaded(path)


def test_no_such_file(tmp_path):
    with pytest.raises(CheckpointError, match=r"no checkpoint at '.*absent\.pth'"):
        loaded(tmp_path / "absent.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.ones(2)], "holds a list, not a state_dict"),
        ({"state_dict": 3}, "holds a int, not a state_dict"),
        ({"epoch": 3, "lr": 0.1}, "holds no state_dict of tensors: 'epoch' is a int, 'lr' is a float"),
    ],
)
def test_what_is_no_state_dict(content, message, tmp_path):
    torch.save(content, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=rf"odd\.pth' {message}"):
        loaded(tmp_path / "odd.pth")


def test_differences_are_named_and_nothing_is_loaded(state, tmp_path):
    wrong = {f"module.{key}": value for key, value in state.items() if key not in ("fc.bias", "bn1.weight")}
    wrong["module.fc.weight"] = torch.ones(7, 64)
    wrong["module.extra"] = torch.ones(1)
    path = study_file(wrong, tmp_path / "wrong.pth.tar")
    model = create_model("mini_resnet8")
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_checkpoint(model, path)
    message = str(error.value)
    assert str(path) in message
    assert "2 missing keys: bn1.weight, fc.bias;" in message
    assert "1 unexpected keys: extra" in message
    assert "fc.weight is (7, 64) in the file and (10, 64) in the model" in message
    assert_same(model.state_dict(), before)


def test_weights_of_another_architecture(tmp_path):
    """Of another family, and of a deeper net of the same family, all of whose own keys are there."""
    vgg = save_checkpoint(create_model("mini_vgg11"), tmp_path / "vgg.safetensors")
    with pytest.raises(CheckpointError, match=r"vgg\.safetensors.*missing keys: conv1\.weight.*unexpected keys: classifier\.0\.bias"):
        loaded(vgg)
    deeper = study_file({f"module.{k}": v for k, v in create_model("mini_resnet14").state_dict().items()}, tmp_path / "deeper.pth.tar")
    with pytest.raises(CheckpointError, match=r"deeper\.pth\.tar' does not fit the model\. \d+ unexpected keys: layer1\.1\.conv1\.weight"):
        loaded(deeper)


def test_a_file_can_be_checked_without_a_net(state, tmp_path):
    with torch.device("meta"):
        net, other = create_model("mini_resnet8"), create_model("mini_wide_resnet8")
    path = study_file({f"module.{key}": value for key, value in state.items()}, tmp_path / "a.pth.tar")
    assert_same(check_checkpoint(net, path), state)
    assert all(parameter.is_meta for parameter in net.parameters())
    with pytest.raises(CheckpointError, match=r"wrong shapes: conv1\.weight is \(16, 3, 3, 3\) in the file and \(32, 3, 3, 3\)"):
        check_checkpoint(other, path)


def test_long_lists_are_cut(state, tmp_path):
    path = save_checkpoint({"other": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=rf"{len(state)} missing keys: conv1\.weight, bn1\.weight, bn1\.bias, \.\.\.;"):
        loaded(path)


def test_weights_in_half_precision_become_float32(state, tmp_path):
    torch.save({key: value.half() if value.is_floating_point() else value for key, value in state.items()}, tmp_path / "half.pth")
    found = loaded(tmp_path / "half.pth")
    assert all(value.dtype == state[key].dtype for key, value in found.items())


def flipped(path, byte):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1
    path.write_bytes(content)


def test_one_flipped_bit_of_a_saved_checkpoint_is_named_with_the_way_out(state, tmp_path):
    path = save_checkpoint(state, tmp_path / "a.safetensors")
    assert len(loaded(path)) == len(state)
    flipped(path, -100)
    with pytest.raises(CheckpointError, match=r"is not what was written.*Fetch or train it again.*remove the \.sha256 file"):
        loaded(path)
    (tmp_path / "a.safetensors.sha256").unlink()
    assert len(loaded(path)) == len(state)  # somebody else's file: there is nothing to compare with


def test_the_hash_beside_a_checkpoint_is_what_sha256sum_reads(state, tmp_path):
    path = save_checkpoint(state, tmp_path / "a.safetensors")
    value, name = (tmp_path / "a.safetensors.sha256").read_text().split()
    assert value == hashlib.sha256(path.read_bytes()).hexdigest()
    assert name == path.name
    save_checkpoint({key: value + 1 for key, value in state.items()}, path)
    loaded(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda value: (value * 10).to(torch.int8), "is torch.int8 in the file and torch.float32 in the model"),
        (lambda value: value.to(torch.complex64), "is torch.complex64 in the file"),
        (lambda value: torch.full_like(value, float("nan")), "values that are NaN or infinite"),
        (lambda value: torch.full_like(value, float("inf")), "values that are NaN or infinite"),
    ],
)
def test_values_that_are_no_weights_are_refused_by_name(state, tmp_path, change, message):
    key = next(key for key, value in state.items() if value.ndim == 4)
    torch.save({**state, key: change(state[key])}, tmp_path / "odd.pth")
    with pytest.raises(CheckpointError, match=f"wrong values: {key}.*{message}|wrong values: {key} {message}"):
        loaded(tmp_path / "odd.pth")


def test_half_and_double_weights_load(state, tmp_path):
    torch.save({key: value.half() if value.is_floating_point() else value for key, value in state.items()}, tmp_path / "half.pth")
    loaded(tmp_path / "half.pth")
