"""Devices on which a function runs, and how its processes were started."""

import os

import pytest

from idsds.common.settings import SettingsError
from idsds.training.launch import check_machine, forks, is_main, started_outside
from tests.training.nets import SGD, Tiny, fit, toy


def test_devices_and_precisions_that_are_not_there_are_refused():
    for wrong, reason in (
        ({"precision": "16-mixed", "device": "cpu"}, "needs a CUDA device"),
        ({"precision": "fp8"}, "unknown precision"),
        ({"device": "cpu", "devices": 0}, r"devices must be in 1\.\."),
        ({"device": "tpu"}, "unknown device"),
    ):
        with pytest.raises(SettingsError, match=reason):
            fit(Tiny(), toy(9), toy(9), SGD, progress=False, **wrong)


def test_torchrun_and_slurm_say_how_many_processes_there_are(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "RANK", "SLURM_NTASKS", "SLURM_NNODES", "SLURM_PROCID", "SLURM_JOB_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("idsds.training.launch.TorchElasticEnvironment.detect", staticmethod(lambda: "WORLD_SIZE" in os.environ))
    monkeypatch.setattr("idsds.training.launch.SLURMEnvironment.detect", staticmethod(lambda: "SLURM_NTASKS" in os.environ))
    assert started_outside() is None
    assert is_main()
    assert [forks(devices) for devices in (1, 2)] == [False, True]
    for name, value in {"SLURM_NTASKS": "6", "SLURM_NNODES": "3", "SLURM_PROCID": "5"}.items():
        monkeypatch.setenv(name, value)
    assert started_outside() == (2, 3)
    assert not is_main()
    assert not forks(2)
    for name, value in {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert started_outside() == (4, 2), "torchrun's own come first"
    assert is_main()
    with pytest.raises(SettingsError, match="devices: 3, but 4 processes were started on this node"):
        check_machine("cpu", 3, "32-true")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.delenv("WORLD_SIZE")
    assert started_outside() is None, "a single task is no team"
