"""One model of an evaluation with the methods that apply to it, its images, and the addresses of all three."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from idsds.common.hashing import OwnImages, code_digest, digest, file_digest, own_digest
from idsds.common.normalisation import Normalisation
from idsds.datasets import DATASETS, create_dataset, fingerprint
from idsds.datasets.base import ImageDataset
from idsds.datasets.images import viewed
from idsds.methods import METHODS, Method, Passes, as_method, split_name
from idsds.models import MODELS, create_model
from idsds.models.inspection import Facts
from idsds.models.weights import CheckpointError
from idsds.training.checkpoints import Stage, obtain

Methods = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """One model with one training seed, and the methods that apply to it.

    Args:
        model: its name in the records.
        seed: seed of training, noise and masks.
        source: a training stage, a checkpoint file, or the user's net.
        wanted: the requested methods by name: None for a registered method, (name, options) for one with other options, otherwise the
            user's own.
        methods: the requested methods that apply to the model.
        excluded: methods that do not apply, with the reason.
        data: the images, preprocessed for the model: the user's data set, or (name, split, normalisation, view) of a registered one.
        indices: indices of the images used, in the fixed order.
        groups: methods that share a computation.
        passes: passes per image of each group.
        families: the methods' families.
        queried: by method, the deletions that it queries itself, see :func:`idsds.common.interventions.on_grid`.
        own_keys: hashes of the user's own methods.
        own_images: what is known about the user's own images; None for a registered data set.
        facts: what is known about the user's own net; None for a registered one.
        weights: the sha256 of a stage's checkpoint; empty while unknown, see :meth:`idsds.evaluation.plan.Plan.with_weights`.
    """

    model: str
    seed: int
    source: Stage | Path | nn.Module
    wanted: Methods
    methods: Methods
    excluded: Mapping[str, str]
    data: Dataset | tuple[str, str, Normalisation | None, tuple[Any, ...] | None]
    indices: tuple[int, ...]
    groups: tuple[tuple[str, ...], ...]
    passes: tuple[Passes | None, ...]
    families: Mapping[str, str] = field(default_factory=dict)
    queried: Mapping[str, Mapping[str, Any] | None] = field(default_factory=dict)
    own_keys: Mapping[str, str] = field(default_factory=dict)
    own_images: OwnImages | None = None
    facts: Facts | None = None
    weights: str = ""

    @property
    def dataset(self) -> Dataset:
        """Return the images. Registered data sets are loaded where needed rather than sent between processes."""
        return named_dataset(*self.data) if isinstance(self.data, tuple) else self.data

    @cached_property
    def model_key(self) -> str:
        """The net's address, from its weights and the code that builds it."""
        if isinstance(self.source, nn.Module):
            return own_digest(self.source, judged=True)
        weights = [self.source.key, self.weights] if isinstance(self.source, Stage) else file_digest(self.source)
        return digest([weights, code_digest(MODELS[self.built].build), own_digest(MODELS[self.built])])

    @property
    def distilled(self) -> bool:
        """Whether the net is known to be fine-tuned in-domain without labels; its score is then IDSDS (distilled)."""
        recipe = self.source.recipe if isinstance(self.source, Stage) and self.source.deletion is not None else None
        return getattr(self.source, "distilled", False) is True or (recipe is not None and recipe.loss == "distill")

    @property
    def built(self) -> str:
        """The net's name in the registry; a stage may have another name in the records."""
        return self.source.model if isinstance(self.source, Stage) else self.model

    def ids(self, indices: Sequence[int]) -> list[str]:
        """The ids of images."""
        if isinstance(self.dataset, ImageDataset):
            return [self.dataset.image_ids[index] for index in indices]
        return [self.own_images.label(index)[0] for index in indices]  # type: ignore[union-attr]

    def targets(self, indices: Sequence[int]) -> list[int]:
        """The labels of images."""
        if isinstance(self.dataset, ImageDataset):
            return [self.dataset.targets[index] for index in indices]
        return [self.own_images.label(index)[1] for index in indices]  # type: ignore[union-attr]

    def images(self, indices: Sequence[int]) -> dict[str, str]:
        """Return each image's address by id: for a registered data set its id and file version, for a user's a hash of pixels and target.

        It is empty for a user's image that cannot be read.
        """
        if self.own_images is None:
            stamps = (self.dataset.stamp(index) for index in indices)  # type: ignore[attr-defined]
            return {image_id: f"{image_id} {stamp}".strip() for image_id, stamp in zip(self.ids(indices), stamps, strict=True)}
        return {image_id: key for image_id, _, key in (self.own_images[index] for index in indices)}

    @cached_property
    def data_key(self) -> str:
        """Return a registered data set's address; for a user's, that of its normalisation, since its images have their own addresses."""
        if self.own_images is not None:
            return own_digest(getattr(self.dataset, "normalisation", None))
        return digest([fingerprint_of(*self.data), code_digest(DATASETS[self.data[0]].load)])  # type: ignore[misc, index]

    def method_key(self, name: str) -> str:
        """Return the address of a method's computation: its code, options and noise."""
        found = registered(name, self.wanted.get(name))
        if found is None:
            return self.own_keys[name]
        base, options = found
        entry = METHODS[split_name(base)[0]]
        return digest([code_digest(entry.function), own_digest(entry.settings(**options)), entry.noise])

    def unsure(self, group: Sequence[str]) -> Iterator[str]:
        """Return why a group's records cannot be reused; empty if they can."""
        for what, key in ((f"model {self.model!r}", self.model_key), *((f"method {name!r}", self.own_keys.get(name)) for name in group)):
            if reason := getattr(key, "reason", ""):
                yield f"{what} is computed anew in every call: it cannot be established that it is the same as before ({reason})"

    @property
    def is_ready(self) -> bool:
        """Return whether there is nothing to train: a stage's checkpoint exists and is intact."""
        return not isinstance(self.source, Stage) or self.source.intact

    def load(self, progress: bool = False) -> nn.Module:
        """Return the model in eval mode on the CPU; a stage that is not cached, or is damaged, is trained first.

        Raises CheckpointError if the checkpoint has changed since the plan was made.
        """
        if isinstance(self.source, Stage):
            model = obtain(self.source, progress=progress)
            if self.weights and self.source.content != self.weights:
                raise CheckpointError(f"the checkpoint {str(self.source.path)!r} was replaced while it was in use; start the run again")
            return model
        if isinstance(self.source, Path):
            num_classes = getattr(self.dataset, "num_classes", None)
            return create_model(self.model, num_classes=num_classes, checkpoint=self.source)
        return self.source

    def create_methods(self, model: nn.Module, names: Sequence[str]) -> list[Method]:
        """Return the named methods on the loaded model."""
        methods = [make_method(name, self.methods.get(name), model, self.seed) for name in names]
        for method in methods:
            method.model_name = self.model
        return methods


@lru_cache(maxsize=8)
def named_dataset(name: str, split: str, normalisation: Normalisation | None, view: tuple[Any, ...] | None = None) -> ImageDataset:
    """Return a registered data set, read from disk once, with the size and crop of ``view``."""
    return viewed(create_dataset(name, split, normalisation), view)


@lru_cache(maxsize=8)
def fingerprint_of(name: str, split: str, normalisation: Normalisation | None, view: tuple[Any, ...] | None = None) -> str:
    """Return a registered data set's address, from name, split, ids, targets, normalisation and crop, without reading images."""
    return fingerprint(named_dataset(name, split, normalisation, view))


def registered(name: str, given: Any) -> tuple[str, dict[str, Any]] | None:
    """Return a ``methods`` value of ``evaluate`` as a registered method and its options; None for the user's own.

    Raises:
        TypeError: for a tuple that is not a pair of a method and its options.
    """
    if given is None:
        return name, {}
    if not isinstance(given, tuple):
        return None
    if len(given) != 2 or not isinstance(given[1], Mapping):
        raise TypeError(f"method {name!r}: a method with options is a pair such as ('IG', {{'steps': 5}}), not {given!r}")
    return (given[0], dict(given[1])) if isinstance(given[0], str) else None


def make_method(name: str, given: Any, model: nn.Module, seed: int) -> Method:
    """Return a registered method, with or without options, or the user's own."""
    found = registered(name, given)
    if found is None:
        return as_method(name, given, model, seed)
    base, options = found
    method = Method(base, model, seed=seed, **options)
    method.name = name
    return method
