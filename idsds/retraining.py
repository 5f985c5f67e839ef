"""ROAR and KAR over a whole data set: maps once, then a fresh net per method, share and seed (see :mod:`idsds.protocols.roar`).

A method's maps of all training, validation and test images are computed once and kept as ranks (:mod:`idsds.ranks`); each retraining is one
small file, addressed by all that determines it. A run that is killed goes on inside the retraining where it was. Retrainings do not
depend on each other: jobs of a cluster that share the cache may each take some ``seeds`` or ``methods``, and one more call collects them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Self

import pandas as pd
from pydantic import Field, PositiveInt, model_validator
from scipy import stats
from torch import nn
from tqdm import tqdm

from idsds import paths
from idsds.addresses import code_digest, file_digest
from idsds.datasets import DATASETS, ImageDataset, fingerprint, fixed_order
from idsds.datasets.base import collate
from idsds.launch import is_main
from idsds.methods.base import METHODS, Method, shared_passes, split_name
from idsds.models import MODELS, create_model
from idsds.protocols.roar import KINDS, Kind, replace_pixels, replaced_pixels
from idsds.ranks import SHARD, PixelRanks, Target, ranks_of, store_ranks
from idsds.registry import UnknownNameError
from idsds.replacing import Fill, fill_colour, modified
from idsds.resolving import skeleton
from idsds.settings import (
    DatasetName,
    Device,
    MethodName,
    ModelName,
    Precision,
    Recipe,
    Settings,
    check_output,
    check_unique,
    chosen_device,
)
from idsds.stages import PRETRAINED, Stage, check_starts, obtain, plan_training, trains_from_scratch
from idsds.steps import accuracy, loader_of
from idsds.store import atomic, digest, read_json, versions, write_json
from idsds.training import fit, rehearse

CONTROL = "Random"
SPLITS = ("train", "val", "test")
Share = Annotated[float, Field(ge=0, le=1)]


class RoarSettings(Settings):
    """What ``params/*/roar.yaml`` may say.

    ``shares`` of the pixels are replaced, the most important ones under ``remove`` (ROAR), the least important ones under ``keep`` (KAR),
    by the mean of each channel over the training images (the paper) or by ``black``. ``images`` is the number of test images,
    ``train_images`` that of training images, None for all; validation images are taken in proportion. ``recipe`` changes the model's own.
    What is explained is one net per model: that of ``checkpoints`` (a file, or ``pretrained``), or a small net trained by its own recipe
    on all images with the seed ``explained_seed``, which is also that of the methods' noise; ``seeds`` are those of the retrainings.
    """

    dataset: DatasetName
    models: Annotated[list[ModelName], Field(min_length=1)]
    methods: Annotated[list[MethodName], Field(min_length=1)]
    images: PositiveInt
    shares: Annotated[list[Share], Field(min_length=2)] = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9]
    kinds: Annotated[list[Kind], Field(min_length=1)] = list(KINDS)
    fill: Fill = "mean"
    target: Target = "prediction"
    train_images: PositiveInt | None = None
    recipe: dict[str, Any] = {}
    flip: bool = False
    seeds: Annotated[list[int], Field(min_length=1)] = [0, 1, 2]
    explained_seed: int = 0
    device: Device = "auto"
    devices: PositiveInt = 1
    precision: Precision = "32-true"
    workers: Annotated[int, Field(ge=0)] = 0
    output: str
    checkpoints: dict[str, str] = {}
    root: str | None = None
    dry_run: bool = False

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_unique(self, "models", "methods", "seeds", "shares", "kinds")
        if self.shares != sorted(self.shares):
            raise ValueError(f"shares must ascend, not {self.shares}")
        if self.shares[0] != 0:
            raise ValueError(
                f"shares must begin with 0, the untouched images (one net per seed, whatever the methods), not {self.shares[0]}"
            )
        if CONTROL not in self.methods:
            raise ValueError(f"methods must list {CONTROL!r}, whose curve every other is compared with")
        Recipe(**self.recipe)
        check_starts(self.checkpoints, self.models)
        for name in self.models:
            if name not in self.checkpoints and not trains_from_scratch(name, self.dataset):
                raise ValueError(f"checkpoints: {name!r} needs a trained net to explain on {self.dataset!r}, a file or 'pretrained'")
            net = skeleton(name)
            for method in self.methods:
                if reason := METHODS[split_name(method)[0]].inapplicable(net):
                    raise ValueError(f"method {method!r} does not apply to {name!r}: {reason}")
        if self.root is not None and "root" not in DATASETS[self.dataset].options:
            raise UnknownNameError(f"option of data set {self.dataset!r}", "root", DATASETS[self.dataset].options)
        check_output(self.output)
        return self

    def stage(self, model: str, seed: int, changes: dict[str, Any] | None = None) -> Stage:
        """Training of a fresh net on all images as they are."""
        options = {} if self.root is None else {"root": self.root}
        return plan_training(
            model,
            self.dataset,
            in_domain=False,
            seed=seed,
            device=self.device,
            precision=self.precision,
            changes=changes,
            options=options,
        )


@dataclass(frozen=True)
class Retraining:
    """One net, trained from scratch on modified images and tested on images that are modified alike.

    Args:
        method, kind, share, seed: what is replaced, and the seed of training.
        stage: how the net is trained.
        data: the three splits, as they are, and their ``fingerprints``.
        ranks: the ranks of their pixels; None where nothing or everything is replaced.
        fill: what replaces a pixel.
        flip: whether training mirrors images.
    """

    method: str
    kind: Kind
    share: float
    seed: int
    stage: Stage
    data: dict[str, ImageDataset]
    fingerprints: dict[str, str]
    ranks: dict[str, PixelRanks] | None
    fill: Fill
    flip: bool

    @cached_property
    def key(self) -> str:
        """The address of the result. Where nothing or everything is replaced it is one for all methods."""
        done: Any = "nothing"
        if self.pixels:
            done = {"pixels": self.pixels, "fill": self.fill}
        if self.ranks is not None:
            done |= {"kind": self.kind, "ranks": {split: found.key for split, found in self.ranks.items()}}
        content = {"trained": self.stage.key, "replaced": done, "flip": self.flip}
        return digest({**content, "data": self.fingerprints, "code": code_digest(replace_pixels)})

    @property
    def pixels(self) -> int:
        """How many pixels of an image are replaced."""
        height, width = self.data["test"][0][0].shape[-2:]
        return replaced_pixels(self.share, height * width)

    @property
    def path(self) -> Path:
        """The file of the result."""
        return paths.cache() / "roar" / f"{self.stage.model}-{self.key}.json"

    def split(self, split: str) -> ImageDataset:
        """One split as the net sees it."""
        ranks = None if self.ranks is None else self.ranks[split]
        colour = fill_colour(self.fill, self.data["train"])
        return modified(self.data[split], ranks, self.share, self.kind, colour, flip=self.flip and split == "train")

    def result(self, settings: RoarSettings, progress: bool = True) -> dict[str, Any]:
        """Accuracy on the modified test images and in training: from the cache, or by training now."""
        if self.path.is_file():
            return read_json(self.path)
        model, resume = self.stage.begin(), self.path.with_suffix(".resume.pt")
        results = fit(
            model,
            self.split("train"),
            self.split("val"),
            self.stage.recipe,
            seed=self.seed,
            device=settings.device,
            devices=settings.devices,
            precision=settings.precision,
            workers=settings.workers,
            label=f"{self.method}, {self.kind}, {self.share:.0%}",
            progress=progress,
            resume=resume,
        )
        test = self.split("test")
        size = self.stage.recipe.batch_size
        chosen = [range(start, min(start + size, len(test))) for start in range(0, len(test), size)]
        model.to(chosen_device(settings.device))
        found, _ = accuracy(model, loader_of(test, chosen, settings.workers), loss=MODELS[self.stage.model].loss)
        result = {"correct": round(found * len(test)), "count": len(test), "train_accuracy": results[-1].train_accuracy}
        if is_main():
            facts = {"method": self.method, "kind": self.kind, "share": self.share, "seed": self.seed, "versions": versions()}
            write_json(self.path, {**result, **facts, "epochs": [asdict(epoch) for epoch in results]})
            resume.unlink(missing_ok=True)
        return result


class _Planned:
    """What a run consists of, for one model: the net that is explained, the data, the ranks and the retrainings."""

    def __init__(self, settings: RoarSettings, model: str) -> None:
        self.settings, self.model = settings, model
        self.device = chosen_device(settings.device)
        self.explained = settings.stage(model, settings.explained_seed)
        whole = {split: self.explained.split(split) for split in SPLITS}
        wanted = {"train": settings.train_images or len(whole["train"]), "test": settings.images}
        for split, number in wanted.items():
            if number > len(whole[split]):
                name = "images" if split == "test" else "train_images"
                raise ValueError(f"{name}={number}, but the {split} split of {settings.dataset!r} has {len(whole[split])}")
        wanted["val"] = -(-len(whole["val"]) * wanted["train"] // len(whole["train"]))
        self.data = {split: data.subset(fixed_order(data.image_ids)[: wanted[split]]) for split, data in whole.items()}
        self.fingerprints = {split: fingerprint(data) for split, data in self.data.items()}  # a second for a million images
        start = settings.checkpoints.get(model)
        key = self.explained.key if start is None else start if start == PRETRAINED else file_digest(paths.resolve(start))
        model_key = digest([model, key, code_digest(MODELS[model].build)])
        self.ranks = {
            method: {
                split: ranks_of(method, model_key, data, seed=settings.explained_seed, target=settings.target, device=self.device.type)
                for split, data in self.data.items()
            }
            for method in settings.methods
        }

    def explain(self, progress: bool) -> None:
        """Compute the ranks that are missing."""
        if not any(ranks.missing for of_method in self.ranks.values() for ranks in of_method.values()):
            return
        start = self.settings.checkpoints.get(self.model)
        if start is None:
            net = obtain(self.explained, progress=progress)
        elif start == PRETRAINED:
            net = create_model(self.model, self.explained.num_classes, pretrained=True)
        else:
            net = create_model(self.model, self.explained.num_classes, checkpoint=paths.resolve(start))
        for split, data in self.data.items():
            wanted = {method: ranks[split] for method, ranks in self.ranks.items()}
            store_ranks(
                net, wanted, data, seed=self.settings.explained_seed, target=self.settings.target, device=self.device, progress=progress
            )

    def retrainings(self) -> Iterator[Retraining]:
        """All of them, by seed; those where nothing or everything is replaced come once for every method, under one address."""
        side = self.data["test"][0][0].shape[-2:].numel()
        for seed in self.settings.seeds:
            stage = self.settings.stage(self.model, seed, self.settings.recipe)
            for share in self.settings.shares:
                for method in self.settings.methods:
                    for kind in self.settings.kinds:
                        ranks = self.ranks[method] if 0 < replaced_pixels(share, side) < side else None
                        yield Retraining(
                            method, kind, share, seed, stage, self.data, self.fingerprints, ranks, self.settings.fill, self.settings.flip
                        )


def roar(settings: RoarSettings, *, progress: bool = True) -> pd.DataFrame:
    """Explain every image, then retrain for every method, kind, share and seed. What is cached is not done again.

    Args:
        settings: validated.
        progress: whether to show bars with the time left.

    Returns:
        One row per model, method, kind (``remove``: ROAR, ``keep``: KAR), share of the pixels that were replaced, and training seed:
        ``accuracy`` on the modified test images (share in [0, 1]), ``low`` and ``high`` (95 % interval over images, Wilson), ``count`` of
        test images, ``train_accuracy`` in the last epoch, and how many maps of all ``explained`` images order nothing, so that their
        pixels are replaced at random: ``undefined`` (a value that is not finite) and ``constant``. Also in ``output/roar.csv``. With
        ``dry_run`` what remains to be done: see :func:`plan_table`.

    Raises:
        ValueError: for more images than there are, before any work is done.
    """
    plans = [_Planned(settings, model) for model in settings.models]
    if settings.dry_run:
        return plan_table(settings)
    rows = []
    for plan in plans:
        plan.explain(progress)
        counts = {
            method: [sum(pair) for pair in zip(*(r.counts() for r in ranks.values()), strict=True)] for method, ranks in plan.ranks.items()
        }
        explained = sum(map(len, plan.data.values()))
        work = list(plan.retrainings())
        with tqdm(work, desc=f"retraining {plan.model}", unit="net", disable=not progress) as bar:
            for one in bar:
                bar.set_postfix_str(f"{one.method}, {one.kind}, {one.share:.0%}, seed {one.seed}")
                found = one.result(settings, progress=False)
                interval = stats.binomtest(found["correct"], found["count"]).proportion_ci(method="wilson")
                rows.append(
                    {
                        "model": plan.model,
                        "method": one.method,
                        "family": METHODS[split_name(one.method)[0]].family,
                        "kind": one.kind,
                        "share": one.share,
                        "seed": one.seed,
                        "accuracy": found["correct"] / found["count"],
                        "low": interval.low,
                        "high": interval.high,
                        "count": found["count"],
                        "train_accuracy": found["train_accuracy"],
                        "undefined": counts[one.method][0],
                        "constant": counts[one.method][1],
                        "explained": explained,
                    }
                )
    table = pd.DataFrame(rows)
    if is_main():
        with atomic(paths.resolve(settings.output) / "roar.csv") as partial:
            table.to_csv(partial, index=False)
    return table


def plan_table(settings: RoarSettings) -> pd.DataFrame:
    """What remains to be done, measured on eight images of each computation and three batches of training; nothing is trained.

    Returns:
        One row per model and piece of work: ``work``, ``total`` and ``cached`` (images for maps, nets for retrainings), ``forward`` and
        ``backward`` passes left (for retrainings: steps of the optimiser left in ``steps``), ``hours`` left.
    """
    rows: list[dict[str, Any]] = []
    for plan in (_Planned(settings, model) for model in settings.models):
        net = plan.explained.begin().to(plan.device).eval()
        if plan.model not in settings.checkpoints and plan.explained.missing:
            hours = rehearse(net, plan.data["train"], plan.data["val"], plan.explained.recipe, device=settings.device).hours
            hours *= plan.explained.train_images / len(plan.data["train"])
            rows.append({"model": plan.model, "work": "train the net that is explained", "total": 1, "cached": 0, "hours": hours})
        explained = sum(map(len, plan.data.values()))
        for method in settings.methods:
            left = sum(min(SHARD, ranks.count - start) for ranks in plan.ranks[method].values() for start in ranks.missing)
            forward, backward = shared_passes([Method(method, net)]).times(left)
            row = {"model": plan.model, "work": f"maps: {method}", "total": explained, "cached": explained - left}
            rows.append({**row, "forward": forward, "backward": backward, "hours": left * _seconds_of_a_map(net, method, plan) / 3600})
        work = {one.key: one for one in plan.retrainings()}
        left = [one for one in work.values() if not one.path.is_file()]
        hours, steps = 0.0, 0
        if left:
            found = rehearse(
                net,
                plan.data["train"],
                plan.data["val"],
                left[0].stage.recipe,
                device=settings.device,
                devices=settings.devices,
                precision=settings.precision,
                workers=settings.workers,
            )
            hours, steps = found.hours * len(left), found.steps * len(left)
        row = {"model": plan.model, "work": "retrain", "total": len(work), "cached": len(work) - len(left)}
        rows.append({**row, "steps": steps, "hours": hours})
    return pd.DataFrame(rows, columns=["model", "work", "total", "cached", "forward", "backward", "steps", "hours"])


def _seconds_of_a_map(net: nn.Module, method: str, plan: _Planned) -> float:
    """Measured on eight images, after one that is not."""
    images, targets, image_ids = collate([plan.data["test"][index] for index in range(min(8, len(plan.data["test"])))])
    explain = Method(method, net, seed=0)
    explain(images[:1].to(plan.device), targets[:1].to(plan.device), image_ids[:1])
    started = time.perf_counter()
    explain(images.to(plan.device), targets.to(plan.device), image_ids).sum().item()  # .item() waits for the device
    return (time.perf_counter() - started) / len(images)
