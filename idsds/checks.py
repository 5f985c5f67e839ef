"""What can be known to go wrong before a run begins: images, targets, checkpoints; and a user's net given back as it came."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from idsds.datasets.base import ImageDataset
from idsds.models import MODELS
from idsds.models.base import frozen
from idsds.planning import Job, Plan
from idsds.stages import Stage


def as_seeds(seed: int | Sequence[int]) -> list[int]:
    """One seed or several as a list. Raises TypeError or ValueError for none, one twice, and what is no whole number."""
    seeds = [seed] if isinstance(seed, int) else list(seed) if isinstance(seed, (list, tuple, range)) else None
    if seeds is None or any(not isinstance(each, int) or isinstance(each, bool) for each in seeds):
        raise TypeError(f"seed must be a whole number or a list of them, not {seed!r}")
    if not seeds:
        raise ValueError("seed is empty: name at least one")
    if twice := [each for each, count in Counter(seeds).items() if count > 1]:
        raise ValueError(f"seed lists {twice[0]} more than once")
    return seeds


def check_images(plan: Plan) -> None:
    """Raise ValueError for a user's data set in which two of the images asked for have one id: their records would be one."""
    for job in _once(plan.jobs, lambda job: id(job.data)):
        if job.own_images is None:
            continue
        if isinstance(job.dataset, ImageDataset):
            ids = [job.dataset.image_ids[index] for index in job.indices]
        else:
            ids = [job.own_images[index][0] for index in job.indices]
        if twice := [image_id for image_id, count in Counter(ids).items() if count > 1]:
            raise ValueError(f"{len(twice)} image id(s) of the data set are there more than once, the first is {twice[0]!r}")


def check_jobs(plan: Plan, numbers: Iterable[int]) -> None:
    """Load checkpoint files, and compare the targets with the logits of what is going to run.

    Args:
        plan: the whole evaluation.
        numbers: the jobs that have something to compute. A net of the user's sees one image.

    Raises:
        CheckpointError: a file that does not fit its model, naming both.
        ValueError: a net that does not return logits (B, K), or a label to explain that is not below K.
    """
    jobs = [plan.jobs[number] for number in numbers]
    for job in _once(jobs, lambda job: (job.model, id(job.source) if isinstance(job.source, nn.Module) else str(job.source))):
        classes = _classes(job)
        if plan.target == "prediction":
            continue  # no label is used
        targets = job.dataset.targets if isinstance(job.dataset, ImageDataset) else None
        for index in job.indices:
            target = targets[index] if targets is not None else job.own_images[index][1]  # type: ignore[index]
            if not 0 <= target < classes:
                raise ValueError(f"the target of image {_id(job, index)!r} is {target}, but {job.model!r} has {classes} classes")


def _classes(job: Job) -> int:
    """K of the model."""
    if isinstance(job.source, Stage):
        return job.source.num_classes
    if isinstance(job.source, Path):
        job.load()  # does it fit?
        return getattr(job.dataset, "num_classes", None) or MODELS[job.model].num_classes
    item = next((item for item in map(job.dataset.__getitem__, job.indices) if item is not None), None)
    if item is None:
        raise ValueError(f"none of the {len(job.indices)} images can be read")
    where = next((tensor.device for tensor in (*job.source.parameters(), *job.source.buffers())), torch.device("cpu"))
    with frozen(job.source), torch.no_grad():
        logits = job.source(item[0][None].to(where))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != 1:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{job.model!r} must return logits (B, K); for a batch of one image it returns {given}")
    return logits.shape[1]


def _id(job: Job, index: int) -> str:
    return job.dataset.image_ids[index] if isinstance(job.dataset, ImageDataset) else job.own_images[index][0]  # type: ignore[index]


def _once(jobs: Iterable[Job], key: Callable[[Job], Hashable]) -> list[Job]:
    return list({key(job): job for job in jobs}.values())


@contextmanager
def on_loan(net: nn.Module, device: str, layout: torch.memory_format) -> Iterator[nn.Module]:
    """A user's net on a device and in a layout; afterwards it has the very tensors, modes and devices that it came with.

    The tensors that it came with are kept meanwhile: on the CPU its convolutions have their weights twice, on an accelerator the others
    are where they were.
    """
    parameters = [(parameter, parameter.data) for parameter in net.parameters()]
    gradients = [(parameter.grad, parameter.grad.data) for parameter in net.parameters() if parameter.grad is not None]
    buffers = [(module, name, buffer) for module in net.modules() for name, buffer in module._buffers.items()]
    modes = [(module, module.training) for module in net.modules()]
    try:
        yield net.to(device, memory_format=layout)  # type: ignore[call-overload]
    finally:
        for tensor, data in (*parameters, *gradients):
            tensor.data = data
        for module, name, buffer in buffers:
            module._buffers[name] = buffer
        for module, mode in modes:
            module.training = mode
