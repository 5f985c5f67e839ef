"""Counting what is really done: forward and backward passes through a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class PassCounter:
    """Images that went forward through a model, and images whose logits were differentiated."""

    def __init__(self) -> None:
        self.forward = self.backward = 0

    @property
    def facts(self) -> dict[str, int]:
        """The counts, as they are stored."""
        return {"forward": self.forward, "backward": self.backward}

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[PassCounter]:
        """Count the passes through ``model`` inside the block."""

        def count(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            images = len(output)
            self.forward += images
            if output.requires_grad:
                output.register_hook(lambda _gradient: self._add_backward(images))

        handle = model.register_forward_hook(count)
        try:
            yield self
        finally:
            handle.remove()

    def _add_backward(self, images: int) -> None:
        self.backward += images
