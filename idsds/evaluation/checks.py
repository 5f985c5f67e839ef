"""Checks of a user's net and methods while the plan is made: which methods apply to the net, and whether it was fine-tuned in-domain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from idsds.evaluation.job import Job
from idsds.evaluation.plan import Plan
from idsds.methods import Method, graphs, shared_maps
from idsds.methods.binding import has_rules, library_of, other_net
from idsds.methods.libraries.captum import BEYOND_RULES, Captum, deeplift_rules, is_relu
from idsds.methods.own import StoredMaps, misread_layer
from idsds.models import MODELS
from idsds.models.base import frozen
from idsds.models.inspection import Facts
from idsds.models.isolation import on_loan
from idsds.models.quantity import Quantity
from idsds.protocols import ProtocolEntry
from idsds.training.checkpoints import Stage
from idsds.training.recipes import Deletion

#: Whether DeepLIFT has a rule for a type of layer.
RULED = deeplift_rules().__contains__
#: Methods with at most this many passes per image are tried on one image before the work begins.
CHEAP = 12


def not_in_domain(name: str, net: nn.Module, protocol: ProtocolEntry, settings: Mapping[str, Any]) -> str | None:
    """Return a warning for a net that the protocol requires to be fine-tuned in-domain and that is not known to be, else None."""
    known = getattr(net, "in_domain", None)
    if not protocol.in_domain or known is True:
        return None
    grid = settings.get("grid")
    asked = {"grid": grid[0] if isinstance(grid, tuple) else grid, "baseline": settings.get("baseline")}
    asked |= {} if protocol.masked_share is None else {"share": protocol.masked_share}
    if isinstance(known, Deletion):
        if known.model_dump() == asked:
            return None
        return f"model {name!r} was fine-tuned in-domain with {known.model_dump()}, but is judged with {asked}"
    share = "" if protocol.masked_share is None else f", share={protocol.masked_share:g}"
    return (
        f"model {name!r} is judged by {protocol.name!r}, but is not known to be fine-tuned in-domain: its drops then also measure how "
        f"out-of-distribution a deleted patch is. idsds.finetune(net, training_images{share}) fine-tunes it; protocol='single_deletion' "
        "needs no fine-tuning; set net.in_domain = True if it was fine-tuned elsewhere"
    )


def unfit(
    methods: Mapping[str, Method], wanted: Mapping[str, Any], facts: Facts, net: nn.Module, images: Tensor, device: str
) -> dict[str, str]:
    """Return the methods that do not apply to a user's net, with the reason, by trying the cheap ones on the first of two images.

    ``wanted`` are their values in the ``methods`` argument of ``evaluate``.
    """
    reasons: dict[Any, str | None] = {}
    with torch.random.fork_rng(devices=[]), on_loan(net, device, facts.layout) as model:
        batch = images[:1].detach().to(device, facts.dtype, copy=True).contiguous(memory_format=facts.layout)
        for name, method in methods.items():
            given = wanted[name]
            thing = given[0] if isinstance(given, tuple) else given
            if library_of(thing):
                with frozen(model):
                    reasons[method.computation] = misread_layer(thing, model, batch)
            elif method.is_the_packages and method.passes is not None and method.computation not in reasons:
                reasons[method.computation] = _failure(method, facts, batch)
    return {name: reason for name, method in methods.items() if (reason := reasons.get(method.computation))}


def _failure(method: Method, facts: Facts, batch: Tensor) -> str | None:
    if not method.passes or not method.passes.backward:
        return None
    if not facts.gradient:
        return "no gradient of the logits reaches the images: the net runs under torch.no_grad, or detaches what it computes"
    if sum(method.passes) > CHEAP:
        return None
    try:
        shared_maps([method], batch, torch.zeros(1, dtype=torch.long, device=batch.device), ["trial"])
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        return str(error).splitlines()[0]
    return None


def unexplained(quantity: Quantity, fitting: Mapping[str, Method], wanted: Mapping[str, Any]) -> dict[str, str]:
    """Return the methods that cannot explain a quantity, with the reason."""
    reasons = {name: method.entry.explains_not.get(quantity.kind) for name, method in fitting.items()}
    if quantity.kind != "logit":
        reasons |= {name: BEYOND_RULES for name in fitting if has_rules(wanted[name])}
    return {name: f"it does not explain the {quantity}: {reason}" for name, reason in reasons.items() if reason}


def doubt(name: str, given: Any, model: str, net: nn.Module) -> str | None:
    """Return a warning for a callable that holds a net other than the one it is scored on, else None."""
    if given is None or (isinstance(given, tuple) and isinstance(given[0], str)) or (other := other_net(given, net)) is None:
        return None
    return f"method {name!r} holds a {type(other).__name__}, and not model {model!r}, which it is scored on: is that the net it explains?"


def missed(name: str, given: Any, model: str, net: nn.Module) -> str | None:
    """Return a warning for a captum object whose rules hook modules, on a net that calls their functions instead, else None."""
    thing = given[0] if isinstance(given, tuple) else given
    kinds = {kind.__name__ for kind in type(thing).__mro__} if library_of(thing) == "captum" else set()
    by_rules = kinds.intersection(Captum.RESCALING)
    if not by_rules and not kinds.intersection((*Captum.GUIDED, "GuidedGradCam")):
        return None
    try:
        called = graphs.functional(net, RULED if by_rules else is_relu)
    except graphs.NotTraceableError:
        return None
    return called and (
        f"method {name!r}: captum's {type(thing).__name__} hooks modules, and misses the function {called!r} that model {model!r} calls; "
        "the package's methods of that name do not"
    )


def check_images(plan: Plan) -> None:
    """Raise ValueError if stored maps lack an image, or if images of a user's data set share an id: their records would be mixed up."""
    for job in {id(job.data): job for job in plan.jobs}.values():
        image_ids = job.ids(job.indices)
        for given in job.methods.values():
            if isinstance(given, StoredMaps):
                given.check(image_ids)
        twice = [image_id for image_id, count in Counter(image_ids).items() if count > 1]
        if twice and job.own_images is not None:
            raise ValueError(f"{len(twice)} image id(s) occur more than once in the data set, the first is {twice[0]!r}")


def check_jobs(plan: Plan, numbers: Iterable[int]) -> None:
    """Load the checkpoint files of the jobs that will run (``numbers``), and check that every target is a class of its model.

    Raises:
        CheckpointError: if a file does not fit its model, naming both.
        ValueError: if a label to explain is not in [0, K).
    """
    jobs = [plan.jobs[number] for number in numbers]
    for job in {(job.model, id(job.source) if isinstance(job.source, nn.Module) else str(job.source)): job for job in jobs}.values():
        classes = _classes(job)
        if plan.quantity is not None and (plan.quantity.against or 0) >= classes:
            raise ValueError(f"quantity: {plan.quantity}, but {job.model!r} has {classes} classes, 0 to {classes - 1}")
        if plan.target == "prediction":
            continue  # no label is used
        for index, target in zip(job.indices, job.targets(job.indices), strict=True):
            unread = not 0 <= target < classes and job.own_images is not None and not job.own_images.key(index)  # has no label
            if not 0 <= target < classes and not unread:
                raise ValueError(f"the target of image {job.ids([index])[0]!r} is {target}, but {job.model!r} has {classes} classes")


def _classes(job: Job) -> int:
    if isinstance(job.source, Stage):
        return job.source.num_classes
    if isinstance(job.source, Path):
        job.load()  # raises if the checkpoint does not fit
        return getattr(job.dataset, "num_classes", None) or MODELS[job.model].num_classes
    assert job.facts is not None  # known for each of the user's nets
    return job.facts.classes
