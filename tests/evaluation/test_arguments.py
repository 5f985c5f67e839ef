"""Where weights come from: published, packaged, or trained."""

import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import idsds
from idsds.common.registry import UnknownNameError
from idsds.evaluation.job import named_dataset
from idsds.evaluation.nets import source_of
from idsds.protocols import PROTOCOLS
from idsds.training.checkpoints import published


def source(name, dataset, protocol="single_deletion", checkpoints=None):
    settings = {"grid": (4, 2), "baseline": "zeros"}
    return source_of(name, None, dataset, PROTOCOLS[protocol], 0, checkpoints or {}, "cpu", "32-true", settings)


def test_packaged_weights_are_used_as_they_are_or_fine_tuned_without_labels():
    plain, in_domain = source("squeezenet1_1", "photos20"), source("squeezenet1_1", "photos20", "idsds")
    assert (plain.recipe, plain.deletion, plain.missing) == (None, None, [])
    assert in_domain.recipe.loss == "distill"
    assert in_domain.deletion.grid == 4, "of several grids the first"
    assert in_domain.key != plain.key
    as_it_is = source("squeezenet1_1", "photos20", "idsds", {"squeezenet1_1": "pretrained"})
    assert as_it_is == plain, "on the user's word a net is judged as it is"


def test_published_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="know 1000 classes, but 'mnist5k' has 10"):
        published("resnet50", "mnist5k")
    with pytest.raises(ValueError, match="no weights of 'bagnet33' are published"):
        published("bagnet33", "photos20")
    assert published("resnet50", "photos20").missing == []  # a plan downloads nothing


def test_packaged_nets_are_judged_on_photos():
    records = idsds.evaluate(
        ["squeezenet1_1"], ["Grad-CAM", "Random"], "photos20", "single_deletion", images=6, device="cpu", progress=False
    )
    assert records.score.notna().all()
    assert list(idsds.rank(records).method) == ["Grad-CAM", "Random"]


def test_a_folder_by_name_whose_file_was_replaced_is_computed_again(tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_RECORD_CACHE", "1")
    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("IDSDS_DATA", str(tmp_path))
    rng = np.random.default_rng(0)
    files = [tmp_path / "image_folder" / kind / f"{i}.png" for kind in "ab" for i in range(12)]

    def write(seconds):
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(file)
            os.utime(file, (seconds, seconds))

    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(8), torch.nn.Flatten(), torch.nn.Linear(192, 2)).eval()

    def score(output):
        named_dataset.cache_clear()
        given = {"protocol": "single_deletion", "device": "cpu", "progress": False, "output": output and tmp_path / output}
        return idsds.evaluate({"n": net}, ["IxG"], "image_folder", **given).drops.map(tuple).tolist()

    write(1_000)
    before = score("a")
    assert score("b") == before
    write(2_000)
    assert score("a") == score("c") == score(None) != before


def test_a_cam_layer_is_named_by_model():
    nets = {
        name: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
        ).eval()
        for name in ("a", "b")
    }
    images = [(torch.rand(3, 16, 16), number % 3) for number in range(4)]
    run = {"models": nets, "dataset": images, "protocol": "single_deletion", "output": None, "progress": False}
    for layers in ({"a": "2", "b": "0"}, {"a": "0", "b": "2"}):
        records = idsds.evaluate(methods={"Grad-CAM": ("Grad-CAM", {"layer": layers})}, **run)
        for model, layer in layers.items():
            alone = idsds.evaluate(methods={"Grad-CAM": ("Grad-CAM", {"layer": layer})}, **run | {"models": {model: nets[model]}})
            mine = records[records["model"] == model]["patch_sums"]
            assert np.array_equal(np.stack(mine), np.stack(alone["patch_sums"]))
    with pytest.raises(UnknownNameError, match="model with a layer of 'Grad-CAM'"):
        idsds.evaluate(methods={"Grad-CAM": ("Grad-CAM", {"layer": {"c": "2"}})}, **run)
    with pytest.raises(ValueError, match=r'"layer": "2"'):  # the last convolution, not what pools it into one position
        idsds.evaluate(methods=["Grad-CAM"], **run)
