"""The peak memory of a computation."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass
class Peak:
    """Peak memory in bytes beyond what was allocated before; 0 if unknown."""

    bytes: int = 0


@contextmanager
def peak_memory(device: str) -> Iterator[Peak]:
    """Measure the peak inside the block: of torch's allocations on CUDA, of resident memory on the CPU under Linux, elsewhere nothing."""
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
    """Return free memory to the system, reset the peak of resident memory, and return the current value; 0 if that fails."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        return _status("VmRSS")
    return 0


def _status(name: str) -> int:
    """Return a field of ``/proc/self/status``, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)
