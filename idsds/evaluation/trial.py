"""Trial of a user's methods on two images of a run: does each explain an image alone, and leave the net's computation as it was?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from idsds.common.interventions import all_deletions, baseline_images
from idsds.common.randomness import Draws, content_ids, restored
from idsds.methods import Method
from idsds.methods.base import MethodError, shared_maps
from idsds.methods.maps import as_map
from idsds.models.base import frozen
from idsds.protocols import Batch, ProtocolEntry
from idsds.protocols.single_deletion import deletion_table

#: Fraction of its largest value by which a map (or gradient) may change through rounding.
ROUNDING = 1e-2


def one_by_one(method: Method) -> Method:
    """Return a method that depends on its batch as one whose function gets one image at a time."""
    function = method.entry.function

    @wraps(function, updated=())
    def explain(model: nn.Module, images: Tensor, targets: Tensor, **options: Any) -> Tensor | dict[str, Tensor]:
        given = {name: options.pop(name) for name in ("draws", "image_ids", "batch") if name in options}
        bound = function(model, **options) if isinstance(function, type) else partial(function, model, **options)
        found = []
        for i in range(len(images)):
            own, one = dict(given), slice(i, i + 1)
            if (draws := given.get("draws")) is not None:
                noise = None if draws.given is None else draws.given[one]
                own["draws"] = Draws(draws.seed, draws.key, images[one], draws.image_ids[one], given=noise)
            if "image_ids" in own:
                own["image_ids"] = own["image_ids"][one]
            result = bound(images[one], targets[one], **own)
            keyed = result if isinstance(result, dict) else {"": result}
            found.append({key: as_map(method.name, value, images[one], channels="each") for key, value in keyed.items()})
        maps = {key: torch.cat([each[key] for each in found]) for key in found[0]}
        return maps.get("", maps)

    return method.changed(entry=replace(method.entry, function=explain))


def tried(methods: Sequence[Method], batch: Batch, deletions: Callable[[Batch], Sequence[Tensor]] = lambda _: ()) -> list[Method]:
    """Return the methods, those of the user that depend on the batch as ones that get one image at a time.

    Args:
        deletions: the deletions by which an image is judged, (n, C, H, W) for each grid.

    Raises:
        MethodError: if the net computes something else after a user's method than before.

    Warns:
        UserWarning: for each method that depends on the batch, draws random numbers which the seed does not determine, or queries the
            deletions without saying so.
    """
    return [method if method.is_the_packages else _tried(method, batch, deletions) for method in methods]


def _tried(method: Method, batch: Batch, deletions: Callable[[Batch], Sequence[Tensor]]) -> Method:
    other = next((i for i, target in enumerate(batch.targets.tolist()) if target != int(batch.targets[0])), 1)
    places = [0] if len(batch.images) < 2 else [0, other]
    part = replace(batch, images=batch.images[places], targets=batch.targets[places], image_ids=[batch.image_ids[i] for i in places])

    def maps(some: slice) -> Tensor:
        return shared_maps([method], part.images[some], part.targets[some], part.image_ids[some])[method.name]

    each = [slice(i, i + 1) for i in range(len(part.images))]
    last = replace(part, images=part.images[each[-1]], targets=part.targets[each[-1]], image_ids=part.image_ids[each[-1]])
    judged = [] if method.entry.queries(**method.options) else [set(map(_mark, deleted)) for deleted in deletions(last)]
    with restored(batch.images.device), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the run itself repeats them
        before = [_computed(method.model, part) for _ in range(2)]
        try:
            with _queries(method.model) if judged else nullcontext(set[str]()) as queried:
                alone = [maps(one) for one in each[::-1]][::-1]
            together = maps(slice(None)) if len(each) > 1 else maps(each[0])
            differing = [i for i, one in enumerate(each) if not _same(together[one], alone[i])]
            drawn = bool(differing) and (len(each) == 1 or not _same(alone[differing[0]], maps(each[differing[0]])))
        except Exception:  # it may run on the whole batch; if not, that is reported with the images
            return method
        after = _computed(method.model, part)
    if _all_same(*before) and not _all_same(before[1], after):
        raise MethodError(
            f"method {method.name!r} changes what {method.model_name!r} computes, also for others: after it the logits or gradients of an "
            "image differ. Does it replace a function or a class's method, such as torch.nn.functional.relu? It must undo that"
        )
    intact = {_mark(last.images[0])}  # a deletion that changes nothing tells nothing
    if any(marks - intact and marks - intact <= queried for marks in judged):
        warnings.warn(
            f"method {method.name!r} queries the very deletions that it is judged by: its score may be an upper bound. Say so on the "
            "function, mine.queries = {'grid': ..., 'baseline': ...}, and rankings mark it as a ceiling",
            stacklevel=2,
        )
    if drawn:
        warnings.warn(
            f"method {method.name!r} gives another map of the same image in every call: the seed does not determine its random numbers, "
            "and its scores differ between runs",
            stacklevel=2,
        )
    elif differing:
        warnings.warn(
            f"method {method.name!r} is batch-dependent: its map of an image depends on the other images of the batch (does it use "
            "logits[:, targets], means over the batch, random numbers of a fixed seed, which an argument `image_ids` can key?). "
            "It gets one image at a time",
            stacklevel=2,
        )
        return one_by_one(method)
    return method


def judging(protocol: ProtocolEntry, grids: Sequence[Mapping[str, Any]], seed: int, batch: Batch) -> list[Tensor]:
    """Return the single deletions by which a batch's first image is judged, (n, C, H, W) for each grid; none for other protocols."""
    found, image, ids = [], batch.images[:1], batch.image_ids[:1]
    for settings in grids if protocol.prepare is deletion_table else ():
        replacement = baseline_images(image, settings["baseline"], seed=seed, image_ids=ids)
        found.append(all_deletions(image, replacement, settings["grid"], settings["offset"])[0])
    return found


@contextmanager
def _queries(model: nn.Module) -> Iterator[set[str]]:
    """Collect marks of the images that a net gets inside the block."""
    marks: set[str] = set()

    def note(_module: nn.Module, inputs: tuple[object, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor):
            marks.update(map(_mark, inputs[0].detach()))

    with model.register_forward_pre_hook(note):
        yield marks


def _mark(image: Tensor) -> str:
    return content_ids(image[None] + 0)[0]  # the sum turns -0 into 0


def _computed(model: nn.Module, part: Batch) -> Mapping[str, Tensor]:
    """Return the logits of the first image and, if it has one, the gradient of the target's."""
    torch.manual_seed(0)
    image = part.images[:1].detach().clone().requires_grad_()
    with torch.inference_mode(False), torch.enable_grad(), frozen(model):
        logits = model(image)
        target = logits.gather(1, part.targets[:1, None]).sum()
        gradient = torch.autograd.grad(target, image, allow_unused=True)[0] if target.requires_grad else None
    return {"logits": logits.detach()} | ({} if gradient is None else {"gradient": gradient})


def _all_same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(_same(value, second[name]) for name, value in first.items())


def _same(first: Tensor, second: Tensor) -> bool:
    """Return whether two maps are equal but for rounding."""
    if not torch.equal(first.isnan(), second.isnan()):
        return False
    first, second = first.nan_to_num(), second.nan_to_num()
    return bool((first - second).abs().max() <= ROUNDING * torch.maximum(first.abs().max(), second.abs().max()))
