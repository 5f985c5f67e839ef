"""Small nets for tests: some whose attributions are known in closed form, and every mini model of the registry."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idsds.models import create_model, list_models

MINI = [name for name in list_models() if name.startswith("mini_")]


class Linear(nn.Module):
    """logits = W x + b: every gradient is a row of W."""

    def __init__(self, height: int = 6, width: int = 4, classes: int = 3) -> None:
        super().__init__()
        self.fc = nn.Linear(3 * height * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.flatten(1))


class ConvNet(nn.Module):
    """Two convolutions, then the mean over positions (GAP) or all of them, then a linear layer; ReLUs of three kinds."""

    def __init__(self, *, bias: bool = True, pooled: bool = True, positions: int = 12, relu: str = "module", classes: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=bias)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, stride=2, bias=bias)
        self.act = nn.ReLU(inplace=relu == "in place")
        self.relu = relu
        self.pooled = pooled
        self.features = nn.Identity()
        self.fc = nn.Linear(8 if pooled else 8 * positions, classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        act = F.relu if self.relu == "functional" else self.act  # the module is used twice
        x = self.features(act(self.conv2(act(self.conv1(x)))))
        return self.fc(x.mean(dim=(2, 3)) if self.pooled else x.flatten(1))


def seeded(make, *args: object, seed: int = 0, dtype: torch.dtype = torch.float64, **options: object) -> nn.Module:
    """A net with weights of its own that are the same in every run, without touching the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make(*args, **options).to(dtype).eval()


def images_of(count: int, height: int, width: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    """Images in [0, 1], so that B-cos takes them as well."""
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def mini(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A mini model with random weights and random running statistics."""

    def make() -> nn.Module:
        model = create_model(name)
        for key, value in model.state_dict().items():
            if key.endswith("running_mean"):
                value.normal_(0, 0.1)
            elif key.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif value.is_floating_point() and not value.any():
                value.normal_(0, 0.1)  # layers that begin as zero would hide what stands before them
        return model

    return seeded(make, dtype=dtype)
