"""The peak of a computation: what it holds at once, not what it leaves."""

import sys

import pytest
import torch

from idsds.common.memory import peak_memory


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_peak_is_what_was_held_at_once():
    size = 64 * 2**20
    with peak_memory("cpu") as peak:
        for _ in range(3):
            torch.ones(size // 4)  # one after the other
    if not peak.bytes:
        pytest.skip("this system does not let a process reset its highest resident memory")
    assert 0.95 * size < peak.bytes < 1.5 * size
    with peak_memory("cpu") as less:
        torch.ones(1000)
    assert less.bytes < size / 4


def test_unknown_device_measures_nothing():
    with peak_memory("mps") as peak:
        pass
    assert peak.bytes == 0
