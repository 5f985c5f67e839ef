"""Ranks of pixels, kept for the modules that read them."""

import torch

from idsds.protocols.roar import pixel_ranks
from idsds.studies.roar.pixel_ranks import PixelRanks


def test_large_images_get_wider_ranks(tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path))
    store = PixelRanks("x", 2, 257, 256)
    ranks = pixel_ranks(torch.randn(2, 1, 257, 256), "ab")
    store.write(0, ranks, 0, 0)
    torch.testing.assert_close(torch.stack([store[0], store[1]]), ranks)
    assert store.counts() == (0, 0)
