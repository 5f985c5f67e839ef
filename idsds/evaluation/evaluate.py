"""The benchmark engine: evaluate models x methods on a data set, compute every pass once, and keep records that survive a crash.

The images are split into blocks. For each block the method-independent columns (for IDSDS: the deletion drops) are computed once, and each
group of methods that share a computation gives one block of records. A block's address is a hash of everything that determines its content.
A block is complete or absent, so a killed run resumes where it stopped, and methods or images added later cost only their own passes.
Runs share blocks through the cache (:mod:`idsds.evaluation.cache`). Once all blocks exist, the run's folder is completed
(:mod:`idsds.evaluation.commit`).
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn
from torch.utils.data import Dataset

from idsds.common import paths
from idsds.common.devices import check_precision
from idsds.common.files import locked
from idsds.common.normalisation import Normalisation
from idsds.common.processes import check_begun
from idsds.common.progress import Progress
from idsds.common.registry import check_name
from idsds.evaluation.arguments import Arguments, as_seeds, make_plan
from idsds.evaluation.cache import cover, record_cache
from idsds.evaluation.checks import check_images, check_jobs
from idsds.evaluation.commit import commit
from idsds.evaluation.costs import measure, summary
from idsds.evaluation.folder import Folder, There
from idsds.evaluation.manifest import MANIFEST
from idsds.evaluation.plan import Plan, Target
from idsds.evaluation.records import collected
from idsds.evaluation.result import Result
from idsds.evaluation.right import guesses
from idsds.evaluation.run import Outcome, Source, Task, run_task, tasks_of, wanted_images
from idsds.evaluation.selection import CORRECT, images_said, select_images
from idsds.models.isolation import on_loan
from idsds.training.checkpoints import Stage
from idsds.training.processes import train

#: A run with a folder and more records than this is not read into memory when it is complete.
LARGE = 1_000_000
#: Two functions: one trains the checkpoints of jobs, the other runs tasks; in this process or on a cluster.
Work = tuple[Callable[[Plan, Sequence[int], bool], None], Callable[[Plan, Sequence[Task], bool, Progress], list[Outcome]]]


class MissingRecordsError(RuntimeError):
    """Requested records are missing after all work is done. The message names them, and where they should be."""


def evaluate(
    models: Sequence[str] | Mapping[str, nn.Module | Stage],
    methods: Sequence[str] | Mapping[str, Any],
    dataset: str | Dataset = "mnist5k",
    protocol: str = "idsds",
    images: int | None = None,
    grid: int | Sequence[int] = 4,
    baseline: str = "zeros",
    seed: int | Sequence[int] = 0,
    output: str | Path | None = None,
    scheduler: Any = None,
    batch_size: int | None = None,
    dry_run: bool | str = False,
    progress: bool = True,
    *,
    target: Target = "label",
    quantity: Any = None,
    device: str = "auto",
    precision: str = "32-true",
    checkpoints: Mapping[str, str | Path] | None = None,
    shard: int = 256,
    split: str = "test",
    channels_last: bool = True,
    compiled: bool = False,
    workers: int | None = None,
    normalisation: Normalisation | tuple | None = None,
    only: str | None = None,
    common: bool = False,
    **settings: Any,
) -> pd.DataFrame | Path:
    """Score attribution methods on models over a data set.

    Args:
        models: names (fine-tuned in-domain for the data set, trained once and cached), or ``{"my_net": nn.Module}``, used without further
            training: the net is tested on two images first and moved to ``device`` for the run; its tensors, hooks, devices and modes are
            restored afterwards. It computes in the precision of its weights, to which images are converted; half precision is widened to
            float32. :func:`idsds.finetune` fine-tunes a net in-domain. A stage of :func:`idsds.training.checkpoints.plan_training` can
            replace a net: it is trained when needed, and cached.
        methods: names, or ``{"my_method": callable(images, targets) -> maps}``, an object of captum, torchcam or pytorch-grad-cam, or
            maps computed elsewhere (see :mod:`idsds.methods.own`). ``None`` as the value selects the registered method of that name; a
            pair sets options, ``{"IG, 5 steps": ("IG", {"steps": 5})}``, or passes further arguments to a call. A ``layer`` may be set
            per model: ``{"Grad-CAM": ("Grad-CAM", {"layer": {"my_net": "4"}})}``. A method that does not apply to one of several models,
            or that explains another net, is left out for that model.
        dataset: a name, or any torch Dataset of (image (3, H, W), target) or (image, target, image_id).
        protocol: ``idsds``, or another of ``list_protocols("image")``.
        images: number of images, taken in one fixed order, the same for every model and method; None: 200, or all if there are fewer.
        grid: patches per side. With several grids, each has its own records and drops, the maps are computed once, and a net that is
            fine-tuned for this run is fine-tuned with the first grid.
        baseline: what replaces a deleted patch: ``zeros``, ``uniform``, ``blur``, or ``blur KERNEL SIGMA``, such as ``blur 25 10``.
        seed: of training, noise and masks; with several seeds there are records for each.
        output: folder for the records, relative to the repository root. Records that other runs have computed are reused from the cache
            (``cache/records``), and new ones are added to it; ``IDSDS_RECORD_CACHE=0`` in the environment turns sharing off. With None the
            cache is neither read nor written, and only trained checkpoints are kept on disk. A folder has one writer at a time: a second
            call waits for the first. Records of earlier calls with other methods or settings are kept.
        scheduler: the address of a Dask scheduler, a ``dask.distributed.Client`` or a cluster (see :mod:`idsds.evaluation.cluster`).
            It spreads the shards over its workers, which must share ``output`` and the cache. None: the address in ``$IDSDS_SCHEDULER``,
            which sends the records of every notebook to a cluster, else (and for ``output=None``) this process.
        batch_size: images per batch; None chooses it by the free memory. It changes scores only by float rounding.
        dry_run: return the plan (passes per model and computation) instead of computing anything; ``"measure"`` also times a few batches
            of every computation: images per second, seconds left and megabytes on disk. Neither writes anything.
        progress: show progress bars, and print what will be computed.
        target: the class that is explained and scored: the image's ``label``, or the ``prediction`` of the model being scored (for IDSDS
            the fine-tuned one), which costs one more forward pass per image and grid. Labels then need not be classes of the model.
        quantity: what methods explain and the protocol measures of that class: its ``logit``, its ``probability`` (softmax),
            or a ``contrast``, its logit minus the highest other logit of the same input, or ``("contrast", 3)``, minus that of class 3. A
            method defined only for the logit is left out for the other two; maps that were computed elsewhere are
            used unchanged. None: methods explain the logit (RISE the probability, as in its paper), and the protocol uses the quantity
            that its page documents.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        checkpoints: weight files by model name, used instead of training; ``pretrained`` selects the published weights, unchanged.
        shard: images per block of records: the most that a killed run can lose.
        workers: processes that load images ahead; 0 loads them in this process. None: on a GPU one per CPU core, up to 8, for a named
            data set, else 0. An image is decoded once per run for all models, as long as the decoded images fit in
            ``IDSDS_IMAGES_GB`` gigabytes (default: a quarter of the free memory), and beyond that once per model and seed.
        split: of a named data set: ``test``, ``val`` or ``train``.
        channels_last: whether to use the channels-last memory format, which is faster and changes scores only by float rounding.
        compiled: whether the method-independent passes (for IDSDS: the deletions) run through ``torch.compile``; the methods, which hook
            into layers, do not.
        normalisation: how the images of your own data set are normalised, ``(mean, std)`` per channel or one of torchvision's, for
            protocols that change pixels; the data set may have it as its attribute ``normalisation`` instead. For a named data set,
            how images are normalised for your own nets.
        only: ``correct`` returns only records of correctly classified images, see :func:`idsds.select_images`.
        common: return only records of images on which every method of every model is defined and, with ``only``, every model is correct.
            Neither argument changes anything else: ``output`` holds the records of all images, and its manifest counts under ``right``
            how many each model classifies correctly, on how many all methods are defined, and on how many both hold. The frame's
            ``attrs["images"]`` says which images these are.
        settings: further settings of the protocol.

    Returns:
        One row per (image, model, method, seed): ``image_id``, ``model``, ``method``, ``target`` (the class explained), ``score`` (NaN
        where undefined), and the protocol's other columns; :func:`load_records` reads the same from ``output``. With ``dry_run`` the plan.
        A run of more than a million records is not read into memory: its folder is returned instead, which :func:`rank`,
        :func:`paired_differences` and the other statistics accept, and from which :func:`load_records` reads a selection.

    Raises:
        UnknownNameError: for an unknown name, with the nearest match.
        OldRecordsError: if ``output`` holds records of another format, which are not changed.
        MissingRecordsError: if computed records are not in ``output`` at the end.
        WorkerError: if a worker of ``scheduler`` has other code or versions, or does not see ``output`` and the cache.
        ValueError, TypeError, OSError: for any other invalid argument, before any work is done.
        RuntimeError: in a worker that is importing a script without ``if __name__ == "__main__":``.
        MethodError: if a user's method raises; what was computed before is kept in ``output``.

    Warns:
        UserWarning: once for each net that returns probabilities, is not deterministic, needs contiguous memory, or is not known to
            be fine-tuned in-domain although the protocol requires it; for each that predicts the labels no better than guessing; for each
            of the user's methods that depends on the batch, which then gets one image at a time, or draws random numbers of its own; and
            for each method that is left out for such a reason.
    """
    check_begun()
    as_seeds(seed)
    if output is not None and str(output) in ("", "."):
        raise ValueError(f"output must name a folder, not {str(output)!r}; None keeps nothing on disk")
    if scheduler is None and output is not None and not dry_run:
        scheduler = os.environ.get("IDSDS_SCHEDULER") or None
    check_name("dry_run", dry_run, (True, False, "measure"))
    plan = make_plan(
        Arguments(
            models,
            methods,
            dataset,
            protocol,
            images,
            as_seeds(seed),
            settings={"grid": grid, "baseline": baseline, **settings},
            checkpoints=checkpoints or {},
            device=device if scheduler is None else "cpu",  # the caller's machine may have no GPU; the workers' device is set below
            precision=precision,
            batch_size=batch_size,
            shard=shard,
            split=split,
            channels_last=channels_last,
            compiled=compiled,
            workers=workers,
            target=target,
            quantity=quantity,
            elsewhere=scheduler is not None,
            normalisation=normalisation,
        )
    )
    _check_selection(plan, only, common)
    for note in plan.notes:
        warnings.warn(note, stacklevel=2)
    folder = None if output is None else paths.resolve(output) if dry_run else paths.check_writable(output)
    if dry_run is not True:
        check_images(plan)
    if dry_run == "measure":
        table = measure(plan, folder)
        if progress:
            print(summary(table), flush=True)
        return table
    if dry_run:
        return plan.table()
    if scheduler is not None:
        from idsds.evaluation.cluster import connected, run_on, train_on, workers_device

        with connected(scheduler) as client:
            plan = plan.on_device(workers_device(client, device))
            check_precision(precision, plan.device)
            found = _evaluate(plan, folder, progress, (partial(train_on, client), partial(run_on, client)))
    else:
        found = _evaluate(plan, folder, progress, (_train_here, _run_here))
    for note in guesses(plan, found):
        warnings.warn(note, stacklevel=2)
    if not isinstance(found, pd.DataFrame) or (only is None and not common):
        return found
    kept = select_images(found, only, common)
    kept.attrs["images"] = images_said(found, kept, only, common)
    return kept


def _check_selection(plan: Plan, only: str | None, common: bool) -> None:
    """Raise UnknownNameError or ValueError for a choice of images that could not be made of the records."""
    if only is None and not common:
        return
    if only is not None:
        check_name("choice of images", only, (CORRECT,))
    if only is not None and plan.target == "prediction":
        raise ValueError("only='correct' needs the labels, but target='prediction' explains the predictions")
    if only is not None and plan.protocol.prepare is None:
        raise ValueError(f"only='correct' needs the models' predictions, which protocol {plan.protocol.name!r} does not record")
    if (records := sum(len(job.indices) * len(job.methods) for job in plan.jobs) * len(plan.grids)) > LARGE:
        chosen = ", ".join(filter(None, (only and f"only={only!r}", common and "common=True")))
        raise ValueError(f"{chosen}: {records:,} records are not read into memory; evaluate without, then idsds.select_images of a part")


def _evaluate(plan: Plan, folder: Path | None, progress: bool, work: Work) -> pd.DataFrame | Path:
    if folder is None:
        there: There = [{unit: [] for unit in plan.units(job, False)} for job in plan.jobs]
        check_jobs(plan, range(len(plan.jobs)))
        return _computed(plan, there, None, progress, work).content().frame()
    begun, manifest = time.perf_counter(), _content_of(folder / MANIFEST)
    state, plan, there = _state(plan, folder)
    check_jobs(plan, dict.fromkeys(task.job for task in _tasks(plan, there, folder)))  # before anything is written
    with locked(folder) as waited:
        if waited or manifest != _content_of(folder / MANIFEST):
            state, plan, there = _state(plan, folder)
        result = _computed(plan, there, state, progress, work)
        run = commit(state, result, lambda: time.perf_counter() - begun)
    return run.folder if run.manifest["records"] > LARGE else run.content().frame()


def _state(plan: Plan, folder: Path) -> tuple[Folder, Plan, There]:
    """Return a folder's state, the plan with the known checkpoints, and the blocks that exist."""
    state = Folder(folder, record_cache())
    plan = plan.with_weights(state.checkpoints)
    return state, plan, state.find(plan)


def _content_of(path: Path) -> bytes:
    return path.read_bytes() if path.is_file() else b""


def _tasks(plan: Plan, there: There, folder: Path | None) -> list[Task]:
    return [task for number in range(len(plan.jobs)) for task in tasks_of(plan, number, there[number], folder and folder / "blocks")]


def _computed(plan: Plan, there: There, folder: Folder | None, progress: bool, work: Work) -> Result:
    """Compute the missing records. Raises MissingRecordsError if records of readable images are still missing at the end."""
    path = None if folder is None else folder.path
    tasks = _tasks(plan, there, path)
    if progress:
        print(announcement(plan, there, tasks, folder), flush=True)
    if untrained := [number for number in dict.fromkeys(task.job for task in tasks) if not plan.jobs[number].is_ready]:
        work[0](plan, untrained, progress)
        if folder is not None:  # records are addressed by the content of checkpoints, which was not known before
            plan = plan.with_weights()
            there = folder.find(plan)
    if folder is not None:
        there = folder.begin(plan, there)
        tasks = _tasks(plan, there, path)
    outcomes: list[Outcome] = []
    if tasks:
        shown = {"desc": f"{plan.protocol.name} on {plan.dataset}", "unit": "pass", "unit_scale": True, "disable": not progress}
        with Progress(total=sum(task.passes for task in tasks), **shown) as bar:
            outcomes = work[1](plan, tasks, progress, bar)
    for task, outcome in zip(tasks, outcomes, strict=True):
        for unit, block in zip(task.units, outcome.blocks, strict=True) if outcome.blocks else ():
            if folder is not None and not Path(block.where).is_file():
                raise MissingRecordsError(f"{block.where!r} is missing, although {outcome.worker} has written it: was it removed?")
            there[task.job][unit].append(block)
    return _result(plan, there, {image_id for outcome in outcomes for image_id in outcome.skipped}, folder is not None)


def _result(plan: Plan, there: There, skipped: set[str], addressed: bool) -> Result:
    """Return where each record is stored. Raises MissingRecordsError for a record that is nowhere."""
    covers, images, targets = [], {}, {}
    lost = 0
    for job, units in zip(plan.jobs, there, strict=True):
        wanted = wanted_images(job, addressed)
        labels = dict(zip(wanted, job.targets(job.indices), strict=True))
        skipped |= {image_id for image_id, key in wanted.items() if not key}  # images without an address could not be read
        found = {unit: cover(blocks, unit.methods, wanted) for unit, blocks in units.items()}
        for unit, (_, lacking) in found.items():
            if lacking - skipped:
                what = ", ".join(unit.methods) or plan.shared_work
                raise MissingRecordsError(
                    f"the records of {job.model!r} under {what} lack {len(lacking - skipped)} images that were not reported as unreadable: "
                    f"{collected(sorted(lacking - skipped))}"
                )
            lost += len(lacking) * len(unit.methods)
        covers.append({unit: picks for unit, (picks, _) in found.items()})
        there_are = wanted.keys() - set.intersection(*(lacking for _, lacking in found.values()))
        images |= {image_id: key for image_id, key in wanted.items() if image_id in there_are}
        targets |= {image_id: labels[image_id] for image_id in wanted if image_id in there_are}
    if not images:
        raise ValueError(f"none of the {len(skipped)} images can be read")
    if lost:
        expected = sum(len(job.indices) * len(job.methods) for job in plan.jobs) * len(plan.grids)
        listed = collected(
            [image_id for image_id in dict.fromkeys(i for job in plan.jobs for i in job.ids(job.indices)) if image_id in skipped]
        )
        warnings.warn(f"{lost} of {expected} records are missing: images that could not be read were skipped: {listed}", stacklevel=5)
    return Result(plan, covers, images, targets, sorted(skipped))


def _train_here(plan: Plan, numbers: Sequence[int], progress: bool) -> None:
    train([job.source for job in map(plan.jobs.__getitem__, numbers) if isinstance(job.source, Stage)], progress=progress)


def _run_here(plan: Plan, tasks: Sequence[Task], progress: bool, bar: Progress) -> list[Outcome]:
    outcomes = []
    source = Source(plan, {task.job for task in tasks})
    for number, group in groupby(tasks, key=lambda task: task.job):
        job, of_job = plan.jobs[number], list(group)
        bar.set_postfix_str(job.model)
        with on_loan(job.load(), plan.device, plan.layout_of(job)) as model:
            sources = source.batches(job, of_job)
            outcomes += [run_task(plan, task, model, bar.update, own) for task, own in zip(of_job, sources, strict=True)]
    return outcomes


def announcement(plan: Plan, there: There, tasks: Sequence[Task], folder: Folder | None) -> str:
    """Describe what will be computed, in two or three lines."""
    models = list(dict.fromkeys(job.model for job in plan.jobs))
    several = f" x {seeds} seeds" if (seeds := len({job.seed for job in plan.jobs})) > 1 else ""
    images = max(len(job.indices) for job in plan.jobs)
    forward, backward = plan.announced
    lines = [
        f"{plan.protocol.name}: {len(models)} model(s) ({', '.join(models)}) x {len(plan.methods)} methods on {images} images of "
        f"{plan.dataset}{several}; {forward:,} forward and {backward:,} backward passes in all"
    ]
    training = plan.table().dropna(subset="epochs")
    if len(training):
        steps = int((training["epochs"] * training["images"]).sum())
        lines.append(f"first, {len(training)} training stage(s) that are not cached: {steps:,} images forward and backward")
    to_do = len({(task.job, unit) for task in tasks for unit in task.units if unit.group is not None})
    records = sum(unit.group is not None for units in there for unit in units)
    left, taken = sum(task.passes for task in tasks), 0 if folder is None else folder.from_cache(there)
    if to_do < records or taken or left < sum(plan.announced):
        shared = f"; {taken} blocks are reused from other runs ({record_cache().folder})" if taken else ""
        lines.append(f"{records - to_do} of {records} sets of records already exist{shared}; {left:,} passes left")
    return "\n".join(lines)
