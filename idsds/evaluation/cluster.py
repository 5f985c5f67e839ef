"""Shards on the workers of a Dask cluster: one machine with several devices, Slurm, or whatever else Dask runs on.

Every missing checkpoint is trained once, on one worker, before the shards start. Before any work each worker is compared with the caller:
other code or versions, or another disk, are an error (:mod:`idsds.evaluation.workers`). Records go through the shared output folder,
so that a run that lost its cluster goes on where it was; a worker that dies loses the shard that it was at, which another takes over. On
workers with CUDA each shard asks for one unit of the resource ``GPU``.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloudpickle
import yaml
from torch import nn

from idsds.common import paths
from idsds.common.devices import DEVICES, chosen_device
from idsds.common.progress import Progress
from idsds.common.registry import UnknownNameError
from idsds.evaluation.cache import SWITCH
from idsds.evaluation.plan import Job, Plan
from idsds.evaluation.run import Outcome, Task, run_task
from idsds.evaluation.workers import caller, check_worker, check_workers, worker_name
from idsds.methods import METHODS
from idsds.models.isolation import widen
from idsds.training.checkpoints import Stage

if TYPE_CHECKING:
    from dask.distributed import Client, Future

# Where files are is the same for all: workers take over what the caller's environment says.
SHARED = ("IDSDS_DATA", "IDSDS_MEMORY_GB")
PARAMS = ("queue", "account", "cores", "memory", "walltime", "gpus", "workers", "interface", "directives", "prologue", "tls")
TLS = ("ca_file", "cert", "key")

# Dask has no authentication: whoever reaches a scheduler or a worker runs code there.
LOOPBACK = "127.0.0.1"

GUARD = 'In a script, everything that starts workers stands in a function, called below the line `if __name__ == "__main__":`.'

# A worker keeps the model of its last shard. Its threads, should it have several, take turns: hooks and modes belong to the model.
_last: list[tuple[Plan, int, nn.Module]] = []
_turn = threading.Lock()


@contextmanager
def connected(scheduler: Any) -> Iterator[Client]:
    """A client of a scheduler: of an address, a cluster, or the client itself, which stays open.

    Raises:
        ModuleNotFoundError: where dask is not installed, saying how to install it.
        TypeError: for anything else.
        OSError: where nobody answers at the address.
    """
    distributed = _distributed()
    if isinstance(scheduler, distributed.Client):
        yield scheduler
        return
    if not isinstance(scheduler, str) and not hasattr(scheduler, "scheduler_address"):
        raise TypeError(f"scheduler must be an address, a dask.distributed.Client or a cluster, not {type(scheduler).__name__}")
    with distributed.Client(scheduler, set_as_default=False) as client:
        yield client


def local(workers: int = 2, gpus: int | None = None) -> Any:
    """A cluster on this machine, each worker a process with one thread; nothing of it listens to the network.

    Args:
        workers: how many, on the CPU.
        gpus: in place of them, the number of CUDA devices, each with one worker.

    Raises:
        ValueError: for fewer than one.
        RuntimeError: in a script without a main guard, which each worker would run again from its first line.
    """
    count = workers if gpus is None else gpus
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"a cluster needs at least one worker, not {count!r}")
    _check_guard()
    distributed = _distributed()
    specs: dict[int, dict[str, Any]] = {}
    for number in range(count):
        options: dict[str, Any] = {"nthreads": 1, "memory_limit": 0, "host": LOOPBACK, "dashboard_address": f"{LOOPBACK}:0"}
        if gpus is not None:
            options |= {"resources": {"GPU": 1}, "env": {"CUDA_VISIBLE_DEVICES": str(number)}}
        specs[number] = {"cls": distributed.Nanny, "options": options}
    scheduler = {"cls": distributed.Scheduler, "options": {"host": LOOPBACK, "port": 0, "dashboard_address": f"{LOOPBACK}:0"}}
    try:
        return distributed.SpecCluster(workers=specs, scheduler=scheduler)
    except RuntimeError as error:
        if "failed to start" in str(error):
            raise RuntimeError(f"the workers do not start. {GUARD}") from error
        raise


def _check_guard() -> None:
    """Raise RuntimeError in a script that a worker would run again: it never asks for its name, or is being run again already."""
    path = getattr(sys.modules["__main__"], "__file__", None)
    again = getattr(multiprocessing.current_process(), "_inheriting", False)
    if again or (path and path.endswith(".py") and os.path.isfile(path) and b"__name__" not in Path(path).read_bytes()):
        raise RuntimeError(f"each worker imports {path!r}, and would start a cluster of its own. {GUARD}")


def slurm(params: str | os.PathLike[str] | Mapping[str, Any] = "params/cluster.yaml", *, submit: bool = True) -> Any:
    """Workers in jobs of Slurm, through dask-jobqueue; they are submitted at once, and work starts when the first of them runs.

    Args:
        params: a file such as ``params/cluster.yaml``, relative to the repository root, or its content: ``queue``, ``account``, ``cores``
            and ``memory`` of a job, ``walltime``, ``gpus`` of a job (0 or 1: a worker drives one device), ``workers`` (jobs),
            ``interface`` of the network, further ``directives`` for sbatch, shell lines that come before the worker, ``prologue``, and
            ``tls``: the files ``ca_file``, ``cert`` and ``key``, on a disk that all machines see, by which scheduler, workers and caller
            know each other and encrypt what they say; without it whoever reaches their ports can run code as you.
        submit: whether to submit the jobs now; otherwise ``cluster.job_script()`` shows one, and ``cluster.scale(jobs=4)`` submits.

    Returns:
        A ``dask_jobqueue.SLURMCluster``, for ``evaluate(scheduler=...)``.

    Raises:
        UnknownNameError: for an unknown key, with the nearest match.
        ValueError: for more than one GPU in a job, fewer than one worker, or a file of ``tls`` that is not named or not there.
    """
    if not isinstance(params, Mapping):
        params = yaml.safe_load(paths.resolve(params).read_text())
    for key in params:
        if key not in PARAMS:
            raise UnknownNameError("key of the cluster's params", key, PARAMS)
    gpus, workers = params.get("gpus", 0), params.get("workers", 1)
    if gpus not in (0, 1):
        raise ValueError(f"gpus must be 0 or 1, not {gpus!r}: each job is one worker and drives one device; ask for more workers")
    if not isinstance(workers, int) or workers < 1:
        raise ValueError(f"workers must be a whole number of at least 1, not {workers!r}")
    security = None if params.get("tls") is None else _security(params["tls"])
    try:
        from dask_jobqueue import SLURMCluster
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("slurm needs dask-jobqueue: pip install 'idsds[cluster]'") from error
    cores = params.get("cores", 1)
    cluster = SLURMCluster(
        queue=params.get("queue"),
        account=params.get("account"),
        cores=1,  # threads of the worker; torch uses all of job_cpu
        processes=1,
        job_cpu=cores,
        memory=params.get("memory", "16GB"),
        walltime=params.get("walltime", "08:00:00"),
        interface=params.get("interface"),
        job_extra_directives=[*(["--gres=gpu:1"] if gpus else []), *params.get("directives", [])],
        job_script_prologue=[f"export OMP_NUM_THREADS={cores}", *params.get("prologue", [])],
        worker_extra_args=["--resources", "GPU=1"] if gpus else [],
        security=security,
    )
    if submit:
        cluster.scale(jobs=workers)
    return cluster


def _security(tls: Mapping[str, str]) -> Any:
    """Dask's settings of TLS, one certificate for all."""
    for key in tls:
        if key not in TLS:
            raise UnknownNameError("key of tls in the cluster's params", key, TLS)
    files = {key: paths.resolve(tls.get(key) or "") for key in TLS}
    for key, path in files.items():
        if not path.is_file():
            raise ValueError(f"tls in the cluster's params needs {', '.join(TLS)}; {key} is {tls.get(key)!r}, which is no file")
    roles = {f"tls_{role}_{kind}": str(files[kind]) for role in ("scheduler", "worker", "client") for kind in ("cert", "key")}
    return _distributed().Security(require_encryption=True, tls_ca_file=str(files["ca_file"]), **roles)


def workers_device(client: Client, device: str) -> str:
    """The device that the workers compute on: ``auto`` is what the first of them has."""
    if device not in DEVICES:
        raise UnknownNameError("device", device, DEVICES)
    return client.submit(_device, device, pure=False).result()


def run_on(client: Client, plan: Plan, tasks: Sequence[Task], progress: bool, bar: Progress) -> list[Outcome]:
    """Do the tasks on the workers.

    Args:
        client: of the scheduler.
        plan: the settings, with the workers' device.
        tasks: what to do.
        progress: whether to say what is trained.
        bar: advanced as tasks are finished.

    Returns:
        What came of each task; where the records are kept in a folder, the blocks lie there.

    Raises:
        WorkerError: workers with other code or versions, or that do not see the folders.
        ValueError: for CUDA workers without the resource ``GPU``.
        Exception: whatever a worker raised; what has not begun is cancelled.
    """
    from dask.distributed import as_completed

    outcomes: dict[int, Outcome] = {}
    with _sent(client, plan, {task.folder.parent for task in tasks if task.folder}) as (sent, needs):
        futures = {client.submit(_work, sent, task, resources=needs, pure=False): place for place, task in enumerate(tasks)}
        try:
            for future in as_completed(list(futures), loop=client.loop):
                place = futures[future]
                outcomes[place] = future.result()
                bar.update(tasks[place].passes)
        finally:
            client.cancel(list(futures))
    return [outcomes[place] for place in range(len(tasks))]


def train_on(client: Client, plan: Plan, numbers: Sequence[int], progress: bool) -> None:
    """Train the checkpoints of some jobs, each on one worker. Raises as :func:`run_on` does."""
    with _sent(client, plan, set()) as (sent, needs):
        futures = []
        for number in numbers:
            if progress:
                print(f"training {plan.jobs[number].model} on a worker", flush=True)
            futures.append(client.submit(_train, sent, number, resources=needs, pure=False))
        try:
            client.gather(futures)
        finally:
            client.cancel(futures)


@contextmanager
def _sent(client: Client, plan: Plan, folders: set[Path]) -> Iterator[tuple[Future, dict[str, int]]]:
    """The plan on its way to workers that have been compared with the caller, and the resources that a task needs."""
    needs = {"GPU": 1} if plan.device == "cuda" else {}
    there = client.scheduler_info()["workers"].values()
    if needs and there and not any(worker.get("resources", {}).get("GPU") for worker in there):
        raise ValueError("the workers have CUDA devices, but none has the resource GPU: start them with --resources GPU=1")
    if folders or any(isinstance(job.source, Stage) for job in plan.jobs):
        folders = {*folders, paths.cache()}
    own = {name: entry for name, entry in METHODS.items() if _by_value(entry.function)}
    environment = {
        "IDSDS_HOME": str(paths.root()),
        "IDSDS_CACHE": str(paths.cache()),
        SWITCH: os.environ.get(SWITCH, "1"),
        **{name: os.environ[name] for name in SHARED if name in os.environ},
    }
    with caller(sorted(folders)) as expected:
        check_workers(client, expected)
        # What the worker compares comes before the plan, which other code could not even read.
        content = pickle.dumps((expected, cloudpickle.dumps((plan, own, environment))))
        # A result, and no scattered data: when the worker that holds it dies, the scheduler has it made again.
        yield client.submit(bytes, content, pure=False), needs


def _distributed() -> Any:
    try:
        import dask.distributed
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a scheduler needs dask: pip install 'idsds[cluster]'") from error
    return dask.distributed


def _by_value(function: Any) -> bool:
    return not getattr(function, "__module__", "").startswith("idsds.")


def _device(device: str) -> str:
    return chosen_device(device).type


@lru_cache(maxsize=1)
def _opened(content: bytes) -> Plan:
    """The plan, once for each worker, with the caller's own methods registered and its environment set."""
    expected, rest = pickle.loads(content)
    check_worker(expected)
    plan, own, environment = pickle.loads(rest)
    os.environ.update(environment)
    for name, entry in own.items():
        METHODS.add(name, entry, replace=True)
    return plan


def _model(plan: Plan, job: Job) -> nn.Module:
    """The net of a job, which is this worker's own."""
    net = job.load().to(plan.device, memory_format=plan.layout_of(job))  # type: ignore[call-overload]
    widen(net)
    return net


def _train(content: bytes, number: int) -> None:
    with _turn:
        _opened(content).jobs[number].prepare(progress=False)


def _work(content: bytes, task: Task) -> Outcome:
    with _turn:
        plan = _opened(content)
        if not _last or _last[0][0] is not plan or _last[0][1] != task.job:
            _last.clear()
            _last.append((plan, task.job, _model(plan, plan.jobs[task.job])))
        return replace(run_task(plan, task, _last[0][2]), worker=worker_name())
