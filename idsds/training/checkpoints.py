"""Models ready for evaluation: trained from scratch if small, fine-tuned in-domain, and cached by everything that determines them.

A checkpoint's name is a hash of the model, the data (ids, targets, normalisation), the recipe, the deletion, the seed, the precision, the
kind of device, the version of torch and the initial weights. Changing any of these creates a new file. While a stage runs, its state is
saved beside the checkpoint in ``*.resume.pt``; if the process is killed, the same call resumes from there.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from idsds.common import paths
from idsds.common.devices import chosen_device
from idsds.common.files import ABANDONED, sha256_of, sweep, write_json
from idsds.common.hashing import digest, file_digest, versions
from idsds.common.normalisation import Normalisation
from idsds.common.randomness import generator
from idsds.common.registry import check_name
from idsds.datasets import DATASETS, ImageDataset, create_dataset, fingerprint
from idsds.datasets.images import viewed
from idsds.datasets.splits import nested_share, permuted
from idsds.models import MODELS, create_model
from idsds.models.weights import CheckpointError, check_checkpoint, check_content, hash_file, save_checkpoint, written_hash
from idsds.training.launch import Machine, is_main, of_all
from idsds.training.loop import Plan, Rehearsal, fit, rehearse
from idsds.training.recipes import DISTILL, PAPER, Deletion, Recipe

# Increase when the training loop's results change, so that old checkpoints are not mistaken for new ones.
LOOP = 3
# Stands for initial weights published by a model's own package.
PRETRAINED = "pretrained"
# Up to this many pixels per side, training from scratch takes minutes on a CPU.
FROM_SCRATCH = 32


@dataclass(frozen=True)
class Stage:
    """One training stage, and the stage or weights that it starts from.

    Args:
        model, dataset, num_classes, recipe, deletion, seed, device, precision, train_images: what is trained, on what and how; without a
            recipe the published weights are used unchanged.
        data: fingerprints of the training and the validation images.
        start: the previous stage; None for random weights or ``weights``.
        weights: a checkpoint file to start from, or ``pretrained``.
        fraction: fraction of the training images to use, see :func:`idsds.datasets.splits.nested_share`.
        permuted_labels: whether to permute the labels of the training images. The epoch is then chosen on these images themselves, since
            the net is to memorise them and cannot generalise.
    """

    model: str
    dataset: str
    num_classes: int = 0
    recipe: Recipe | None = None
    deletion: Deletion | None = None
    seed: int = 0
    device: str = "cpu"
    precision: str = "32-true"
    data: str = ""
    train_images: int = 0
    start: Stage | None = None
    weights: str | None = None
    weights_key: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    fraction: float = 1.0
    permuted_labels: bool = False

    @property
    def key(self) -> str:
        """The checkpoint's address: a hash of everything that determines it, independent of where files are stored."""
        left_out = ("start", "weights", "options")
        content = {name: getattr(self, name) for name in self.__dataclass_fields__ if name not in left_out}
        content["recipe"] = self.recipe and self.recipe.address
        if self.fraction == 1.0:  # keeps addresses from before ``fraction`` existed
            del content["fraction"]
        if not self.permuted_labels:
            del content["permuted_labels"]
        return digest({**content, "start": self.start.key if self.start else None, "loop": LOOP, "torch": versions()["torch"]})

    @property
    def path(self) -> Path:
        """The checkpoint's path, whether or not it exists yet."""
        kind = "trained" if self.deletion is None else "in_domain"
        return paths.cache() / "checkpoints" / f"{paths.portable(self.model)}-{kind}-{self.key}.safetensors"

    @property
    def resume(self) -> Path:
        """The path of the run's state until the checkpoint is complete."""
        return self.path.with_suffix(".resume.pt")

    @property
    def missing(self) -> list[Stage]:
        """The stages still to run, first to last; empty if the checkpoint is cached."""
        if self.recipe is None or self.path.is_file():
            return []
        return [*(self.start.missing if self.start else []), self]

    @property
    def content(self) -> str:
        """The sha256 recorded beside the checkpoint; empty if it does not exist yet, and for published weights."""
        if self.recipe is None:
            return ""
        return written_hash(self.path) or (sha256_of(self.path) if self.path.is_file() else "")

    @property
    def intact(self) -> bool:
        """Whether the checkpoint exists and matches its hash; this reads the whole file."""
        if self.recipe is None:
            return True
        try:
            check_content(self.path)
        except (CheckpointError, OSError):
            return False
        return self.path.is_file()

    def split(self, split: str) -> ImageDataset:
        """Return one split of the data, normalised for the model; for ``train`` only the stage's fraction."""
        if self.permuted_labels and split == "val":
            return self.split("train")
        entry = MODELS[self.model]
        found = _split(self.dataset, split, entry.normalisation, entry.view, tuple(sorted(self.options.items())))
        if split == "train" and self.fraction != 1.0:
            found = found.subset(nested_share(found.image_ids, found.targets, self.fraction, self.seed))
        return permuted(found, self.seed) if split == "train" and self.permuted_labels else found

    def training(self, machine: Machine | None = None, progress: bool = True) -> Plan:
        """Return what :func:`fit` and :func:`rehearse` need apart from the model."""
        machine = replace(machine or Machine(), device=self.device, precision=self.precision)
        label = f"{'training' if self.deletion is None else 'in-domain fine-tuning'}: {self.model}"
        data = self.split("train"), self.split("val")
        return Plan(*data, self.recipe, self.deletion, self.seed, machine, self.resume, label, progress)  # type: ignore[arg-type]

    def check_weights(self) -> None:
        """Raise CheckpointError if the file of initial weights cannot be read or does not fit the model."""
        if self.weights not in (None, PRETRAINED):
            with torch.device("meta"):  # shapes only
                model = create_model(self.model, self.num_classes)
            check_checkpoint(model, self.weights)

    def begin(self) -> nn.Module:
        """Return the model before the stage, with new classifiers and random weights drawn from the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator(self.seed, "weights", self.model).initial_seed())
            if self.weights == PRETRAINED:
                return create_model(self.model, self.num_classes, pretrained=True)
            checkpoint = self.start.path if self.start else self.weights
            return create_model(self.model, self.num_classes, checkpoint=checkpoint)


@lru_cache(maxsize=8)
def _split(dataset: str, split: str, normalisation: Normalisation | None, view: Any, options: tuple[tuple[str, Any], ...]) -> ImageDataset:
    # Listing 1.3 million files takes minutes on a network drive: do it once per model.
    return viewed(create_dataset(dataset, split, normalisation, **dict(options)), view)


def plan_training(
    model: str,
    dataset: str,
    deletion: Deletion | None = Deletion(),  # noqa: B008 (it is frozen)
    *,
    seed: int = 0,
    device: str = "auto",
    precision: str = "32-true",
    weights: str | None = None,
    changes: Mapping[str, Any] | None = None,
    fraction: float = 1.0,
    permuted_labels: bool = False,
    **options: Any,
) -> Stage:
    """Return the stage that produces the model for a data set: trained and, with ``deletion``, then fine-tuned in-domain.

    Args:
        deletion: grid and baseline of the patches deleted in fine-tuning; None for no fine-tuning.
        weights: a checkpoint file to start from, or ``pretrained``; None to train a small net from scratch first.
        changes: changes to the last stage's recipe (the model's own, or the paper's with ``weights``).
        fraction: fraction of the training images, in (0, 1], stratified by class and drawn with ``seed``.
        permuted_labels: whether to permute the labels among the training images, keyed by ``seed``.

    Raises:
        FileNotFoundError: if the file of weights does not exist.
        ValueError: if ``fraction`` is not in (0, 1].
    """
    entry = MODELS[model]
    run: dict[str, Any] = {"seed": seed, "device": chosen_device(device).type, "precision": precision}
    stage = Stage(model, dataset, **run, options=options, fraction=fraction, permuted_labels=permuted_labels)
    train, val = stage.split("train"), stage.split("val")
    stage = replace(stage, num_classes=train.num_classes, train_images=len(train), data=fingerprint(train) + fingerprint(val))
    if weights is not None:
        recipe = _changed(DISTILL if deletion and DATASETS[dataset].distill else PAPER, changes)
        return replace(stage, recipe=recipe, deletion=deletion, weights=weights, weights_key=_weights_key(weights))
    recipe = Recipe(**{**entry.training, **DATASETS[dataset].training})
    if deletion is None:
        return replace(stage, recipe=_changed(recipe, changes))
    # Shorter and with a lower learning rate than training: the weights should adapt to deletions, not be relearned.
    tuning = recipe.model_copy(update={"lr": recipe.lr / 3, "epochs": -(-2 * recipe.epochs // 3)})
    return replace(stage, recipe=_changed(tuning, changes), deletion=deletion, start=replace(stage, recipe=recipe))


def published(model: str, dataset: str, *, device: str = "auto", precision: str = "32-true") -> Stage:
    """Return the stage of a model's published weights, used unchanged: from an installed package if its entry says so, else downloaded.

    Raises:
        ValueError: if no weights are published, or not for the data set's classes.
    """
    entry = MODELS[model]
    check_starts({model: PRETRAINED}, [model])
    if (classes := DATASETS[dataset].num_classes) not in (None, entry.num_classes):
        raise ValueError(f"the published weights of {model!r} know {entry.num_classes} classes, but {dataset!r} has {classes}")
    run = {"device": chosen_device(device).type, "precision": precision}
    return Stage(model, dataset, num_classes=entry.num_classes, weights=PRETRAINED, weights_key=PRETRAINED, **run)


def _changed(recipe: Recipe, changes: Mapping[str, Any] | None) -> Recipe:
    return Recipe(**{**recipe.model_dump(), **(changes or {})})


def _weights_key(weights: str) -> str:
    if weights == PRETRAINED:
        return PRETRAINED
    path = paths.resolve(weights)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint to start from at {str(path)!r}")
    return file_digest(path)


def obtain(stage: Stage, *, machine: Machine | None = None, progress: bool = True) -> nn.Module:
    """Return a stage's model, in eval mode on the CPU: from the cache, or trained and cached now. A damaged file is replaced."""
    if stage.recipe is None:
        return stage.begin()
    for missing in stage.missing:
        _run(missing, machine, progress)
    try:
        return create_model(stage.model, num_classes=stage.num_classes, checkpoint=stage.path)
    except CheckpointError as error:
        warnings.warn(f"{error}; it is made again", stacklevel=2)
        for path in (stage.path, hash_file(stage.path), stage.resume):
            path.unlink(missing_ok=True)
        if stage.start is not None:
            obtain(stage.start, machine=machine, progress=progress)  # may be damaged too
        _run(stage, machine, progress)
    return create_model(stage.model, num_classes=stage.num_classes, checkpoint=stage.path)


def _run(stage: Stage, machine: Machine | None, progress: bool) -> None:
    sweep(stage.path.parent, "*.resume.pt", 30 * ABANDONED)
    model, plan = stage.begin(), stage.training(machine, progress)
    started = time.monotonic()
    results = fit(model, plan)
    facts = {
        "stage": {name: getattr(stage, name) for name in stage.__dataclass_fields__ if name not in ("start", "options")},
        "start": stage.start.key if stage.start else None,
        "epochs": [asdict(result) for result in results],
        "skipped": of_all(plan.train.skipped + plan.val.skipped),
        "seconds": round(time.monotonic() - started, 1),
        "machine": asdict(machine or Machine()),
        "versions": versions(),
    }
    if is_main():
        save_checkpoint(model, stage.path)
        write_json(stage.path.with_suffix(".json"), facts)
        stage.resume.unlink(missing_ok=True)
    if torch.distributed.is_initialized():  # under torchrun and Slurm, the other processes wait for the file
        torch.distributed.barrier()


def rehearse_stage(stage: Stage, *, machine: Machine | None = None) -> Rehearsal:
    """Measure three batches of a stage that has not run yet, with arbitrary weights; see :func:`idsds.training.loop.rehearse`."""
    return rehearse(create_model(stage.model, stage.num_classes), stage.training(machine))


def check_starts(checkpoints: Mapping[str, str], models: Sequence[str]) -> None:
    """Check that models' initial weights are an existing file, or ``pretrained`` where weights are published.

    Raises:
        ValueError: if not; the message names the model or the file.
    """
    for name, start in checkpoints.items():
        check_name("model with a checkpoint", name, models)
        if start == PRETRAINED and PRETRAINED not in MODELS[name].options:
            raise ValueError(f"no weights of {name!r} are published where they can be fetched: give a file instead of 'pretrained'")
        if start != PRETRAINED and not paths.resolve(start).is_file():
            raise ValueError(f"checkpoints: no file {str(paths.resolve(start))!r} for {name!r}")


def trains_from_scratch(model: str, dataset: str) -> bool:
    """Return whether the package trains this pair itself: a small net on images of its size or twice that size."""
    net, side = MODELS[model], DATASETS[dataset].image_size
    return net.input_size <= FROM_SCRATCH and side in (net.input_size, 2 * net.input_size)


def starts_from_package(model: str, dataset: str) -> bool:
    """Return whether an installed package contains the model's weights for the data set's classes."""
    return MODELS[model].packaged and DATASETS[dataset].num_classes == MODELS[model].num_classes
