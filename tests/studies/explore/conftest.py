import pytest
import torch
from torch.utils.data import TensorDataset

import idsds
from tests.evaluation.linear import Linear

METHODS = ["IxG", "IG abs", "Saliency", "Random"]


def own(images, targets):
    """A method of the user's, with markup in its name: the gradient of the linear net, times a ramp."""
    return (images * torch.linspace(0, 1, images.shape[-1])).sum(1, keepdim=True)


def data():
    return TensorDataset(torch.rand(12, 3, 8, 16, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 4)


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "linear"
    methods = {**dict.fromkeys(METHODS), "<b>own": own}
    settings = {"protocol": "single_deletion", "images": 12, "device": "cpu"}
    return idsds.evaluate({"net": Linear()}, methods, data(), output=folder, progress=False, **settings), folder


def explorer(records, **given):
    return idsds.explore(records, **{"models": {"net": Linear()}, "methods": {"<b>own": own}, "dataset": data(), **given})
