"""ROAR and KAR over a whole data set: maps once, then a fresh net per method, fraction and seed (see :mod:`idsds.protocols.roar`).

Maps are kept as ranks (:mod:`idsds.studies.roar.pixel_ranks`); each retraining is one small file, addressed by all that determines it
(:mod:`idsds.studies.roar.retraining`). A run that is killed resumes inside the retraining it was on. Retrainings are independent: jobs of a
cluster that share the cache may each take some ``seeds`` or ``methods``, and one more call collects them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Self

import numpy as np
import pandas as pd
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from idsds import plots
from idsds.common import paths
from idsds.common.devices import Device, Precision, chosen_device
from idsds.common.files import atomic, read_json, write_json
from idsds.common.hashing import code_digest, digest, file_digest, versions
from idsds.common.progress import Progress
from idsds.common.registry import check_name
from idsds.datasets import DATASETS, fingerprint, fixed_order
from idsds.datasets.base import collate
from idsds.evaluation.nets import skeleton
from idsds.methods.base import METHODS, Method, shared_passes, split_name
from idsds.models import MODELS, create_model
from idsds.protocols.roar import KINDS, MASK, Kind, Shown, mask_shares, replaced_pixels
from idsds.statistics.intervals import wilson
from idsds.studies.base import DatasetName, Findings, MethodName, ModelName, Result, Study
from idsds.studies.roar.curves import CLAIMS, claims_of, retraining_areas, retraining_curves, sentences
from idsds.studies.roar.pixel_ranks import SHARD, Target, ranks_of, store_ranks
from idsds.studies.roar.retraining import Fill, Predictions, Retraining, compared, predictions
from idsds.training.checkpoints import PRETRAINED, Stage, check_starts, obtain, plan_training, trains_from_scratch
from idsds.training.launch import Machine, is_main
from idsds.training.loop import Plan, rehearse
from idsds.training.recipes import Recipe

CONTROL = "Random"
SPLITS = ("train", "val", "test")
Share = Annotated[float, Field(ge=0, le=1)]


class Roar(Study):
    """Retrain nets on images without the most, or the least, important pixels, and compare their accuracy with that of random removals.

    ``shares`` of the pixels are replaced, the most important ones under ``remove`` (ROAR), the least important ones under ``keep`` (KAR),
    by the mean of each channel over the training images (the paper) or by ``black``. With ``mask_only`` nets are also retrained on images
    that show only the mask of these pixels, in black and white: if such a net recognises the class, the positions of the replaced pixels
    reveal it. ``images`` is the number of test images, ``train_images`` that of training images, None for all; validation images are
    taken in proportion. ``recipe`` changes the model's own. What is explained is one net per model: that of ``checkpoints`` (a file, or
    ``pretrained``), or a small net trained by its own recipe on all images with the seed ``explained_seed``, which is also that of the
    methods' noise; ``seeds`` are those of the retrainings.
    """

    PLAN_BY: ClassVar[tuple[str, ...]] = ("model", "work")

    dataset: DatasetName
    models: Annotated[list[ModelName], Field(min_length=1)]
    methods: Annotated[list[MethodName], Field(min_length=1)]
    images: PositiveInt
    shares: Annotated[list[Share], Field(min_length=2)] = [0.0, 0.1, 0.3, 0.5, 0.7, 0.9]
    kinds: Annotated[list[Kind], Field(min_length=1)] = list(KINDS)
    mask_only: bool = True
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
    checkpoints: dict[str, str] = {}
    root: str | None = None

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
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
        if self.root is not None:
            check_name(f"option of data set {self.dataset!r}", "root", DATASETS[self.dataset].options)
        return self

    @property
    def machine(self) -> Machine:
        """The machine of each retraining."""
        return Machine(devices=self.devices, workers=self.workers)

    def stage(self, model: str, seed: int, changes: dict[str, Any] | None = None) -> Stage:
        """Return the training of a fresh net on all unmodified images."""
        options = {"device": self.device, "precision": self.precision} | ({} if self.root is None else {"root": self.root})
        return plan_training(model, self.dataset, deletion=None, seed=seed, changes=changes, **options)

    def plan_table(self) -> pd.DataFrame:
        """Return what remains to be done, measured on eight images of each computation and three batches of training; nothing is trained.

        Returns:
            One row per model and piece of work: ``work``, ``total`` and ``cached`` (images for maps and predictions, nets for
            retrainings), ``forward`` and ``backward`` passes left (for retrainings: steps of the optimiser left in ``steps``), ``hours``
            left.
        """
        rows = [row for model in self.models for row in _rows_of_a_plan(_Planned(self, model))]
        return pd.DataFrame(rows, columns=["model", "work", "total", "cached", "forward", "backward", "steps", "hours"])

    def retrain(self, progress: bool = True) -> pd.DataFrame:
        """Explain every image, then retrain for every method, kind, fraction and seed. Cached results are reused.

        Returns:
            One row per model, method, kind, fraction of the pixels that were replaced, and training seed; also in ``output/roar.csv``.

            =========================== ==============================================================================================
            ``kind``                    ``remove``: ROAR, ``keep``: KAR, ``mask``: the positions of what ``remove`` replaces, alone
            ``accuracy``                on the modified test images, in [0, 1]
            ``low``, ``high``           95 % interval over images (Wilson)
            ``top5``                    accuracy with five guesses
            ``count``                   of test images
            ``agreement``               fraction of them on which the retrained net predicts what the explained net predicts on the
                                        untouched image
            ``explained_accuracy``      the explained net's, on untouched images; with five guesses ``explained_top5``
            ``chance``                  the fraction of the most frequent class
            ``train_accuracy``          in the last epoch
            ``undefined``, ``constant`` how many maps of all ``explained`` images have no order (a non-finite value, or one value),
                                        so that their pixels are replaced at random
            =========================== ==============================================================================================

        Raises:
            ValueError: for more images than the data set has, before any work is done.
        """
        plans, rows = [_Planned(self, model) for model in self.models], []
        for plan in plans:
            plan.explain(progress)
            explained, counts = plan.predicted(), {method: plan.counts(method) for method in self.methods}
            with Progress(list(plan.retrainings()), desc=f"retraining {plan.model}", unit="net", disable=not progress) as bar:
                for one in bar:
                    bar.set_postfix_str(f"{one.method}, {one.kind}, {one.share:.0%}, seed {one.seed}")
                    rows.append({**plan.record(one, explained), **counts[one.method]})
        table = pd.DataFrame(rows)
        if is_main():
            with atomic(paths.resolve(self.output) / "roar.csv") as partial:
                table.to_csv(partial, index=False)
        return table

    def _run(self, progress: bool) -> Result:
        records = self.retrain(progress)
        controls = [name for name in CLAIMS if name in self.methods]
        curves, areas = retraining_curves(records), retraining_areas(records, controls)
        findings = Findings(sentences(areas, curves), claims_of(areas))
        return Result(self.stem, {"": areas, "curves": curves}, findings, lambda: plots.roar(curves, columns=self.columns), records)


class _Planned:
    """The parts of a run for one model: the net that is explained, the data, the ranks and the retrainings."""

    def __init__(self, settings: Roar, model: str) -> None:
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
        self._find()

    def _find(self) -> None:
        """Set where the predictions and the ranks of the explained net are, or will be, by the content of its weights."""
        settings, model = self.settings, self.model
        start = settings.checkpoints.get(model)
        own = [self.explained.key, self.explained.content]
        key = own if start is None else start if start == PRETRAINED else file_digest(paths.resolve(start))
        model_key = digest([model, key, code_digest(MODELS[model].build)])
        address = digest([model_key, self.fingerprints["test"], self.device.type, versions()["torch"], "top 5"])
        self.explained_path = paths.cache() / "roar" / f"explained-{paths.portable(model)}-{address}.json"
        self.ranks = {
            method: {
                split: ranks_of(method, model_key, data, seed=settings.explained_seed, target=settings.target, device=self.device.type)
                for split, data in self.data.items()
            }
            for method in settings.methods
        }

    def explain(self, progress: bool) -> None:
        """Compute missing ranks, and the net's missing predictions for the test images."""
        missing = any(ranks.missing for of_method in self.ranks.values() for ranks in of_method.values())
        if not missing and self.explained_path.is_file():
            return
        settings, start = self.settings, self.settings.checkpoints.get(self.model)
        if start is None:
            net = obtain(self.explained, machine=settings.machine, progress=progress)
            self._find()  # its weights are known from here on
        else:
            weights = {"pretrained": True} if start == PRETRAINED else {"checkpoint": paths.resolve(start)}
            net = create_model(self.model, self.explained.num_classes, **weights)
        for split, data in self.data.items():
            wanted = {method: ranks[split] for method, ranks in self.ranks.items()}
            store_ranks(net, wanted, data, seed=settings.explained_seed, target=settings.target, device=self.device, progress=progress)
        if not self.explained_path.is_file():
            size, net = self.explained.recipe.batch_size, net.to(self.device)
            write_json(self.explained_path, predictions(net, self.data["test"], size, settings.workers))

    def predicted(self) -> Predictions:
        """The explained net's predictions for the test images; available after :meth:`explain`."""
        return read_json(self.explained_path)

    def counts(self, method: str) -> dict[str, int]:
        """Count the maps without an order of all ``explained`` images: ``undefined`` and ``constant`` ones."""
        undefined, constant = (sum(each) for each in zip(*(ranks.counts() for ranks in self.ranks[method].values()), strict=True))
        return {"undefined": undefined, "constant": constant, "explained": sum(map(len, self.data.values()))}

    def retrainings(self) -> Iterator[Retraining]:
        """Return all retrainings, by seed; those where nothing or everything is replaced come once for every method, under one address.

        Masks alone are last within each seed; masks of nothing or of everything carry no information and are left out.
        """
        settings, side = self.settings, self.data["test"][0][0].shape[-2:].numel()
        shown: list[tuple[Shown, float]] = [(kind, share) for share in settings.shares for kind in settings.kinds]
        masks = mask_shares(settings.shares, settings.kinds) if settings.mask_only else []
        shown += [(MASK, share) for share in masks if 0 < replaced_pixels(share, side) < side]
        for seed in settings.seeds:
            stage = settings.stage(self.model, seed, settings.recipe)
            for kind, share in shown:
                for method in settings.methods:
                    ranks = self.ranks[method] if 0 < replaced_pixels(share, side) < side else None
                    facts = (self.data, self.fingerprints, ranks, settings.fill, settings.flip)
                    yield Retraining(method, kind, share, seed, stage, *facts)

    def record(self, one: Retraining, explained: Predictions) -> dict[str, Any]:
        """Return a row of :meth:`Roar.retrain`, but for :meth:`counts`: one retraining beside what the ``explained`` net predicts."""
        found = one.result(self.settings.device, self.settings.precision, self.settings.machine, progress=False)
        targets = self.data["test"].targets
        correct, count = compared(found["predicted"], targets)
        same, both = compared(found["predicted"], explained["predicted"])
        right, of = compared(explained["predicted"], targets)
        near, explained_near = (np.mean([hit for hit in each["top5"] if hit is not None]) for each in (found, explained))
        low, high = wilson(correct, count)
        facts = {"model": self.model, "method": one.method, "family": METHODS[split_name(one.method)[0]].family}
        facts |= {name: getattr(one, name) for name in ("kind", "share", "seed")}
        facts |= {"accuracy": correct / count, "low": low, "high": high, "top5": near, "count": count, "agreement": same / both}
        chance = float(np.bincount(targets).max() / len(targets))
        facts |= {"explained_accuracy": right / of, "explained_top5": explained_near, "chance": chance}
        return facts | {"train_accuracy": found["train_accuracy"]}


def _rows_of_a_plan(plan: _Planned) -> list[dict[str, Any]]:
    settings, rows = plan.settings, []

    def add(work: str, total: int, cached: int, **cost: float) -> None:
        rows.append({"model": plan.model, "work": work, "total": total, "cached": cached, **cost})

    net = plan.explained.begin().to(plan.device).eval()
    if plan.model not in settings.checkpoints and plan.explained.missing:
        machine = Machine(device=settings.device)
        hours = rehearse(net, Plan(plan.data["train"], plan.data["val"], plan.explained.recipe, machine=machine)).hours
        add("train the net that is explained", 1, 0, hours=hours * plan.explained.train_images / len(plan.data["train"]))
    explained = sum(map(len, plan.data.values()))
    for method in settings.methods:
        left = sum(min(SHARD, ranks.count - start) for ranks in plan.ranks[method].values() for start in ranks.missing)
        forward, backward = shared_passes([Method(method, net)]).times(left)
        hours = left * _seconds_of(Method(method, net, seed=0), plan) / 3600
        add(f"maps: {method}", explained, explained - left, forward=forward, backward=backward, hours=hours)
    tested = len(plan.data["test"])
    left = 0 if plan.explained_path.is_file() else tested
    hours = left * _seconds_of(lambda images, *_: net(images), plan) / 3600
    add("predictions of the net that is explained", tested, tested - left, forward=left, backward=0, hours=hours)
    nets = {one.key: one for one in plan.retrainings()}.values()
    waiting = [one for one in nets if not one.path.is_file()]
    each = {"steps": 0, "hours": 0.0}
    if waiting:
        machine = replace(settings.machine, device=settings.device, precision=settings.precision)
        found = rehearse(net, Plan(plan.data["train"], plan.data["val"], waiting[0].stage.recipe, machine=machine))
        each = {"steps": found.steps, "hours": found.hours}
    for work, masks in (("retrain", False), ("retrain on masks alone", True)):
        if total := sum((one.kind == MASK) == masks for one in nets):
            missing = sum((one.kind == MASK) == masks for one in waiting)
            add(work, total, total - missing, **{name: missing * cost for name, cost in each.items()})
    return rows


def _seconds_of(explain: Callable[..., Tensor], plan: _Planned) -> float:
    """Return the seconds per image, measured on eight images after a warm-up."""
    images, targets, image_ids = collate([plan.data["test"][index] for index in range(min(8, len(plan.data["test"])))])
    explain(images[:1].to(plan.device), targets[:1].to(plan.device), image_ids[:1])
    started = time.perf_counter()
    explain(images.to(plan.device), targets.to(plan.device), image_ids).sum().item()  # .item() waits for the device
    return (time.perf_counter() - started) / len(images)
