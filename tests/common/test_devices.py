"""Devices and precisions."""

import pytest

from idsds.common.devices import check_precision, chosen_device
from idsds.common.settings import SettingsError


def test_auto_is_a_device_that_is_there():
    assert chosen_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(SettingsError, match="unknown device 'tpu'"):
        chosen_device("tpu")


def test_half_precision_needs_a_device_that_has_it():
    check_precision("16-mixed", "cuda")
    check_precision("bf16-mixed", "cpu")
    for device in ("cpu", "mps"):
        with pytest.raises(SettingsError, match=f"'16-mixed' needs a CUDA device, not '{device}'"):
            check_precision("16-mixed", device)
