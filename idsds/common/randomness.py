"""Random numbers keyed by (seed, purpose, image id), never drawn from a global generator.

An image gets the same noise whatever its batch, order, shard and neighbours.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor


def generator(seed: int, *key: object) -> torch.Generator:
    """Return a CPU generator that depends only on ``seed`` and ``key``.

    Noise is drawn on the CPU and moved to the device, so that every device sees the same numbers.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, (seed, *key))).encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big") >> 1)


@contextmanager
def restored(device: torch.device | str = "cpu") -> Iterator[None]:
    """Restore the states of the global generators of torch (on the CPU and on ``device``), numpy and Python after the block."""
    states, device = (np.random.get_state(), random.getstate()), torch.device(device)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            yield
    finally:
        np.random.set_state(states[0])
        random.setstate(states[1])


@contextmanager
def seeded(seed: int, *key: object, device: torch.device | str = "cpu") -> Iterator[None]:
    """Make the global generators of torch, numpy and Python depend on ``seed`` and ``key``; their states are restored afterwards.

    For libraries that draw from global generators; code that accepts a generator gets :func:`generator`.
    """
    number = int(torch.randint(2**31, (), generator=generator(seed, *key)))
    with restored(device):
        torch.manual_seed(number)
        np.random.seed(number)
        random.seed(number)
        yield


def content_ids(images: Tensor) -> list[str]:
    """Return ids for images without any: a hash of each image's values, so that the order of a batch does not matter."""
    flat = images.detach().to("cpu", torch.float32).contiguous()
    return [hashlib.blake2b(image.numpy().tobytes(), digest_size=8).hexdigest() for image in flat]


class Draws:
    """The random numbers of one method for one batch.

    Args:
        seed: the run's seed.
        key: the purpose of the numbers, such as the method's name.
        images: float (B, C, H, W), whose shape, dtype and device the numbers take.
        image_ids: one id per image of the batch; None takes :func:`content_ids` of ``images`` when they are needed.
        given: standard normal numbers (B, samples, C, H, W) that :meth:`normal` returns instead of drawn ones, as parity tests do.

    Raises:
        ValueError: if ``given`` is not for this many images.
    """

    def __init__(
        self, seed: int, key: str, images: Tensor, image_ids: Sequence[object] | None = None, *, given: Tensor | None = None
    ) -> None:
        if given is not None and len(given) != len(images):
            raise ValueError(f"{key}: noise of shape {tuple(given.shape)} was passed for {len(images)} images")
        self.seed, self.key, self.images, self.given = seed, key, images, given
        self._ids = None if image_ids is None else [str(i) for i in image_ids]

    @property
    def image_ids(self) -> list[str]:
        """One id per image of the batch."""
        if self._ids is None:
            self._ids = content_ids(self.images)
        return self._ids

    def normal(self, samples: int, *, key: str = "normal") -> Tensor:
        """Draw standard normal numbers, (B, samples, C, H, W)."""
        if self.given is None:
            return self._draw(torch.randn, samples, key)
        shape = (len(self.images), samples, *self.images.shape[1:])
        if tuple(self.given.shape) != shape:
            raise ValueError(f"{self.key}: the noise passed has shape {tuple(self.given.shape)}, not {shape}")
        return self.given.to(self.images)

    def uniform(self, samples: int, *, key: str = "uniform") -> Tensor:
        """Draw uniform numbers in [0, 1), (B, samples, C, H, W)."""
        return self._draw(torch.rand, samples, key)

    def fixed_uniform(self) -> Tensor:
        """Draw uniform numbers in [0, 1), the same for every method and every image of this size, (1, C, H, W)."""
        shape = self.images.shape[1:]
        drawn = torch.rand(shape, generator=generator(self.seed, "fixed uniform", tuple(shape)))
        return drawn.to(self.images)[None]

    def _draw(self, sampler, samples: int, key: str) -> Tensor:
        shape = (samples, *self.images.shape[1:])
        drawn = torch.empty(len(self.image_ids), *shape)  # (B, samples, C, H, W)
        for image_id, part in zip(self.image_ids, drawn, strict=True):
            sampler(shape, generator=generator(self.seed, self.key, key, image_id), out=part)
        return drawn.to(self.images)
