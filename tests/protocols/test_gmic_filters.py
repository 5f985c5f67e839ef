"""Filters of G'MIC, which a stand-in replaces."""

import sys

import numpy as np
import pytest
import torch

from idsds.protocols import gmic_filters
from idsds.protocols.robustness import FILTERS, probability_shifts
from tests.methods.nets import images_of


@pytest.fixture
def batch(three):
    return three


class FakeGmic:
    """As much of the package as is used: images of channels last and from 0 to 255 in, width x height x depth x channels out."""

    class Image:
        def __init__(self, pixels):
            self.pixels = pixels

        @classmethod
        def from_yxc(cls, pixels):
            return cls(pixels)

        def to_numpy(self):
            return self.pixels.transpose(1, 0, 2)[:, :, None]

    ImageList = list

    def __init__(self):
        self.commands = []

    def run(self, command, images):
        self.commands.append(command)
        return [self.Image(255 - images[0].pixels * np.array([1, 1, 0.5], dtype=np.float32))]


def test_gmic_gets_the_pixels_and_gives_them_back(monkeypatch, net, batch):
    fake = FakeGmic()
    monkeypatch.setitem(sys.modules, "gmic", fake)
    images = images_of(2, 16, 20, dtype=torch.float32)
    wanted = 1 - images * torch.tensor([1, 1, 0.5]).view(3, 1, 1)
    torch.testing.assert_close(gmic_filters.apply_command(images, "mine 1"), wanted)
    assert fake.commands == ["mine 1"] * 2
    fake.commands.clear()
    shifts = probability_shifts(net, batch, kind="filters", filters="gmic")["shifts"]
    assert shifts.shape == (3, 5)
    assert sorted(set(fake.commands)) == sorted(gmic_filters.COMMANDS.values())
    assert list(gmic_filters.GMIC_FILTERS) == list(FILTERS)
    fake.run = lambda command, images: [fake.Image(images[0].pixels[:-1])]
    with pytest.raises(ValueError, match=r"'mine 1' gave 1 image\(s\), the first of shape \(20, 15, 1, 3\)"):
        gmic_filters.apply_command(images, "mine 1")


def test_without_gmic_it_says_what_to_do(monkeypatch, net, batch):
    monkeypatch.setitem(sys.modules, "gmic", None)
    with pytest.raises(ImportError, match="pip install gmic"):
        probability_shifts(net, batch, kind="filters", filters="gmic")
