from functools import cache

import pytest
import torch
from torch import nn

from idsds.datasets import synthetic
from idsds.datasets.synthetic import PatchModel
from idsds.methods import METHODS, Passes, register_method
from idsds.models import MODELS, register_model

IMAGES = cache(synthetic.synthetic_image)


class Small(nn.Module):
    """Sees the synthetic images' patches one by one."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 16, 8, stride=8), nn.BatchNorm2d(16), nn.Linear(16, num_classes)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().mean(dim=(2, 3)))


def exact(model, images, targets):
    """Knows in which nine of 16 patches there is evidence for any class; see :mod:`idsds.datasets.synthetic`."""
    with torch.no_grad():
        strengths = PatchModel().evidence(images).abs().sum(dim=1)  # (B, 4, 4)
    return strengths.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)


def sometimes_undefined(model, images, targets):
    """NaN for the first class, constant for the second."""
    maps = images[:, 0].clone()
    maps[targets == 0], maps[targets == 1] = torch.nan, 3.0
    return maps


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_HOME", str(tmp_path))
    monkeypatch.setattr(synthetic, "synthetic_image", IMAGES)  # drawn once, not at every epoch
    register_model("small_test", family="test", num_classes=4, input_size=32, training={"epochs": 1})(Small)
    register_method("Exact", family="own", passes=Passes(0))(exact)
    register_method("Undefined", family="own", passes=Passes(0))(sometimes_undefined)
    yield tmp_path
    MODELS.remove("small_test")
    METHODS.remove("Exact")
    METHODS.remove("Undefined")
