"""Run shards on the workers of a Dask cluster: one machine with several devices, Slurm, or anything else that Dask runs on.

Every missing checkpoint is trained once, on one worker, before the shards start. Before any work each worker is compared with the caller:
different code or versions, or another disk, are an error (:mod:`idsds.evaluation.workers`). Records are exchanged through the shared output
folder, so a run that loses its cluster resumes where it stopped. A worker that dies loses only its current shard, which another worker
computes again. On workers with CUDA each shard requests one unit of the resource ``GPU``.
"""

from __future__ import annotations

import os
import pickle
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
from idsds.common.processes import GUARD, check_guard
from idsds.common.progress import Progress
from idsds.common.registry import check_name, check_names
from idsds.evaluation.cache import SWITCH
from idsds.evaluation.plan import Plan
from idsds.evaluation.run import Outcome, Task, run_task
from idsds.evaluation.workers import caller, check_worker, check_workers, worker_name
from idsds.methods import METHODS
from idsds.models.isolation import widen
from idsds.training.checkpoints import Stage, obtain

if TYPE_CHECKING:
    from dask.distributed import Client, Future

# All processes use the same paths: workers copy these variables from the caller's environment.
SHARED = ("IDSDS_DATA", "IDSDS_MEMORY_GB")
PARAMS = ("queue", "account", "cores", "memory", "walltime", "gpus", "workers", "interface", "directives", "prologue", "tls")
TLS = ("ca_file", "cert", "key")

# Dask has no authentication: anybody who can reach a scheduler or a worker can run code there.
LOOPBACK = "127.0.0.1"

# A worker keeps the model of its last shard. If it has several threads, they take turns, since hooks and modes are state of the model.
_last: list[tuple[Plan, int, nn.Module]] = []
_turn = threading.Lock()


@contextmanager
def connected(scheduler: Any) -> Iterator[Client]:
    """Connect to a scheduler given as an address, a cluster, or a client (which stays open).

    Raises:
        ModuleNotFoundError: if dask is not installed, saying how to install it.
        TypeError: for anything else.
        OSError: if no scheduler answers at the address.
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
    """Start a cluster on this machine. Each worker is a process with one thread, and nothing listens on the network.

    Args:
        workers: number of workers, on the CPU.
        gpus: instead, the number of CUDA devices, with one worker each.

    Raises:
        ValueError: for fewer than one worker.
        RuntimeError: in a script without a main guard, which each worker would run again from its first line.
    """
    count = workers if gpus is None else gpus
    if not isinstance(count, int) or count < 1:
        raise ValueError(f"a cluster needs at least one worker, not {count!r}")
    check_guard()
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
            raise RuntimeError(f"the workers failed to start. {GUARD}") from error
        raise


def slurm(params: str | os.PathLike[str] | Mapping[str, Any] = "params/cluster.yaml", *, submit: bool = True) -> Any:
    """Start workers as Slurm jobs through dask-jobqueue. Work begins when the first job runs.

    Args:
        params: a file such as ``params/cluster.yaml``, relative to the repository root, or its content: ``queue``, ``account``, ``cores``
            and ``memory`` of a job, ``walltime``, ``gpus`` of a job (0 or 1: a worker drives one device), ``workers`` (jobs), the network
            ``interface``, further ``directives`` for sbatch, a ``prologue`` of shell lines that run before the worker, and ``tls``:
            the files ``ca_file``, ``cert`` and ``key``, on a shared disk, with which scheduler, workers and caller authenticate each
            other and encrypt their traffic. Without ``tls``, anybody who can reach their ports can run code as you.
        submit: whether to submit the jobs now; otherwise ``cluster.job_script()`` shows one, and ``cluster.scale(jobs=4)`` submits four.

    Returns:
        A ``dask_jobqueue.SLURMCluster``, for ``evaluate(scheduler=...)``.

    Raises:
        UnknownNameError: for an unknown key, with the nearest match.
        ValueError: for more than one GPU in a job, fewer than one worker, or a missing file of ``tls``.
    """
    if not isinstance(params, Mapping):
        params = yaml.safe_load(paths.resolve(params).read_text(encoding="utf-8"))
    check_names("key of the cluster's params", params, PARAMS)
    gpus, workers = params.get("gpus", 0), params.get("workers", 1)
    if gpus not in (0, 1):
        raise ValueError(f"gpus must be 0 or 1, not {gpus!r}: each job is one worker with one device; set workers to use more devices")
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
    """Return Dask's TLS settings, with one certificate for all roles."""
    check_names("key of tls in the cluster's params", tls, TLS)
    files = {key: paths.resolve(tls.get(key) or "") for key in TLS}
    for key, path in files.items():
        if not path.is_file():
            raise ValueError(f"tls in the cluster's params needs {', '.join(TLS)}; {key} is {tls.get(key)!r}, which is not a file")
    roles = {f"tls_{role}_{kind}": str(files[kind]) for role in ("scheduler", "worker", "client") for kind in ("cert", "key")}
    return _distributed().Security(require_encryption=True, tls_ca_file=str(files["ca_file"]), **roles)


def workers_device(client: Client, device: str) -> str:
    """Return the device that the workers compute on: ``auto`` is resolved by one worker."""
    check_name("device", device, DEVICES)
    return client.submit(_device, device, pure=False).result()


def run_on(client: Client, plan: Plan, tasks: Sequence[Task], progress: bool, bar: Progress) -> list[Outcome]:
    """Run the tasks on the workers, and return the outcome of each; if the run has a folder, the blocks are stored there.

    Raises:
        WorkerError: if workers have other code or versions, or do not see the folders.
        ValueError: for CUDA workers without the resource ``GPU``.
        Exception: whatever a worker raised; tasks that have not started are cancelled.
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
    """Train the checkpoints of some jobs, each on one worker. Raises the same errors as :func:`run_on`."""
    with _sent(client, plan, set()) as (sent, needs):
        for number in numbers if progress else ():
            print(f"training {plan.jobs[number].model} on a worker", flush=True)
        futures = [client.submit(_train, sent, number, resources=needs, pure=False) for number in numbers]
        try:
            client.gather(futures)
        finally:
            client.cancel(futures)


@contextmanager
def _sent(client: Client, plan: Plan, folders: set[Path]) -> Iterator[tuple[Future, dict[str, int]]]:
    """Check the workers and send them the plan; yield its future, and the resources that a task needs."""
    needs = {"GPU": 1} if plan.device == "cuda" else {}
    there = client.scheduler_info()["workers"].values()
    if needs and there and not any(worker.get("resources", {}).get("GPU") for worker in there):
        raise ValueError("the workers have CUDA devices, but none has the resource GPU: start them with --resources GPU=1")
    if folders or any(isinstance(job.source, Stage) for job in plan.jobs):
        folders = {*folders, paths.cache()}
    own = {name: entry for name, entry in METHODS.items() if not getattr(entry.function, "__module__", "").startswith("idsds.")}
    environment = {
        "IDSDS_HOME": str(paths.root()),
        "IDSDS_CACHE": str(paths.cache()),
        SWITCH: os.environ.get(SWITCH, "1"),
        **{name: os.environ[name] for name in SHARED if name in os.environ},
    }
    with caller(sorted(folders)) as expected:
        check_workers(client, expected)
        # The versions are pickled apart from the plan, because a worker with other code could not unpickle the plan.
        content = pickle.dumps((expected, cloudpickle.dumps((plan, own, environment))))
        # Submitted rather than scattered: if the worker that holds the content dies, the scheduler computes it again.
        yield client.submit(bytes, content, pure=False), needs


def _distributed() -> Any:
    try:
        import dask.distributed
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("a scheduler needs dask: pip install 'idsds[cluster]'") from error
    return dask.distributed


def _device(device: str) -> str:
    return chosen_device(device).type


@lru_cache(maxsize=1)
def _opened(content: bytes) -> Plan:
    """Return the plan, unpickled once per worker, after registering the caller's own methods and setting its environment."""
    expected, rest = pickle.loads(content)
    check_worker(expected)
    plan, own, environment = pickle.loads(rest)
    os.environ.update(environment)
    for name, entry in own.items():
        METHODS.add(name, entry, replace=True)
    return plan


def _train(content: bytes, number: int) -> None:
    with _turn:
        stage: Any = _opened(content).jobs[number].source
        obtain(stage, progress=False)  # not load(), which refuses other weights than those that are known


def _work(content: bytes, task: Task) -> Outcome:
    with _turn:
        plan = _opened(content)
        if not _last or _last[0][0] is not plan or _last[0][1] != task.job:
            _last.clear()
            job = plan.jobs[task.job]
            net = job.load().to(plan.device, memory_format=plan.layout_of(job))  # the worker's own: it need not be restored
            widen(net)
            _last.append((plan, task.job, net))
        return replace(run_task(plan, task, _last[0][2]), worker=worker_name())
