import socket

import pytest
import torch

from idsds.models import HALF
from idsds.protocols import Batch
from tests.methods.nets import ConvNet, Linear, images_of, seeded
from tests.protocols.scoring import IDS, TARGETS


@pytest.fixture
def unused_port():
    """A port that was free a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture
def linear():
    """A net that is linear in the pixels."""
    return seeded(Linear, 12, 16)


@pytest.fixture
def batch():
    """Three images, not square."""
    return Batch(images_of(3, 12, 16) - 0.4, TARGETS, IDS)


@pytest.fixture
def net():
    """A small net with convolutions and ReLUs, of four classes."""
    return seeded(ConvNet, classes=4)


@pytest.fixture
def three():
    """Three images of 16 x 20 pixels, for ``net``."""
    return Batch(images_of(3, 16, 20) * 2 - 1, torch.tensor([0, 3, 1]), ["a", "b", "c"], HALF)
