"""Internal batches: bounded by memory and halved when it runs out, without an effect on the result."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from idsds.common.numbers import gigabytes

Result = TypeVar("Result")

# On a CPU small batches are fastest, because activations stay in the cache: 8 images of 224 x 224 pixels, 64 of 32 x 32.
CPU_PIXELS, CPU_IMAGES = 8 * 224 * 224, 64
# On an accelerator large batches are fastest; a ResNet-50 with its graph takes about 100 MB for an image of 224 x 224 pixels.
ACCELERATOR_BYTES_PER_PIXEL = 2000


def default_batch(images: Tensor) -> int:
    """Return how many images (B, C, H, W) of this size one pass should take on their device.

    It may use ``IDSDS_MEMORY_GB``, or half of the free memory of a CUDA device.

    Raises:
        ValueError: if ``IDSDS_MEMORY_GB`` is not a number above 0.
    """
    pixels, on_cpu = images.shape[-2] * images.shape[-1], images.device.type == "cpu"
    fastest, memory = min(CPU_IMAGES, max(1, CPU_PIXELS // pixels)), gigabytes("IDSDS_MEMORY_GB")
    if on_cpu and memory is None:
        return fastest
    if memory is None:
        memory = torch.cuda.mem_get_info(images.device)[0] // 2 if images.device.type == "cuda" else 2**32
    fitting = max(1, memory // (ACCELERATOR_BYTES_PER_PIXEL * pixels))
    return min(fitting, fastest) if on_cpu else fitting


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out: CUDA has a class for it, a CPU and Apple's devices only say so in words."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def in_batches(function: Callable[..., Tensor], *tensors: Tensor, size: int) -> Tensor:
    """Apply ``function`` to slices of ``size`` along dimension 0 of ``tensors``, all of equal length, and concatenate the results."""
    length = len(tensors[0])
    parts = [function(*(tensor[start : start + size] for tensor in tensors)) for start in range(0, length, size)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def halving(function: Callable[[int], Result], size: int) -> tuple[Result, int]:
    """Call ``function(size)``, and again with half the size for as long as it runs out of memory.

    Returns:
        The function's result, and the size that fitted.

    Raises:
        RuntimeError: the device's own error, if size 1 does not fit either.
    """
    while True:
        try:
            return function(size), size
        except (RuntimeError, MemoryError) as error:
            if size == 1 or not out_of_memory(error):
                raise
            size = (size + 1) // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
