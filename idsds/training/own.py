"""In-domain fine-tuning of a user's net on the user's images, from one call or one params file, cached like the package's own.

The checkpoint's name is a hash of everything that determines it: the net (its weights and the code that it runs), the images and their
labels, the recipe, the deletion, the seed, the precision, the kind of device and the version of torch. A net that cannot be hashed
reliably, for example because its code is not available, is trained again in every call.

From a params file, ``python -m idsds finetune mine.yaml``::

    net: my_code:net          # a function without arguments, or the net itself
    train: my_code:images     # likewise: items (image, target) or (image, target, image_id)
    epochs: 20                # and any other setting of FineTuning
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import nn
from torch.utils.data import Dataset, Subset

from idsds.common import paths
from idsds.common.devices import chosen_device
from idsds.common.files import write_json
from idsds.common.hashing import OwnImages, digest, own_digest, versions
from idsds.common.settings import Settings, SettingsError
from idsds.datasets.own import as_image_dataset
from idsds.datasets.splits import stratified_split
from idsds.models.base import own_inputs
from idsds.models.inspection import as_net, examined, two_images
from idsds.models.isolation import widen
from idsds.models.weights import CheckpointError, read_state_dict, save_checkpoint
from idsds.training.checkpoints import LOOP
from idsds.training.launch import Machine
from idsds.training.loop import Plan, fit
from idsds.training.recipes import PAPER, BaselineName, Deletion, Recipe

#: The paper's recipe with smaller batches and fewer epochs, since most users' data sets are smaller than ImageNet.
OWN = PAPER.model_copy(update={"epochs": 10, "batch_size": 64})
#: Fraction of the training images held out to choose the epoch, if there are no validation images.
HELD_OUT = 0.1


def finetune(
    net: nn.Module,
    train: Dataset,
    val: Dataset | None = None,
    *,
    grid: int = 4,
    baseline: str = "zeros",
    share: float | None = None,
    seed: int = 0,
    device: str = "auto",
    precision: str = "32-true",
    progress: bool = True,
    **recipe: Any,
) -> nn.Module:
    """Return a copy of a net that is fine-tuned in-domain, for ``idsds.evaluate({"mine": copy}, ..., protocol="idsds")``.

    In each epoch, one random patch of the grid is deleted from half of the images (Hesse, Schaub-Meyer, Roth, NeurIPS 2024), so that
    deleted patches are in-distribution for the net. The net itself is unchanged; methods bound to it must be created again for the copy.

    Args:
        net: returns logits (B, K).
        train: training images, items (image (C, H, W), target) or (image, target, image_id), preprocessed for the net. Not the test images.
        val: images on which the epoch is chosen; None holds out a tenth of ``train``, stratified by class and keyed by the image ids.
        grid: patches per side, the same as in ``evaluate``.
        baseline: what replaces a patch, the same as in ``evaluate``.
        share: delete a random number of patches, up to this fraction, instead of one: the protocol's ``masked_share``.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        recipe: changes to :data:`OWN`, such as ``epochs=20`` or ``lr=1e-4``; the names are those of
            :class:`~idsds.training.recipes.Recipe`. ``loss="distill"`` needs no labels.

    Returns:
        The copy, in eval mode on the CPU. Its attribute ``in_domain`` holds the deletion that it was fine-tuned with, and ``distilled``
        whether it was fine-tuned without labels, which the records then say, too.

    Raises:
        SettingsError: for an invalid recipe, grid or baseline.
        ValueError: if the net does not fit the images, or if a label is not one of its classes.
    """
    settings = Recipe(**{**OWN.model_dump(), **recipe})
    deletion = Deletion(grid=grid, baseline=baseline, share=share)
    kind = chosen_device(device).type
    images, chosen = _images(train, val)
    channels_last = _check(net, images, chosen, settings, kind)
    content = {
        "net": own_digest(net),
        "images": digest([[data[index] for index in range(len(data.dataset))] for data in (images, chosen)]),  # type: ignore[arg-type]
        "recipe": settings.address,
        "deletion": deletion.model_dump(),
        "run": [seed, kind, precision, channels_last, LOOP, versions()["torch"]],
    }
    path = paths.cache() / "checkpoints" / f"{type(net).__name__}-in_domain-{digest(content)}.safetensors"
    widen(tuned := copy.deepcopy(net))
    if not _load(tuned, path):
        machine = Machine(device=device, precision=precision, channels_last=channels_last)
        resume, label = path.with_suffix(".resume.pt"), f"in-domain fine-tuning: {type(net).__name__}"
        _train(tuned, path, content, Plan(images.dataset, chosen.dataset, settings, deletion, seed, machine, resume, label, progress))
    tuned.in_domain, tuned.distilled = deletion, settings.loss == "distill"  # type: ignore[assignment]
    return tuned.eval()


def _train(net: nn.Module, path: Path, content: dict[str, Any], plan: Plan) -> None:
    """Fine-tune a net in place and write its checkpoint; the net ends on the CPU with the weights of the checkpoint."""
    with own_inputs(net):
        results = fit(net, plan)
    net.to("cpu")
    save_checkpoint(net, path)
    write_json(path.with_suffix(".json"), {**content, "epochs": [vars(result) for result in results], "versions": versions()})
    plan.resume.unlink(missing_ok=True)  # type: ignore[union-attr]
    _load(net, path)


def _load(net: nn.Module, path: Path) -> bool:
    """Load a checkpoint into a net; return whether a readable one exists."""
    if not path.is_file():
        return False
    try:
        net.load_state_dict(read_state_dict(path))
    except (CheckpointError, RuntimeError):  # damaged: the net is trained again
        return False
    return True


def _images(train: Dataset, val: Dataset | None) -> tuple[OwnImages, OwnImages]:
    """Return the training images, and the images that the epoch is chosen on."""
    items = OwnImages(as_image_dataset(train, "train"))
    if val is not None:
        return items, OwnImages(as_image_dataset(val, "val"))
    known = [items[index] for index in range(len(items.dataset))]  # type: ignore[arg-type]
    ids, targets = [image_id for image_id, _, _ in known], [target for _, target, _ in known]
    held_out = stratified_split(ids, targets, "val", validation=HELD_OUT, test=0)
    if not held_out:  # fewer than five images of every class
        held_out = list(range(0, len(ids), 10))
    rest = sorted(set(range(len(ids))) - set(held_out))
    if not rest:
        raise ValueError(f"{len(ids)} training images are too few to hold some out: use more, or pass validation images as val=")
    return OwnImages(Subset(items.dataset, rest)), OwnImages(Subset(items.dataset, held_out))


def _check(net: nn.Module, images: OwnImages, chosen: OwnImages, recipe: Recipe, device: str) -> bool:
    """Check net and labels before any work, and return whether the net runs with the channels-last memory format."""
    if as_net("net", net) is not net:
        raise ValueError(f"finetune needs the net itself, not a {type(net).__name__}")
    facts = examined("net", net, two_images(images.dataset, range(len(images.dataset))), device, True)  # type: ignore[arg-type]
    for data in (images, chosen) if recipe.loss == "labels" else ():
        for index in range(len(data.dataset)):  # type: ignore[arg-type]
            image_id, target, _ = data[index]
            if not 0 <= target < facts.classes:
                raise ValueError(f"the target of image {image_id!r} is {target}, but the net has {facts.classes} classes")
    return facts.layout == torch.channels_last


class FineTuning(Settings):
    """Settings of a params file for fine-tuning a user's own net: see this module's docstring and :func:`finetune`.

    ``net``, ``train`` and ``val`` have the form ``module:name``; if the name is a function, its return value is used.
    """

    net: str
    train: str
    val: str | None = None
    grid: PositiveInt = 4
    baseline: BaselineName = "zeros"
    seeds: Annotated[Sequence[int], Field(min_length=1)] = (0,)
    device: str = "auto"
    precision: str = "32-true"
    recipe: dict[str, Any] = Field(default_factory=dict)

    def __init__(self, **values: Any) -> None:
        """Accept the recipe's settings beside the others."""
        of_recipe = {name: values.pop(name) for name in list(values) if name in Recipe.model_fields}
        super().__init__(**values, **({"recipe": {**values.pop("recipe", {}), **of_recipe}} if of_recipe else {}))

    def run(self, progress: bool = True) -> list[nn.Module]:
        """Return the fine-tuned nets, one for each seed."""
        val = None if self.val is None else _named("val", self.val)
        train, same = _named("train", self.train), {"grid": self.grid, "baseline": self.baseline, **self.recipe}
        setup = {"device": self.device, "precision": self.precision, "progress": progress}
        return [finetune(_named("net", self.net), train, val, seed=seed, **same, **setup) for seed in self.seeds]


def _named(key: str, where: str) -> Any:
    """Return the object at ``module:name``, or the return value if it is a function. Raises SettingsError."""
    module, colon, name = where.partition(":")
    try:
        value = getattr(importlib.import_module(module), name) if colon and name else None
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"{key}: cannot import {where!r}: {error}") from error
    if value is None:
        raise SettingsError(f"{key}: must be written module:name, not {where!r}")
    return value() if callable(value) and not isinstance(value, nn.Module) else value
