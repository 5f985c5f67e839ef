"""Randomness keyed by (seed, purpose, image id), never by a global state.

The same image gets the same noise whatever the batch size, order, shard or neighbours are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def generator(seed: int, *key: object) -> torch.Generator:
    """A CPU generator that depends on nothing but ``seed`` and ``key``.

    Noise is drawn on the CPU and moved, so that every device sees the same numbers.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, (seed, *key))).encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest, "big") >> 1)


def content_ids(images: Tensor) -> list[str]:
    """Ids for images that came without any: a hash of each image's own values, so that a batch's order does not matter."""
    flat = images.detach().to("cpu", torch.float32).contiguous()
    return [hashlib.blake2b(image.numpy().tobytes(), digest_size=8).hexdigest() for image in flat]


class Draws:
    """The random numbers of one method for one batch.

    Args:
        seed: the run's seed.
        key: what the numbers are for, such as the method's name.
        image_ids: one id per image of the batch; None takes :func:`content_ids` of ``images`` once they are needed.
        images: float (B, C, H, W), gives the shape, dtype and device of what is drawn.
        given: noise handed in, shape (B, samples, C, H, W), returned in place of drawn numbers (this is how parity is checked).
    """

    def __init__(
        self, seed: int, key: str, images: Tensor, image_ids: Sequence[object] | None = None, *, given: Tensor | None = None
    ) -> None:
        self.seed, self.key, self.images, self.given = seed, key, images, given
        self._ids = None if image_ids is None else [str(i) for i in image_ids]

    @property
    def image_ids(self) -> list[str]:
        """One id per image of the batch."""
        if self._ids is None:
            self._ids = content_ids(self.images)
        return self._ids

    def normal(self, samples: int, *, key: str = "normal") -> Tensor:
        """Standard normal numbers, (B, samples, C, H, W)."""
        return self._draw(torch.randn, samples, key)

    def uniform(self, samples: int, *, key: str = "uniform") -> Tensor:
        """Uniform numbers in [0, 1), (B, samples, C, H, W)."""
        return self._draw(torch.rand, samples, key)

    def fixed_uniform(self) -> Tensor:
        """Uniform numbers in [0, 1) that are the same for every method and every image of that size, (1, C, H, W)."""
        shape = self.images.shape[1:]
        drawn = torch.rand(shape, generator=generator(self.seed, "fixed uniform", tuple(shape)))
        return drawn.to(self.images)[None]

    def _draw(self, sampler, samples: int, key: str) -> Tensor:
        shape = (samples, *self.images.shape[1:])
        if self.given is not None:
            wanted = (len(self.images), *shape)
            if tuple(self.given.shape) != wanted:
                raise ValueError(f"{self.key}: the noise handed in has shape {tuple(self.given.shape)}, wanted {wanted}")
            return self.given.to(self.images)
        drawn = [sampler(shape, generator=generator(self.seed, self.key, key, image_id)) for image_id in self.image_ids]
        return torch.stack(drawn).to(self.images)  # (B, samples, C, H, W)
