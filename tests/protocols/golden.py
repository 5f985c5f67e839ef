"""What the study's own code returned for the single and the incremental deletion; see tests/data/README-protocols.md."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from idsds.models import create_model
from tests.models.golden import filled

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "data" / "protocols.json").read_text())
TARGETS = torch.tensor(GOLDEN["targets"])


@cache
def golden_model() -> nn.Module:
    model = create_model("resnet18")
    model.load_state_dict(filled(model.state_dict(), "resnet18"))
    return model


def golden_images(count: int) -> Tensor:
    return torch.rand(8, 3, 224, 224, generator=torch.Generator().manual_seed(2))[:count] * 2 - 1
