import shutil

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import idsds
from idsds.evaluation import records


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 16, 4))
    data = TensorDataset(torch.randn(6, 3, 8, 16, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 4)
    idsds.evaluate({"net": net}, ["IxG", "Random"], data, output=folder, progress=False)
    return folder


@pytest.fixture
def run(made, tmp_path, monkeypatch):
    """A copy of a run, to be spoiled, as another process finds it."""
    monkeypatch.setattr(records, "_known", set())
    shutil.copytree(made, tmp_path / "run", ignore=shutil.ignore_patterns(".lock*"))
    return tmp_path / "run"
