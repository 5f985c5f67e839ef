"""Models ready to be judged: trained from scratch where they are small, fine-tuned in-domain, cached by what determines them.

A checkpoint's name is a hash of the model, its options, the data (ids, targets, normalisation), the recipe, the deletion, the seed, the
precision, the kind of device, the version of torch and the checkpoint that it started from. Whatever changes one of these makes a new file.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from idsds import paths
from idsds.datasets import DATASETS, ImageDataset, create_dataset, fingerprint
from idsds.models import MODELS, create_model
from idsds.randomness import generator
from idsds.settings import Deletion, Recipe, chosen_device
from idsds.store import atomic, digest, versions, write_json
from idsds.training import fit

STAGES = ("trained", "in_domain")
# Raise it when the training loop changes what it computes, so that old checkpoints are not taken for new ones.
LOOP = 1


@dataclass(frozen=True)
class Stage:
    """One step on the way to a checkpoint, and the step before it."""

    model: str
    dataset: str
    num_classes: int
    recipe: Recipe
    deletion: Deletion | None
    seed: int
    device: str
    precision: str
    data: str
    train_images: int
    start: Stage | None = None

    @property
    def key(self) -> str:
        """The address of the checkpoint: a hash of everything that determines it."""
        content = {field: getattr(self, field) for field in self.__dataclass_fields__ if field != "start"}
        return digest({**content, "start": self.start.key if self.start else None, "loop": LOOP, "torch": versions()["torch"]})

    @property
    def path(self) -> Path:
        """Where the checkpoint is, or will be."""
        return paths.cache() / "checkpoints" / f"{self.model}-{'trained' if self.deletion is None else 'in_domain'}-{self.key}.safetensors"

    @property
    def missing(self) -> list[Stage]:
        """The stages that have to be run, first to last; empty where the checkpoint is cached."""
        if self.path.is_file():
            return []
        return [*(self.start.missing if self.start else []), self]


def plan_training(
    model: str,
    dataset: str,
    *,
    in_domain: bool = True,
    grid: int = 4,
    baseline: str = "zeros",
    seed: int = 0,
    device: str = "auto",
    precision: str = "32-true",
) -> Stage:
    """The stage whose checkpoint is the model trained for a data set, and after that fine-tuned in-domain if ``in_domain``."""
    entry = MODELS[model]
    train = create_dataset(dataset, "train", entry.normalisation)
    shared = {
        "model": model,
        "dataset": dataset,
        "num_classes": train.num_classes,
        "train_images": len(train),
        "seed": seed,
        "device": chosen_device(device).type,
        "precision": precision,
        "data": fingerprint(train) + fingerprint(create_dataset(dataset, "val", entry.normalisation)),
    }
    recipe = Recipe(**entry.training)
    trained = Stage(recipe=recipe, deletion=None, **shared)
    if not in_domain:
        return trained
    # Less of everything: the weights are to adapt to holes, not to be found again.
    tuning = recipe.model_copy(update={"lr": recipe.lr / 3, "epochs": -(-2 * recipe.epochs // 3)})
    return Stage(recipe=tuning, deletion=Deletion(grid=grid, baseline=baseline), start=trained, **shared)


def obtain(stage: Stage, *, progress: bool = True) -> nn.Module:
    """The model of a stage, in eval mode on the CPU: from the cache, or trained now and cached."""
    for missing in stage.missing:
        _run(missing, progress)
    return create_model(stage.model, num_classes=stage.num_classes, checkpoint=stage.path)


def _run(stage: Stage, progress: bool) -> None:
    normalisation = MODELS[stage.model].normalisation
    train, val = (create_dataset(stage.dataset, split, normalisation) for split in ("train", "val"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator(stage.seed, "weights", stage.model).initial_seed())
        model = create_model(stage.model, stage.num_classes, checkpoint=stage.start.path if stage.start else None)
    what = "training" if stage.deletion is None else "in-domain fine-tuning"
    started = time.monotonic()
    results = fit(
        model,
        train,
        val,
        stage.recipe,
        deletion=stage.deletion,
        seed=stage.seed,
        device=stage.device,
        precision=stage.precision,
        label=f"{what}: {stage.model}",
        progress=progress,
    )
    facts = {
        "stage": {**asdict(stage), "recipe": stage.recipe, "deletion": stage.deletion, "start": stage.start.key if stage.start else None},
        "epochs": [asdict(result) for result in results],
        "seconds": round(time.monotonic() - started, 1),
        "versions": versions(),
    }
    with atomic(stage.path) as partial:
        safetensors.torch.save_file({key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}, partial)
    write_json(stage.path.with_suffix(".json"), facts)


def trains_from_scratch(model: str, dataset: str) -> bool:
    """Whether the package trains this pair itself: a small net on an embedded data set."""
    return DATASETS[dataset].embedded and MODELS[model].input_size == DATASETS[dataset].image_size


def normalised_dataset(model: str, dataset: str, split: str) -> ImageDataset:
    """A split in the space that a model wants."""
    return create_dataset(dataset, split, MODELS[model].normalisation)
