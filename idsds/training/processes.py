"""Missing nets trained side by side: training on small images takes one CPU thread, so several nets share the cores."""

from __future__ import annotations

import io
import os
import pickle
import sys
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from types import FunctionType
from typing import Any

import cloudpickle
import torch

from idsds.common.processes import GUARD, check_begun, is_guarded, pool
from idsds.common.progress import Progress
from idsds.common.switches import switches
from idsds.datasets import DATASETS
from idsds.models import MODELS, create_model
from idsds.models.base import ModelEntry
from idsds.training.checkpoints import Stage, obtain
from idsds.training.launch import Machine, started_outside, threads_restored
from idsds.training.loop import SMALL

#: Environment variable with the number of nets that are trained side by side.
SWITCH = "IDSDS_PROCESSES"
#: Seconds that processes take to start, since each imports torch; and the bytes of memory that each may need.
START, MEMORY = 10.0, 1.5e9
#: The memory of a container, in bytes, or ``max``.
LIMIT = Path("/sys/fs/cgroup/memory.max")
#: Packages whose functions are the same in every process, beside Python's own.
KNOWN = ("idsds", "torch", "torchvision", "timm", "numpy", "cloudpickle")


def train(stages: Sequence[Stage], machine: Machine | None = None, progress: bool = True) -> None:
    """Train what is not cached or is damaged; small nets on a CPU side by side if that is sooner, each to the weights that it has alone.

    Args:
        machine: as for :func:`~idsds.training.checkpoints.obtain`.

    Raises:
        RuntimeError: in a worker that is importing the main script.
        Exception: what the training of a net raised, with a note that names the net and its seed. The others stop, and resume in the next
            call; finished checkpoints are kept.
    """
    check_begun()
    machine = machine or Machine()
    if (most := processes()) > 1:
        missing = {one.key: one for stage in stages for one in stage.missing if processes_of(one, machine) > 1}
        costs = _seconds(missing) if len(missing) > 1 and not any(map(any, switches()[1:])) else {}
        if costs and wall_seconds(sum(costs.values()), max(_tails(missing, costs).values(), default=0.0), most) < sum(costs.values()):
            _side_by_side(missing, costs, min(most, len(missing)), machine, progress)
    for stage in stages:
        if not stage.intact:
            obtain(stage, machine=machine, progress=progress)


def processes() -> int:
    """Return how many nets are trained side by side: ``IDSDS_PROCESSES``, else as many as torch has threads and memory suffices for.

    Raises:
        ValueError: if ``IDSDS_PROCESSES`` is not a whole number of at least 1.
    """
    if setting := os.environ.get(SWITCH):
        if not setting.isdecimal() or int(setting) < 1:
            raise ValueError(f"{SWITCH} must be a whole number of at least 1, not {setting!r}")
        count = int(setting)
    else:
        count = torch.get_num_threads()
        with suppress(AttributeError, ValueError, OSError):  # Windows does not say
            count = min(count, int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / MEMORY))
        with suppress(ValueError, OSError):  # no container, or one without a limit
            count = min(count, int(int(LIMIT.read_text(encoding="ascii")) / MEMORY))
    return max(1, count) if is_guarded() else 1


def processes_of(stage: Stage, machine: Machine | None = None) -> int:
    """Return how many nets such as this one are trained side by side: 1 unless another process would train it to the same weights.

    A user's net or data set may depend on what the user's program has set since it was imported, so these are trained alone.
    """
    if stage.device != "cpu" or (machine is not None and machine.devices > 1) or started_outside() is not None:
        return 1
    try:
        side = max(stage.split("train")[0][0].shape[-2:])
        _packed(stage)
    except Exception:  # an image that cannot be read, or what cannot be pickled: alone it is trained or named as ever
        return 1
    return processes() if side <= SMALL else 1


def wall_seconds(total: float, longest: float, count: int) -> float:
    """Return the seconds of training by the clock, side by side or not, whichever is sooner.

    Args:
        total: seconds of all stages.
        longest: seconds of the stages of one net, which wait for each other.
        count: number of processes.
    """
    return min(total, START + max(longest, total / count)) if count > 1 else total


def _seconds(stages: Mapping[str, Stage]) -> dict[str, float]:
    """Return about how long each stage takes, from one step of each net; for the order and the progress bar."""
    per_image: dict[tuple[str, str], float] = {}
    for stage in stages.values():
        if (pair := (stage.model, stage.dataset)) in per_image:
            continue
        with torch.random.fork_rng(devices=[]), threads_restored():
            torch.set_num_threads(1)
            net, images = create_model(stage.model, stage.num_classes), stage.split("train")[0][0].repeat(8, 1, 1, 1)
            for _ in range(2):  # the first one warms up
                started = time.perf_counter()
                net(images).sum().backward()
            per_image[pair] = (time.perf_counter() - started) / len(images)
    return {key: per_image[one.model, one.dataset] * one.train_images * one.recipe.epochs for key, one in stages.items()}


def _tails(stages: Mapping[str, Stage], costs: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds from the start of each stage to the end of the last one that waits for it; no costs, no seconds."""

    def tail(key: str) -> float:
        return costs.get(key, 0.0) + max((tail(one.key) for one in stages.values() if one.start and one.start.key == key), default=0.0)

    return {key: tail(key) for key in stages}


def _side_by_side(stages: Mapping[str, Stage], costs: Mapping[str, float], count: int, machine: Machine, progress: bool) -> None:
    """Train the stages, those first that most depends on. A stage starts when the one that it starts from is done."""
    done = get_context("spawn").RawArray("d", len(stages))  # steps, written by one process each
    steps = [one.recipe.epochs * -(-one.train_images // one.recipe.batch_size) for one in stages.values()]
    waiting, tails, shared = dict(stages), _tails(stages, costs), (machine, repr(switches()[0]))
    running: dict[Future, Stage] = {}
    bar = Progress(
        total=sum(costs.values()),
        desc=f"training, {count} side by side",
        bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}",
        mininterval=1,
        disable=not progress,
    )
    try:
        with bar, pool(count, _report_to, done) as executor:
            while waiting or running:
                unfinished = {*waiting, *(one.key for one in running.values())}
                ready = [key for key, one in waiting.items() if one.start is None or one.start.key not in unfinished]
                for key in sorted(ready, key=lambda key: -tails[key])[: count - len(running)]:
                    stage = waiting.pop(key)
                    running[executor.submit(_train, list(stages).index(key), _packed(stage), *shared)] = stage
                finished = wait(running, timeout=0.5, return_when=FIRST_COMPLETED).done
                for future in finished:
                    _take(future, running.pop(future))
                names = ", ".join(f"{one.model} (seed {one.seed})" for one in running.values())
                bar.set_postfix_str(f"{len(stages) - len(waiting) - len(running)} of {len(stages)} done: {names}", refresh=False)
                of_all = sum(cost * min(1.0, part / whole) for cost, part, whole in zip(costs.values(), done, steps, strict=True))
                bar.update(of_all - bar.n)
    except BrokenProcessPool:
        warnings.warn(
            "a process that trained a net ended without an error, perhaps for lack of memory; what is left is trained in this process, one "
            f"net after the other. IDSDS_PROCESSES sets how many nets are trained side by side. {GUARD}",
            stacklevel=4,
        )


def _take(future: Future, stage: Stage) -> None:
    """Repeat the warnings of a training, and raise its error with a note on the net."""
    try:
        said = future.result()
    except BrokenProcessPool:
        raise
    except Exception as error:
        error.add_note(f"This happened while {stage.model!r} was trained on {stage.dataset!r} with seed {stage.seed}.")
        raise
    for category, message in said:
        warnings.warn(message, category, stacklevel=5)


_done: Any = None  # in a worker, the caller's array of steps


def _report_to(done: Any) -> None:
    global _done
    _done = done


def _add(place: int, steps: float) -> None:
    _done[place] += steps


class _Packer(cloudpickle.Pickler):
    """Refuses functions and classes that are a user's: in another process their modules may hold other values."""

    def reducer_override(self, thing: Any) -> Any:
        top = (thing.__module__ or "").partition(".")[0] if isinstance(thing, (type, FunctionType)) else "idsds"
        if top not in KNOWN and top not in sys.stdlib_module_names:
            raise pickle.PicklingError(f"{thing!r} may be another one in another process")
        return super().reducer_override(thing)


def _packed(stage: Stage) -> bytes:
    """Return a stage with its entries in the registries, which another process may lack. Raises an error for what is a user's."""
    packed = io.BytesIO()
    _Packer(packed).dump((stage, vars(MODELS[stage.model]), DATASETS[stage.dataset]))
    return packed.getvalue()


def _train(place: int, packed: bytes, machine: Machine, states: str) -> list[tuple[type[Warning], str]]:
    """Train a stage in a worker, and return the warnings; do nothing if torch's switches would give it other weights."""
    if repr(switches()[0]) != states:
        return []
    stage, net, data = pickle.loads(packed)
    MODELS.add(stage.model, ModelEntry(**net), replace=True)
    DATASETS.add(stage.dataset, data, replace=True)
    Progress.sink = partial(_add, place)
    failed: RuntimeError | None = None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        try:
            obtain(stage, machine=machine)
        except Exception as error:
            if _returns(error):
                raise
            failed = RuntimeError(f"{type(error).__name__}: {error}")
    if failed is not None:
        raise failed  # out of the handler: an error's context is pickled too, where tblib is loaded
    return [(one.category, str(one.message)) for one in said]


def _returns(error: Exception) -> bool:
    """Return whether an error arrives in the caller as it is; one that takes arguments of its own may not, and would end all workers."""
    try:
        return str(pickle.loads(pickle.dumps(error))) == str(error)
    except Exception:
        return False
