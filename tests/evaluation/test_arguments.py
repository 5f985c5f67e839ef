"""Where weights come from: published, packaged, or trained."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

import idsds
from idsds.common.registry import UnknownNameError


def test_packaged_nets_are_judged_on_photos():
    records = idsds.evaluate(
        ["squeezenet1_1"], ["Grad-CAM", "Random"], "photos20", "single_deletion", images=6, device="cpu", progress=False
    )
    assert records.score.notna().all()
    assert list(idsds.rank(records).method) == ["Grad-CAM", "Random"]


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


def test_a_net_that_no_seed_trains_is_not_taken_for_several(checkpoint):
    images = [(torch.rand(3, 32, 32), number % 3) for number in range(4)]
    own = nn.Sequential(nn.Flatten(), nn.Linear(3072, 3))
    run = {"methods": ["Random"], "images": 4, "protocol": "single_deletion", "dry_run": True}
    with pytest.warns(UserWarning, match="model 'own' is one net, the same for every seed"):
        idsds.evaluate({"own": own}, dataset=images, seed=[0, 1], **run)
    with pytest.warns(UserWarning, match="model 'mini_resnet8' is one net, the same for every seed"):
        idsds.evaluate(["mini_resnet8"], dataset="mnist5k", seed=[0, 1], checkpoints={"mini_resnet8": checkpoint}, **run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        idsds.evaluate(["mini_resnet8"], dataset="mnist5k", seed=[0, 1], **run)
        idsds.evaluate(["mini_resnet8"], dataset="mnist5k", seed=[1], checkpoints={"mini_resnet8": checkpoint}, **run)
        draws = {**run, "protocol": "sanity_check"}  # whose seeds draw new weights
        idsds.evaluate(["mini_resnet8"], dataset="mnist5k", seed=[0, 1], checkpoints={"mini_resnet8": checkpoint}, **draws)
