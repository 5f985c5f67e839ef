import pytest
import torch
from torch import nn

from idsds.models import MODELS, create_model, register_model
from idsds.models.weights import save_checkpoint
from idsds.studies.how_infidelity_works.study import HowInfidelityWorks

METHODS = ["Gradient", "IxG", "Random"]


class Small(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Linear(4 * 49, num_classes)

    def forward(self, x):
        return self.fc(self.act(self.conv(x)).flatten(1))


class Linear(nn.Module):
    """A linear net whose logits are lowered by half of the image's square."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * 32 * 32, num_classes)

    def forward(self, x):
        return self.fc(x.flatten(1)) - 0.5 * x.square().flatten(1).sum(dim=1, keepdim=True)


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_HOME", str(tmp_path))
    torch.manual_seed(0)
    files = {}
    for name, build in (("small_steps", Small), ("linear_steps", Linear)):
        register_model(name, family="test", num_classes=10, input_size=32, training={"epochs": 1})(build)
        files[name] = str(tmp_path / f"{name}.safetensors")
        save_checkpoint(create_model(name), tmp_path / f"{name}.safetensors")

    def make(model="small_steps", **changes):
        given = {"dataset": "digits", "model": model, "methods": METHODS, "image": 2, "sigmas": [0.001, 0.5], "optimal_cells": 8}
        given |= {"samples": 30, "device": "cpu", "output": "runs/x/how", "checkpoints": {model: files[model]}}
        return HowInfidelityWorks(**{**given, **changes})

    yield make
    MODELS.remove("small_steps")
    MODELS.remove("linear_steps")
