"""The most memory that a computation takes at once."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch


@dataclass
class Peak:
    """Bytes beyond what was taken before; 0 where that is not known."""

    bytes: int = 0


@contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """Measure the peak inside the block: on CUDA what torch allocates, on Linux's CPUs how far resident memory rises, elsewhere nothing."""
    peak = Peak()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = max(0, torch.cuda.max_memory_allocated(device) - before)
        return
    before = _reset() if device == "cpu" else 0
    yield peak
    if before:
        peak.bytes = max(0, _status("VmHWM") - before)


def _reset() -> int:
    """Give what is free back to the system, and make the highest resident memory the present one, which is returned; 0 if that fails."""
    with suppress(OSError, AttributeError):
        _libc().malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return _status("VmRSS")
    return 0


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def _status(name: str) -> int:
    """A line of Linux's facts about this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
