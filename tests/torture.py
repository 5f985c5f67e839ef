"""Torture: what becomes of records when processes, disks, workers and clocks fail. `make torture` prints the table of docs/reliability.md.

Each trial spoils one thing at a random moment or place, in processes of their own, and looks at all that anybody is then given: the frame
that a call returns, the records that the folder gives to a reader, and those of the same call made again when nothing is spoiled any more.
They are compared with records that were computed in memory beforehand. A trial has *survived* if all of them are right, it is *named* if
somebody got an error that names a file or a worker, *obscure* if the error does not, *hung* if a call took longer than two minutes, and
*silent* if a wrong number came without a word.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.utils.data import TensorDataset

import idsds
from idsds.evaluation import records
from idsds.training.checkpoints import plan_training
from tests.evaluation.linear import Linear

METHODS = ["IxG", "IxG-SG", "Random", "Gradient"]
IMAGES = 12
FORK = multiprocessing.get_context("fork")
#: As it was before a trial lets it fail.
REPLACE = os.replace
ORDER = ("survived", "named", "obscure", "hung", "silent")
#: Seconds after which a call hangs.
PATIENCE = 120


class Hung(BaseException):
    """A call took too long; no ``except Exception`` on the way may take it for something else."""


@contextlib.contextmanager
def patient(seconds: float = PATIENCE) -> Iterator[None]:
    """Raise Hung in the main thread where what is within takes longer."""

    def ring(*_: Any) -> None:
        raise Hung(f"it took more than {seconds} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def linear(output: Any, methods: list[str] = METHODS, images: int = IMAGES, **changes: Any) -> pd.DataFrame:
    """The records of a small net of the user's; two images are constant, so that their scores are undefined."""
    pixels = torch.randn(IMAGES, 3, 8, 16, generator=torch.Generator().manual_seed(1))
    pixels[:2] = 0
    data = TensorDataset(pixels, torch.arange(IMAGES) % 4)
    return idsds.evaluate({"net": Linear()}, methods, data, images=images, output=output, progress=False, shard=3, **changes)


def cached(output: Any, methods: list[str] = METHODS[:1], **_: Any) -> pd.DataFrame:
    """The records of a net of the package, whose checkpoint is in the cache."""
    stage = plan_training("mini_resnet8", "digits", deletion=None, changes={"epochs": 1}, device="cpu")
    return idsds.evaluate({"net": stage}, methods, "digits", images=4, output=output, progress=False)


def loaded(output: Any, methods: list[str] = METHODS[:1], **_: Any) -> pd.DataFrame:
    """The records of a net of the package, with weights from a file."""
    weights = {"mini_resnet8": Path(os.environ["IDSDS_CACHE"]) / "weights.safetensors"}
    return idsds.evaluate(["mini_resnet8"], methods, "digits", images=4, checkpoints=weights, output=output, progress=False)


class Attempt:
    """A call in a process of its own: started at once, killed or waited for; what it returned or raised."""

    def __init__(self, folder: Path, function: Callable[..., Any], *arguments: Any, **options: Any) -> None:
        descriptor, name = tempfile.mkstemp(dir=folder)
        os.close(descriptor)
        self.answer = Path(name)
        self.process = FORK.Process(target=_answered, args=(self.answer, function, arguments, options))
        self.process.start()

    def killed(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    def result(self) -> pd.DataFrame | BaseException | None:
        """What came of it; None where it was killed before."""
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.killed()
            return Hung(f"it took more than {PATIENCE} seconds")
        content = self.answer.read_bytes()
        return pickle.loads(content) if content else None


def _answered(path: Path, function: Callable[..., Any], arguments: tuple, options: dict) -> None:
    records._known.clear()  # as a process that has not seen these files
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = function(*arguments, **options)
        except Exception as error:
            found = type(error)(str(error)) if isinstance(error, (OSError, ValueError, RuntimeError)) else RuntimeError(repr(error))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    content = pickle.dumps(found)
    path.with_suffix(".new").write_bytes(content)
    REPLACE(path.with_suffix(".new"), path)
    os._exit(0)


class World:
    """A folder for a trial, the right records, and the judge.

    Args:
        folder: where nothing is.
        rng: all randomness.
        evaluate: one of the calls above.
    """

    expected: dict[str, pd.DataFrame] = {}
    seconds: dict[str, float] = {}
    templates: dict[str, Path] = {}

    def __init__(self, folder: Path, rng: random.Random, evaluate: Callable[..., pd.DataFrame] = linear) -> None:
        self.folder, self.rng, self.evaluate = folder, rng, evaluate
        self.run, self.cache, self.name = folder / "run", folder / "cache", evaluate.__name__
        os.environ.update(IDSDS_CACHE=str(self.cache), IDSDS_RECORD_CACHE="1")
        self.worst, self.said = "survived", ""
        self.counts = {IMAGES}  # of images, that somebody asks for

    def start(self, function: Callable[..., Any] | None = None, *arguments: Any, **options: Any) -> Attempt:
        """A call in a process of its own; without a function that of this world, into its folder."""
        if function is None:
            function, arguments = self.evaluate, (self.run, *arguments)
        return Attempt(self.folder, function, *arguments, **options)

    def moment(self, share: float = 1.1) -> None:
        """Wait for a random part of the time that a whole call takes."""
        time.sleep(self.rng.uniform(0, share * self.seconds[self.name]))

    def judge_read(self, found: Any) -> None:
        """The same of what a reader sees, which may be what any of several writers has asked for."""
        count = found["image_id"].nunique() if isinstance(found, pd.DataFrame) else IMAGES
        self.judge(found, images=count if count in self.counts else IMAGES)

    def judge(self, found: Any, methods: list[str] | None = None, images: int = IMAGES) -> None:
        """Remember the worst of what was seen."""
        verdict = self._verdict(found, methods, images)
        if ORDER.index(verdict) > ORDER.index(self.worst):
            self.worst, self.said = verdict, f"{type(found).__name__}: {found}" if isinstance(found, BaseException) else "other numbers"

    def _verdict(self, found: Any, methods: list[str] | None, images: int) -> str:
        if found is None:
            return "survived"  # it was killed
        if isinstance(found, Hung):
            return "hung"
        if isinstance(found, Exception):
            return "named" if "/" in str(found) or "worker" in str(found) else "obscure"
        expected = self.expected[self.name]
        methods = list(found["method"].unique()) if methods is None else methods
        expected = expected[expected["method"].isin(methods)]
        if images < IMAGES:
            expected = expected[expected["image_id"].isin(expected["image_id"].unique()[:images])]
        return "survived" if alike(found, expected) else "silent"

    def over(self) -> tuple[str, str]:
        """Read the folder, make the call again with nothing spoiled, and read again."""
        read = self.start(idsds.load_records, self.run).result()
        if not isinstance(read, FileNotFoundError):  # a run that is not complete says so, and that is right
            self.judge_read(read)
        again = self.start().result()
        self.judge(again, list(self.expected[self.name]["method"].unique()))
        if isinstance(again, pd.DataFrame):
            self.judge(self.start(idsds.load_records, self.run).result())
        return self.worst, self.said

    @classmethod
    def prepare(cls, folder: Path, evaluate: Callable[..., pd.DataFrame]) -> None:
        """The right records, the time of a call, and a folder and cache that are complete."""
        name, template = evaluate.__name__, folder / f"template-{evaluate.__name__}"
        os.environ.update(IDSDS_CACHE=str(template / "cache"), IDSDS_RECORD_CACHE="1")
        if evaluate is loaded:
            from idsds.models import create_model
            from idsds.models.weights import save_checkpoint

            torch.manual_seed(0)
            save_checkpoint(create_model("mini_resnet8"), template / "cache" / "weights.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            evaluate(template / "run")
            cls.expected[name] = evaluate(None)
            begun = time.perf_counter()
            evaluate(folder / "timed")
        cls.seconds[name], cls.templates[name] = time.perf_counter() - begun, template
        shutil.rmtree(folder / "timed")


def alike(found: pd.DataFrame, expected: pd.DataFrame) -> bool:
    """Whether two frames hold the same records; images computed in other batches differ by rounding."""
    one, other = (frame.sort_values(["method", "image_id"], ignore_index=True) for frame in (found, expected))
    same = len(one) == len(other) and all(one[name].equals(other[name]) for name in ("method", "image_id", "target", "model", "seed"))
    return same and all(
        np.allclose(np.stack(one[name]), np.stack(other[name]), atol=1e-4, rtol=0, equal_nan=True)
        for name in ("score", "drops", "patch_sums")
    )


def killed(world: World) -> None:
    """One process, killed at a random moment, up to three times."""
    for _ in range(world.rng.randint(1, 3)):
        attempt = world.start()
        world.moment()
        attempt.killed()
        world.judge(attempt.result(), METHODS)


def two_writers(world: World, number: int = 2) -> None:
    """Processes with different wishes in one folder, started at random moments; one of them may be killed."""
    wishes = [(world.rng.sample(METHODS, world.rng.randint(1, 3)), world.rng.choice((5, IMAGES))) for _ in range(number)]
    world.counts, attempts = {images for _, images in wishes}, []
    for methods, images in wishes:
        attempts.append(world.start(None, methods, images))
        world.moment(0.4)
    if world.rng.random() < 0.4:
        world.rng.choice(attempts).killed()
    for attempt, (methods, images) in zip(attempts, wishes, strict=True):
        world.judge(attempt.result(), methods, images)


def three_writers(world: World) -> None:
    """Three of them."""
    two_writers(world, 3)


def _with_little_space(limit: int, function: Callable[..., Any], *arguments: Any) -> Any:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    return function(*arguments)


def _with_failing(name: str, number: int, function: Callable[..., Any], *arguments: Any) -> Any:
    left, real = [number], getattr(os, name)

    def failing(*given: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return real(*given, **options)

    setattr(os, name, failing)
    return function(*arguments)


def disk_full(world: World) -> None:
    """No file may grow beyond some bytes, or every call of the system that writes fails from a random one on."""
    if world.rng.random() < 0.5:
        attempt = world.start(_with_little_space, world.rng.randint(10, 8000), world.evaluate, world.run)
    else:
        name = world.rng.choice(("fsync", "replace", "link", "mkdir", "chmod"))
        attempt = world.start(_with_failing, name, world.rng.randint(0, 12), world.evaluate, world.run)
    world.judge(attempt.result(), METHODS)


def removed(world: World) -> None:
    """The folder, or a part of it or of the cache, goes at a random moment."""
    attempt = world.start()
    world.moment()
    parts = [world.run, world.run / "blocks", world.run / "scores", world.run / "deletions", world.run / "manifest.json", world.cache]
    victim = world.rng.choice([*parts, world.cache / "records"])
    if victim.is_file():
        victim.unlink(missing_ok=True)
    shutil.rmtree(victim, ignore_errors=True)
    world.judge(attempt.result(), METHODS)


#: Files of a complete run and its cache, by kind.
FILES: dict[str, tuple[Callable[..., pd.DataFrame], str]] = {
    "block": (linear, "cache/records/*/*.parquet"),
    "records": (linear, "run/scores/*.parquet"),
    "deletions": (linear, "run/deletions/*.parquet"),
    "images": (linear, "run/images-*.parquet"),
    "ledger": (linear, "run/undefined-*.parquet"),
    "manifest": (linear, "run/manifest.json"),
    "checkpoint": (cached, "cache/checkpoints/*.safetensors"),
    "hash of a checkpoint": (cached, "cache/checkpoints/*.sha256"),
    "weights": (loaded, "cache/weights.safetensors"),
}


def flipped(world: World, pattern: str) -> None:
    """A bit, some bytes or the end of a file are lost, at times with the file's time as it was; then somebody reads or goes on."""
    for part in ("run", "cache"):
        shutil.copytree(world.templates[world.name] / part, world.folder / part, ignore=shutil.ignore_patterns(".lock*"))
    victim = world.rng.choice(sorted(world.folder.glob(pattern)))
    content, times, place = bytearray(victim.read_bytes()), victim.stat(), 0
    place, how = world.rng.randrange(len(content)), world.rng.random()
    if how < 0.8:
        content[place] ^= 1 << world.rng.randrange(8)
    elif how < 0.9:
        content[place : place + 64] = bytes(len(content[place : place + 64]))
    else:
        del content[place:]
    victim.chmod(0o644)
    victim.write_bytes(content)
    if world.rng.random() < 0.5:
        os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    if world.rng.random() < 0.3:
        shutil.rmtree(world.run)  # only the cache is left
    more = list(world.expected[world.name]["method"].unique())
    world.judge(world.start(idsds.load_records, world.run).result() if world.run.is_dir() else None)
    if world.rng.random() < 0.5:
        world.judge(world.start(world.evaluate, world.folder / "other").result(), more)
    elif world.evaluate is not linear:
        found = world.start(world.evaluate, world.folder / "more", ["IxG", "Gradient"]).result()
        world.judge(found[found["method"] == "IxG"] if isinstance(found, pd.DataFrame) else found, more)


def _at(offset: float, function: Callable[..., Any], *arguments: Any) -> Any:
    real = time.time
    time.time = lambda: real() + offset + random.uniform(-1, 1) * abs(offset) / 100
    return function(*arguments)


def clock(world: World) -> None:
    """A process that is killed; files with times of the past or the future; then another with the clock years off."""
    attempt = world.start()
    world.moment()
    attempt.killed()
    for path in [*world.run.rglob("*"), *world.cache.rglob("*")]:
        with contextlib.suppress(OSError):
            os.utime(path, (world.rng.choice((0, 4e9, time.time())),) * 2)
    attempts = [world.start(_at, world.rng.uniform(-3e8, 3e8), world.evaluate, world.run) for _ in range(world.rng.randint(1, 2))]
    for attempt in attempts:
        world.judge(attempt.result(), METHODS)


#: By name, how a trial goes, with which call, and its share of all trials.
KINDS: dict[str, tuple[Callable[..., None], Callable[..., pd.DataFrame], float]] = {
    "one process, killed": (killed, linear, 0.10),
    "two writers": (two_writers, linear, 0.10),
    "three writers": (three_writers, linear, 0.06),
    "disk full": (disk_full, linear, 0.10),
    "folder removed": (removed, linear, 0.09),
    "clock and times of files": (clock, linear, 0.05),
}
for _name, (_call, _pattern) in FILES.items():
    KINDS[f"bits of a file: {_name}"] = (
        lambda world, pattern=_pattern: flipped(world, pattern),
        _call,
        0.06 if _call is linear else 0.046,
    )


def torture(trials: int, seed: int, kinds: dict[str, Any] | None = None, workers: int = 0) -> pd.DataFrame:
    """Run trials of all kinds, in a folder of their own, and count.

    Args:
        trials: in all, about; at least one of each kind.
        seed: of all that is random but the order in which the machine runs its processes.
        kinds: of :data:`KINDS`; None: all.
        workers: trials with a Dask cluster, more.

    Returns:
        One row per kind: ``trials``, ``survived``, ``named``, ``obscure``, ``hung``, ``silent``, and ``said``, the worst that was said.
    """
    rows, before = [], {name: os.environ.get(name) for name in ("IDSDS_CACHE", "IDSDS_RECORD_CACHE", "IDSDS_HOME")}
    kinds = KINDS if kinds is None else kinds
    with tempfile.TemporaryDirectory() as place:
        os.environ["IDSDS_HOME"] = place
        try:
            for evaluate in dict.fromkeys(call for _, call, _ in kinds.values()):
                World.prepare(Path(place), evaluate)
            for name, (act, evaluate, share) in kinds.items():
                rows.append(
                    _row(name, [_trial(Path(place), f"{seed} {name} {n}", act, evaluate) for n in range(max(1, round(trials * share)))])
                )
            if workers:
                rows += _with_workers(Path(place), seed, workers)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
    return pd.DataFrame(rows)


def _trial(place: Path, seed: str, act: Callable[[World], None], evaluate: Callable[..., pd.DataFrame]) -> tuple[str, str]:
    folder = Path(tempfile.mkdtemp(dir=place))
    world = World(folder, random.Random(seed), evaluate)
    act(world)
    outcome = world.over()
    shutil.rmtree(folder)
    return outcome


def _row(name: str, outcomes: list[tuple[str, str]]) -> dict[str, Any]:
    counts = Counter(outcome for outcome, _ in outcomes)
    worst = max(outcomes, key=lambda outcome: ORDER.index(outcome[0]))
    row = {"what": name, "trials": len(outcomes), **{outcome: counts[outcome] for outcome in ORDER}, "said": worst[1][:200]}
    bad = any(counts[outcome] for outcome in ORDER[2:])
    print({key: value for key, value in row.items() if key != "said" or bad}, file=sys.stderr, flush=True)
    return row


def _with_workers(place: Path, seed: int, trials: int) -> list[dict[str, Any]]:
    """Workers that are lost, that are without the disk from the beginning, that lose it, or that have other code."""
    outcomes: dict[str, list[tuple[str, str]]] = {"worker lost": [], "worker without the disk": [], "worker with other code": []}
    with contextlib.ExitStack() as stack:
        client = _client(stack)
        for number in range(trials):
            name = list(outcomes)[0 if number % 3 == 0 else number % 3]
            if len(client.scheduler_info()["workers"]) < 2 or any("hung" in some[-1] for some in outcomes.values() if some):
                stack.close()
                client = _client(stack)
            outcomes[name].append(_trial(place, f"{seed} {name} {number}", lambda world, n=name, c=client: _spoiled(world, c, n), linear))
    return [_row(name, some) for name, some in outcomes.items()]


def _client(stack: contextlib.ExitStack) -> Any:
    from dask.distributed import Client

    from idsds.evaluation import cluster

    return stack.enter_context(Client(stack.enter_context(cluster.local(2)), set_as_default=False))


def _spoiled(world: World, client: Any, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with patient(), _one_spoiled(world, client, name):
                world.judge(linear(world.run, scheduler=client), METHODS)
        except (Exception, Hung) as error:
            world.judge(error)


@contextlib.contextmanager
def _one_spoiled(world: World, client: Any, name: str) -> Iterator[None]:
    victim = world.rng.choice(list(client.scheduler_info()["workers"]))
    if name == "worker lost":
        pid, delay = client.run(os.getpid, workers=[victim])[victim], world.rng.uniform(0, 0.8)
        killer = FORK.Process(target=_kill_later, args=(pid, delay))
        killer.start()
        try:
            yield
        finally:
            killer.join()
    else:
        client.run(_spoil, name, world.rng.random() < 0.5, workers=[victim])
        try:
            yield
        finally:
            client.run(_mend, workers=[victim])


def _kill_later(pid: int, delay: float) -> None:
    time.sleep(delay)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


_undone: list[tuple[Any, str, Any]] = []


def _spoil(name: str, later: bool) -> None:
    """Within a worker: its folders are others than the caller's, from the beginning or once it was looked at; or its code is."""
    from idsds.evaluation import workers
    from idsds.evaluation.cache import Store

    def elsewhere(store: Any, block: Any, write: Any = Store.write) -> Any:
        own = write(Store(Path(tempfile.mkdtemp()) / "blocks"), block)
        return type(block)(**{**vars(own), "where": str(store.folder / block.address / Path(own.where).name)})

    place, attribute, value = (workers, "package_digest", lambda: "other")
    if name == "worker without the disk":
        place, attribute, value = (Store, "write", elsewhere) if later else (workers, "_is_there", lambda path, content: False)
    _undone.append((place, attribute, getattr(place, attribute)))
    setattr(place, attribute, value)


def _mend() -> None:
    while _undone:
        setattr(*_undone.pop())


def main() -> None:
    """Print the table, and fail where a number was wrong without a word, an error was obscure, or a call hung."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=480)
    parser.add_argument("--workers", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    begun = time.monotonic()
    table = torture(asked.trials, asked.seed, workers=asked.workers)
    total = {"what": "**all**", **{name: table[name].sum() for name in ("trials", *ORDER)}}
    print("| what | trials | survived | named errors | obscure errors | hung | silent wrong numbers |\n|---|---|---|---|---|---|---|")
    for row in (*table.to_dict("records"), total):
        print("| " + " | ".join(str(row[name]) for name in ("what", "trials", *ORDER)) + " |")
    print(f"\n{time.monotonic() - begun:.0f} seconds, seed {asked.seed}")
    sys.exit(int(total["silent"] + total["obscure"] + total["hung"] > 0))


if __name__ == "__main__":
    main()
