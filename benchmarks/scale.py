"""What records cost at the size of the paper's table: 24 methods on 50,000 images of 1, 4 and 16 models (up to 19.2 million records).

    python benchmarks/scale.py [--models 1 4 16] [--images 50000] [--methods 24] [--folder FOLDER]

The records are random numbers, but the engine plans the run, holds the blocks, commits them and writes the files. Each task is a process of
its own, and its memory is the peak over what it had when the package was imported:

- write: from blocks to a complete folder. Not a goal: computing them takes weeks.
- open: the folder's facts, and the hash of every file compared.
- rank: :func:`idsds.rank` with 2,000 resamples. Goals: 1.2 million records below 4 s, 19.2 million below 45 s.
- paired: one pair of methods on every model.
- figure: the ranking and its figure.

``--models 1 4`` takes about a minute and a half, ``--models 16`` about four minutes; ``--models 1 2 --images 2000 --methods 4`` tries it in
seconds.

Goal for memory: below 2 GB, and no more for 16 models than for 4.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import nn
from torch.utils.data import TensorDataset

import idsds
from idsds import plots
from idsds.common.hashing import digest
from idsds.evaluation.arguments import Arguments, make_plan
from idsds.evaluation.cache import Block
from idsds.evaluation.commit import commit
from idsds.evaluation.evaluate import LARGE
from idsds.evaluation.folder import Folder
from idsds.evaluation.plan import Plan, Unit
from idsds.evaluation.records import Run
from idsds.evaluation.result import Result

GRID, SHARD = 4, 256
LISTS = pa.list_(pa.field("element", pa.float32()), GRID**2)  # as a block has it once it was read from its file
TASKS = ("open", "rank", "paired", "figure")
GOALS = {1_200_000: 4, 19_200_000: 45}  # seconds of rank, by records
MOST = 2000  # MB


def planned(models: int, methods: int, images: int) -> Plan:
    """A plan whose nets and images are as small as can be."""
    nets = {f"net {number:02d}": nn.Sequential(nn.Flatten(), nn.Linear(3 * GRID**2, 10)) for number in range(models)}
    pixels = torch.randn(images, 3, GRID, GRID)
    data = TensorDataset(pixels, torch.arange(images) % 10)
    names = {f"IG, {number + 1} steps": ("IG", {"steps": number + 1}) for number in range(methods)}
    settings = {"grid": GRID, "baseline": "zeros"}
    return make_plan(Arguments(nets, names, data, "idsds", images, [0], settings=settings, checkpoints={}, device="cpu", shard=SHARD))


def content(unit: Unit, start: int, images: int) -> pa.Table:
    """Random columns of a block: a method's score is higher the later its name comes."""
    rng = np.random.default_rng([int(digest(unit.address), 16) % 2**63, start])
    rows = images * max(1, len(unit.methods))
    lists = {"drops": rows} if unit.group is None else {"patch_sums": rows}
    columns = {
        name: pa.FixedSizeListArray.from_arrays(pa.array(rng.standard_normal(count * GRID**2, np.float32)), type=LISTS)
        for name, count in lists.items()
    }
    if unit.group is None:
        return pa.table({**columns, "intact": pa.array(rng.standard_normal(rows, np.float32))})
    return pa.table({"score": pa.array(rng.normal(unit.group / 100, 0.3, rows).clip(-1, 1)), **columns})


def write(folder: Path, models: int, methods: int, images: int) -> None:
    """Commit a run of blocks that hold random numbers."""
    plan = planned(models, methods, images)
    covers = []
    for job in plan.jobs:
        wanted = job.images(job.indices)
        ids = list(wanted)
        of_job = {}
        for unit in plan.units(job, True):
            parts = [ids[start : start + SHARD] for start in range(0, images, SHARD)]
            blocks = [
                (Block(unit.address, {i: wanted[i] for i in some}, unit.methods, partial(content, unit, n, len(some)), 1, 1, 0.1), some)
                for n, some in enumerate(parts)
            ]
            of_job[unit] = dict.fromkeys(unit.methods or (None,), blocks)
        covers.append(of_job)
    job = plan.jobs[0]
    wanted = job.images(job.indices)
    result = Result(plan, covers, wanted, dict(zip(wanted, job.targets(job.indices), strict=True)), [])
    commit(Folder(folder, None), result, lambda: 0.0)


def task(name: str, folder: Path, size: tuple[int, int, int]) -> object:
    """Do one of the tasks."""
    if name == "write":
        return write(folder, *size)
    run = Run.open(folder)
    if name == "open":
        for kind in ("images", "deletions", "scores", "undefined"):
            for entry in run.files(kind):
                run.check(entry)
        return None
    if name == "paired":
        first, second = run.manifest["methods"][:2]
        return idsds.paired_differences(folder, pairs=[(first, second)])
    table = idsds.rank(folder)
    if name == "figure":
        plots.rank_methods(table, run.manifest["families"], n_patches=GRID**2).savefig(folder / "figure.svg")
    return table


def memory() -> float:
    """The process's peak so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(name: str, folder: Path, size: tuple[int, int, int]) -> dict[str, float]:
    """Seconds and MB of a task in a process of its own."""
    command = [sys.executable, __file__, "--task", name, "--folder", str(folder), "--size", *map(str, size)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def compare(folder: Path, counts: list[int], methods: int, images: int) -> None:
    """Write and read runs on so many models, and say whether the goals hold."""
    peaks: dict[tuple[str, int], float] = {}
    for models in counts:
        here, records = folder / f"{models} models", models * methods * images
        print(f"{records:,} records, {models} models x {methods} methods x {images:,} images", flush=True)
        for name in ("write", *TASKS):
            found = alone(name, here, (models, methods, images))
            peaks[name, models] = found["mb"]
            goal = f" (goal < {GOALS[records]} s)" if name == "rank" and records in GOALS else ""
            print(f"  {name:7} {found['seconds']:6.1f} s{goal}  {found['mb']:6.0f} MB above the imports", flush=True)
        files = [path for path in here.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        print(f"  folder  {len(files)} files, {size / 1e6:,.0f} MB, manifest {(here / 'manifest.json').stat().st_size / 1e3:,.0f} kB")
    most = max(peak for (name, _), peak in peaks.items() if name != "write")
    print(f"peak of reading: {most:.0f} MB (goal < {MOST}); evaluate hands back the folder above {LARGE:,} records")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, nargs="*", default=[1, 4, 16])
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--methods", type=int, default=24)
    parser.add_argument("--folder", type=Path, help="kept; by default a temporary one")
    parser.add_argument("--task", choices=("write", *TASKS), help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ["IDSDS_RECORD_CACHE"] = "0"
    if given.task:
        before, begun = memory(), time.perf_counter()
        task(given.task, given.folder, tuple(given.size))
        print(json.dumps({"seconds": time.perf_counter() - begun, "mb": memory() - before}))
        return
    with tempfile.TemporaryDirectory() as temporary:
        compare(given.folder or Path(temporary), given.models, given.methods, given.images)


if __name__ == "__main__":
    main()
