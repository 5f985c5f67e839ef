"""Run a function on 1..N devices: in this process, in forked processes, or in processes started by torchrun or Slurm.

The same call works in a notebook, a script and on a cluster: the environment shows how the processes were started.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

from idsds.common.devices import PRECISIONS, chosen_device
from idsds.common.registry import UnknownNameError
from idsds.common.settings import SettingsError

# A process that has initialised CUDA cannot fork workers that use it. This lets torch count devices without initialising it.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")


@dataclass(frozen=True)
class Machine:
    """The hardware that training runs on, and how it is used.

    Args:
        devices: number of devices of this machine; under torchrun or Slurm, 1 or the number of processes. It changes the result slightly
            through BatchNorm's statistics.
        workers: loader processes per device.
        accumulate: number of passes into which each device's part of a batch is split.
        save_every: steps between saves of the run's state, which is also saved after each epoch.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``, which needs a CUDA device; lightning-fabric's names.
        channels_last: whether to use the channels_last memory format: up to twice as fast, also on a CPU, but not every net supports it.
    """

    devices: int = 1
    workers: int = 0
    accumulate: int = 1
    save_every: int = 1000
    device: str = "auto"
    precision: str = "32-true"
    channels_last: bool = True

    @property
    def layout(self) -> torch.memory_format:
        """The memory format of images and weights."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def launch(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run ``function(fabric, *args)`` on every device.

        Args:
            function: takes a launched ``Fabric`` first; in forked processes its result must be small, and changes to tensors are lost.

        Returns:
            The result of rank 0 (under torchrun or Slurm, of this rank).

        Raises:
            SettingsError: for devices that do not exist, or fp16 without CUDA.
        """
        check_machine(self.device, self.devices, self.precision)
        kind, outside = chosen_device(self.device).type, started_outside()
        setup: dict[str, Any] = {"accelerator": kind, "devices": self.devices, "precision": self.precision}
        if outside is not None:
            setup |= {"devices": outside[0], "num_nodes": outside[1], "strategy": "ddp"}
        elif self.devices > 1:
            setup |= {"strategy": "ddp_fork", "plugins": [LightningEnvironment()]}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*srun.*")  # only one task is allocated; the processes are started here
            fabric = Fabric(**setup)
        if not forks(self.devices):
            fabric.launch()
            with threads_restored():
                return function(fabric, *args)
        before = {key: os.environ.get(key) for key in ("MASTER_PORT", "MASTER_ADDR")}
        try:
            return fabric.launch(_forked, function, *args)  # type: ignore[arg-type]
        finally:
            for key, value in before.items():
                os.environ.pop(key, None)
                if value is not None:
                    os.environ[key] = value


def started_outside() -> tuple[int, int] | None:
    """Return (processes per node, nodes) if torchrun or srun started this process as one of several, else None."""
    if TorchElasticEnvironment.detect():
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    if SLURMEnvironment.detect() and int(os.environ["SLURM_NTASKS"]) > 1:
        nodes = int(os.environ["SLURM_NNODES"])
        return int(os.environ["SLURM_NTASKS"]) // nodes, nodes
    return None


def is_main() -> bool:
    """Return whether this process prints and writes: the only one, or rank 0 of several."""
    if started_outside() is None:
        return True
    return os.environ["RANK" if TorchElasticEnvironment.detect() else "SLURM_PROCID"] == "0"


def forks(devices: int) -> bool:
    """Return whether :meth:`Machine.launch` runs the function in other processes, which do not share memory with this one."""
    return devices > 1 and started_outside() is None


@contextmanager
def threads_restored() -> Iterator[None]:
    """Give torch back its number of CPU threads after the block, which may change it."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _forked(fabric: Fabric, function: Callable[..., Any], *args: Any) -> Any:
    # GNU OpenMP's threads do not survive a fork: waiting for a second one would deadlock.
    torch.set_num_threads(1)
    return function(fabric, *args)


def of_all(names: Sequence[str]) -> list[str]:
    """Return the sorted union of all processes' names; under torchrun and Slurm every process must call this."""
    if not torch.distributed.is_initialized():
        return sorted(names)
    found: list[list[str]] = [[]] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, list(names))
    return sorted(set().union(*found))


def check_machine(device: str, devices: int, precision: str) -> None:
    """Raise SettingsError for devices that do not exist, or fp16 without CUDA; see :class:`Machine`."""
    kind = chosen_device(device).type
    if precision not in PRECISIONS:
        raise SettingsError(str(UnknownNameError("precision", precision, PRECISIONS)))
    if precision == "16-mixed" and kind != "cuda":
        raise SettingsError(f"precision: '16-mixed' needs a CUDA device, this is {kind!r}; use 'bf16-mixed' or '32-true'")
    outside = started_outside()
    if outside is not None and devices not in (1, outside[0]):
        raise SettingsError(f"devices: {devices}, but {outside[0]} processes were started on this node; leave it at 1 there")
    if forks(devices) and not hasattr(os, "fork"):
        raise SettingsError(f"devices: {devices}, but this system cannot fork processes; start them with torchrun, or use 1")
    there = torch.cuda.device_count() if kind == "cuda" else 1 if kind == "mps" else max(1, os.cpu_count() or 1)
    if not 1 <= devices <= there:
        raise SettingsError(f"devices must be in 1..{there} for {kind!r} here, not {devices}")
