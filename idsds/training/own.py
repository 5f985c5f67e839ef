"""In-domain fine-tuning of a user's own net on the user's own images: one call, or one params file, cached like the package's own.

The checkpoint's name is a hash of all that determines it: the net (its weights and the code that it runs), the images and their labels,
the recipe, the deletion, the seed, the precision, the kind of device and the version of torch. What cannot be addressed for certain, such
as a net whose code is not at hand, is trained again in every call.

From a params file, ``python -m idsds finetune mine.yaml``::

    net: my_code:net          # a function without arguments, or the net itself
    train: my_code:images     # likewise: items (image, target) or (image, target, image_id)
    epochs: 20                # and whatever else FineTuning takes
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
from idsds.datasets.base import as_image_dataset
from idsds.datasets.splits import stratified_split
from idsds.models.base import own_inputs
from idsds.models.inspection import as_net, examined, two_images
from idsds.models.isolation import widen
from idsds.models.weights import CheckpointError, read_state_dict, save_checkpoint
from idsds.training.checkpoints import LOOP
from idsds.training.loop import fit
from idsds.training.recipes import PAPER, BaselineName, Deletion, Recipe

#: The paper's recipe with smaller batches and fewer epochs: data sets of one's own are smaller than ImageNet.
OWN = PAPER.model_copy(update={"epochs": 10, "batch_size": 64})
#: Share of the training images on which the epoch is chosen where no others are given.
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

    Half of the images lose one random patch of the grid in each epoch (Hesse, Schaub-Meyer, Roth, NeurIPS 2024), so that a hole is no
    surprise to the net when it is judged. The net itself stays as it is; methods that are bound to it must be made anew for the copy.

    Args:
        net: returns logits (B, K).
        train: training images, items (image (C, H, W), target) or (image, target, image_id), as the net wants them. Not the test images.
        val: images on which the epoch is chosen; None holds a tenth of ``train`` out, by class and by a hash of the image ids.
        grid: patches per side, the same as in ``evaluate``.
        baseline: what replaces a patch, the same as in ``evaluate``.
        share: delete a random number of patches up to this share of them, in place of one: the protocol's ``masked_share``.
        seed: of all random numbers.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``.
        progress: whether to show a progress bar.
        recipe: changes to :data:`OWN`, such as ``epochs=20`` or ``lr=1e-4``; the names are those of
            :class:`~idsds.training.recipes.Recipe`. ``loss="distill"`` needs no labels.

    Returns:
        The copy, in eval mode on the CPU, whose attribute ``in_domain`` says what it was fine-tuned with, and
        ``distilled`` whether that was without labels; the records then say so too.

    Raises:
        SettingsError: for a recipe, a grid or a baseline that there is not.
        ValueError: for a net that does not fit the images, or labels that are no classes of it.
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
        machine = {"device": device, "precision": precision, "channels_last": channels_last}
        run = {"deletion": deletion, "seed": seed, "progress": progress, **machine}
        _train(tuned, path, content, images.dataset, chosen.dataset, settings, **run)
    tuned.in_domain = deletion  # type: ignore[assignment]
    tuned.distilled = settings.loss == "distill"  # type: ignore[assignment]
    return tuned.eval()


def _train(net: nn.Module, path: Path, content: dict[str, Any], train: Dataset, val: Dataset, recipe: Recipe, **run: Any) -> None:
    """Fine-tune a net in place; leave it, on the CPU, with the weights of the checkpoint that it writes."""
    resume = path.with_suffix(".resume.pt")
    with own_inputs(net):
        results = fit(net, train, val, recipe, resume=resume, label=f"in-domain fine-tuning: {type(net).__name__}", **run)
    net.to("cpu")
    save_checkpoint(net, path)
    write_json(path.with_suffix(".json"), {**content, "epochs": [vars(result) for result in results], "versions": versions()})
    resume.unlink(missing_ok=True)
    _load(net, path)


def _load(net: nn.Module, path: Path) -> bool:
    """Read the weights of a checkpoint into a net; False where there is none that can be read."""
    if not path.is_file():
        return False
    try:
        net.load_state_dict(read_state_dict(path))
    except (CheckpointError, RuntimeError):  # damaged: it is made again
        return False
    return True


def _images(train: Dataset, val: Dataset | None) -> tuple[OwnImages, OwnImages]:
    """The training images, and those that the epoch is chosen on."""
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
        raise ValueError(f"{len(ids)} training images are too few to hold some out: give more, or others as val=")
    return OwnImages(Subset(items.dataset, rest)), OwnImages(Subset(items.dataset, held_out))


def _check(net: nn.Module, images: OwnImages, chosen: OwnImages, recipe: Recipe, device: str) -> bool:
    """Check net and labels before any work; whether the net runs with channels last in memory."""
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
    """What a params file says of the fine-tuning of a user's own net: see this module's docstring and :func:`finetune`.

    ``net``, ``train`` and ``val`` are written ``module:name``; what a function of that name returns is taken.
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
        """Take the settings; those of the recipe may stand beside the others."""
        of_recipe = {name: values.pop(name) for name in list(values) if name in Recipe.model_fields}
        super().__init__(**values, **({"recipe": {**values.pop("recipe", {}), **of_recipe}} if of_recipe else {}))

    def run(self, progress: bool = True) -> list[nn.Module]:
        """Return the fine-tuned nets, one for each seed, and print where each is."""
        val = None if self.val is None else _named("val", self.val)
        train, same = _named("train", self.train), {"grid": self.grid, "baseline": self.baseline, **self.recipe}
        setup = {"device": self.device, "precision": self.precision, "progress": progress}
        return [finetune(_named("net", self.net), train, val, seed=seed, **same, **setup) for seed in self.seeds]


def _named(key: str, where: str) -> Any:
    """What ``module:name`` is, or returns if it is a function. Raises SettingsError."""
    module, colon, name = where.partition(":")
    try:
        found = getattr(importlib.import_module(module), name) if colon and name else None
    except (ImportError, AttributeError) as error:
        raise SettingsError(f"{key}: cannot take {where!r}: {error}") from error
    if found is None:
        raise SettingsError(f"{key}: must be written module:name, not {where!r}")
    return found() if callable(found) and not isinstance(found, nn.Module) else found
