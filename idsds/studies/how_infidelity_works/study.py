"""How infidelity works, on one image: the perturbation, what a map predicts, what the model does, and when the number misleads.

``infidelity = E[(I . map - (f(x) - f(x - d)))^2]`` over perturbations: the noise I = d, or a mask I that removes d = I * x.

The optimal explanation of the paper, the map of lowest infidelity, solves a least squares problem:
``map* = E[I I^T]^-1 E[I (f(x) - f(x - d))]``. It is fitted among maps that are constant on the cells of a grid (on pixels where the grid
is as fine as the image), to three times as many perturbations as cells, drawn independently of those that judge. Noise is drawn with
both signs, I and -I. This leaves the expectations unchanged (it is symmetric about 0) and removes from their estimates everything that a
linear map cannot predict because it is the same for both, above all the mean change. A ridge bounds what so few perturbations cannot
determine; generalised cross-validation on the fitting perturbations selects it, 0 being a candidate. Where several maps are optimal
(fewer distinct perturbations than cells), it is the one of least norm.

Sources: Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019 (arXiv 1901.09392), proposition 2.1; Golub, Heath,
Wahba, "Generalized cross-validation as a method for choosing a good ridge parameter", Technometrics 1979.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from hashlib import blake2b
from typing import Annotated, ClassVar, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from idsds import plots
from idsds.common.batching import default_batch, in_batches
from idsds.common.devices import Device
from idsds.common.interventions import patch_size
from idsds.datasets import DATASETS
from idsds.evaluation.arguments import Arguments, make_plan
from idsds.evaluation.costs import measure
from idsds.evaluation.job import Job
from idsds.evaluation.plan import Plan
from idsds.methods.base import shared_maps
from idsds.models.base import frozen
from idsds.protocols.infidelity import Perturbation, perturbations
from idsds.protocols.single_deletion import patch_sums
from idsds.studies.base import DatasetName, Findings, MethodName, ModelName, Result, Study
from idsds.studies.how_infidelity_works.findings import claims_table, sentences, steps_table
from idsds.studies.how_infidelity_works.optimal_map import best_factor, best_ridge, optimal_map

Positive = Annotated[float, Field(gt=0)]
#: Perturbations that the optimal map is fitted to, per cell of its grid.
FITTED = 3
#: Perturbations that are drawn at a time, for memory.
BLOCK = 256


class Kind(NamedTuple):
    """One kind of perturbation: its name, and what :func:`idsds.protocols.infidelity.perturbations` draws; None: every patch, once."""

    name: str
    perturbation: Perturbation | None
    size: float = 0.0


class HowInfidelityWorks(Study):
    """Take one image through infidelity: one model, some maps and some perturbations."""

    PLAN_BY: ClassVar[tuple[str, ...]] = ("model", "work")

    dataset: DatasetName
    model: ModelName
    methods: Annotated[list[MethodName], Field(min_length=1)]
    image: NonNegativeInt = 0
    others: NonNegativeInt = 0
    grid: PositiveInt = 4
    optimal_cells: PositiveInt = 32
    sigmas: Annotated[list[Positive], Field(min_length=1)]
    square: Annotated[float, Field(gt=0, le=1)] = 0.25
    samples: Annotated[int, Field(ge=2)] = 200
    seed: int = 0
    device: Device = "auto"
    checkpoints: dict[str, str] = {}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        for grid in (self.grid, self.optimal_cells):
            patch_size(self.side, self.side, grid)
        return self

    @property
    def side(self) -> int:
        """Pixels per side of an image."""
        return DATASETS[self.dataset].image_size

    @property
    def optimal(self) -> str:
        """The name of the optimal map, after the maps among which it is fitted."""
        return "optimal (pixels)" if self.optimal_cells == self.side else f"optimal ({self.optimal_cells} x {self.optimal_cells} cells)"

    @property
    def kinds(self) -> list[Kind]:
        """Of noise, in the order of ``sigmas``; a square; one patch."""
        noise = [Kind(f"noise, sigma {sigma:g}", "gaussian", sigma) for sigma in self.sigmas]
        return [*noise, Kind(f"square, {self.square:.0%} of side", "square", self.square), Kind("one patch", None)]

    def draws(self, kind: Kind) -> int:
        """The number of perturbations drawn for the optimal map; noise is used with both signs."""
        return -(-FITTED * self.optimal_cells**2 // (2 if kind.perturbation == "gaussian" else 1)) if kind.perturbation else 0

    def passes(self, kind: Kind) -> dict[str, int]:
        """Forward passes per image: to ``judge`` maps, and to ``fit`` the optimal one."""
        judge = self.samples if kind.perturbation else self.grid**2
        return {"judge": judge, "fit": self.draws(kind) * (2 if kind.perturbation == "gaussian" else 1)}

    def planned(self) -> tuple[Plan, Job]:
        """Return the plan of the maps: of the image, and of the others after it in the fixed order."""
        where = (self.dataset, "infidelity", self.image + self.others + 1, [self.seed])
        given = {"checkpoints": self.checkpoints, "device": self.device, "precision": "32-true"}
        plan = make_plan(Arguments([self.model], self.methods, *where, **given, batch_size=None, shard=1, settings={}))
        job = replace(plan.jobs[0], indices=plan.jobs[0].indices[self.image :])
        return replace(plan, jobs=(job,)), job

    def plan_table(self) -> pd.DataFrame:
        """Return what :meth:`walk` will do, from the settings alone.

        Returns:
            One row per piece of work: ``model``, ``work``, ``epochs`` (of training that is not cached, else <NA>), ``forward`` and
            ``backward``: passes in all (<NA> for training); in a dry run also ``seconds_left``, measured on a few batches.
        """
        plan, _ = self.planned()
        table = measure(plan) if self.dry_run else plan.table()
        columns = ["model", "work", "epochs", "forward", "backward", *(["seconds_left"] if self.dry_run else [])]
        rows = table.loc[table["work"] != plan.shared_work, columns].to_dict("records")
        perturbing = table[table["work"] == plan.shared_work].iloc[0]
        each = perturbing["seconds_left"] / perturbing["forward"] if self.dry_run else None
        images = 1 + self.others
        passes = {"intact images": images}
        for kind in self.kinds:
            found = self.passes(kind)
            passes[f"{kind.name}: judge the maps"] = images * found["judge"]
            passes[f"{kind.name}: fit the optimal map"] = found["fit"]
        facts = {"model": self.model, "epochs": pd.NA, "backward": 0}
        for work, forward in passes.items():
            if forward:
                rows.append({**facts, "work": work, "forward": forward, **({} if each is None else {"seconds_left": each * forward})})
        return pd.DataFrame(rows).astype({"epochs": "Int64", "forward": "Int64", "backward": "Int64"})

    def walk(self, progress: bool = True) -> Walk:
        """Go through one image, one step per perturbation; a small net that is not cached is trained first (without deletions)."""
        plan, job = self.planned()
        model, normalisation = job.load(progress).to(plan.device), job.dataset.normalisation  # type: ignore[attr-defined]
        methods, looked = job.create_methods(model, list(job.methods)), []
        for index in job.indices:
            image, target, image_id = job.dataset[index]
            images = image[None].to(plan.device)
            maps = shared_maps(methods, images, torch.tensor([target], device=plan.device), [image_id])
            looked.append(_Image(model, images, target, image_id, maps, self))
        first, *others = looked
        with torch.inference_mode(), frozen(model):
            steps = [first.step(kind, normalisation.invert) for kind in self.kinds]
            winners = {kind.name: [one.winner(kind) for one in others] for kind in self.kinds}
        maps = {name: found[0, 0].cpu().numpy() for name, found in first.maps.items()}
        label = job.dataset.classes[first.target].split(",")[0]  # type: ignore[attr-defined]
        return Walk(self, first.image_id, label, _picture(normalisation.invert(first.images[0])), maps, steps, winners)

    def _run(self, progress: bool) -> Result:
        walk = self.walk(progress)
        table, claims = steps_table(walk), claims_table(walk)
        draw = partial(plots.how_infidelity_works, walk, table, columns=self.columns)
        return Result(self.stem, {"": table, "claims": claims}, Findings(sentences(walk, claims), claims), draw, walk)


@dataclass(frozen=True, eq=False)
class Step:
    """One kind of perturbation of one image; the first perturbation is shown, all of them are used to judge.

    Args:
        name: what is done.
        noise: whether it is noise, whose mean is 0.
        sampled: whether the perturbations are drawn; else all of them are used.
        taken: the first perturbation d, (H, W), mean over channels, in normalised units.
        picture: the image after it, (H, W, 3) in [0, 1].
        products: by map, of the first two, its product with the first I, (H, W), whose sum is what it predicts.
        logit: the target's, of the intact image.
        changes: how much it falls, (samples,).
        predicted: by map what it predicts, (samples,); the optimal map is the last.
        optimal: the optimal map, (H, W).
        cells: of its grid, the number of unknowns.
        ridge: that it is fitted with, as a multiple of the mean eigenvalue of E[I I^T].
        fitted: the number of perturbations that it is fitted to, noise with both signs.
        different: how many distinct ones were drawn for that; a noise and its negative count once.
        seen: how many of the judging perturbations are among these.
    """

    name: str
    noise: bool
    sampled: bool
    taken: np.ndarray
    picture: np.ndarray
    products: dict[str, np.ndarray]
    logit: float
    changes: np.ndarray
    predicted: dict[str, np.ndarray]
    optimal: np.ndarray
    cells: int
    ridge: float
    fitted: int
    different: int
    seen: int

    @property
    def by_construction(self) -> bool:
        """Whether the optimal map predicts all judging perturbations whatever the model does: it was fitted exactly to them."""
        return self.different <= self.cells and self.seen == len(self.changes) and self.ridge == 0

    @cached_property
    def errors(self) -> dict[str, np.ndarray]:
        """Squared errors by map, (samples,) in squared logits; their mean is its infidelity."""
        return {name: (values - self.changes) ** 2 for name, values in self.predicted.items()}

    @cached_property
    def scaled(self) -> dict[str, np.ndarray]:
        """The squared errors of each map multiplied by its best factor."""
        return {name: (best_factor(values, self.changes) * values - self.changes) ** 2 for name, values in self.predicted.items()}

    @property
    def zero(self) -> np.ndarray:
        """The squared errors of a map of zeros."""
        return self.changes**2


@dataclass(frozen=True, eq=False)
class Walk:
    """One image with all its steps.

    Args:
        image_id, label: of the image; the label's name.
        picture: (H, W, 3) in [0, 1].
        maps: by method, (H, W).
        steps: one per kind of perturbation.
        winners: by kind, the method's map of least infidelity on each of the other images.
    """

    settings: HowInfidelityWorks
    image_id: str
    label: str
    picture: np.ndarray
    maps: dict[str, np.ndarray]
    steps: list[Step]
    winners: dict[str, list[str]]


class _Image:
    """One image: what the model does under perturbations, and what its maps predict."""

    def __init__(
        self, model: nn.Module, images: Tensor, target: int, image_id: str, maps: dict[str, Tensor], settings: HowInfidelityWorks
    ) -> None:
        self.model, self.images, self.target, self.image_id, self.maps, self.settings = model, images, target, image_id, maps, settings
        with torch.inference_mode(), frozen(model):
            self.logit = float(model(images)[0, target])

    def changes(self, taken: Tensor) -> Tensor:
        """Return how much the logit falls, (samples,), when each d (samples, C, H, W) is subtracted."""
        logits = in_batches(self.model, self.images - taken, size=default_batch(self.images))[:, self.target]
        return self.logit - logits.cpu().double()

    def judging(self, kind: Kind) -> tuple[Tensor, Tensor]:
        """Return I and d of the judging perturbations, (samples, C, H, W): those of the protocol, or every patch."""
        if kind.perturbation:
            draw = {"samples": self.settings.samples, "seed": self.settings.seed, "image_ids": [self.image_id]}
            return perturbations(self.images, kind.perturbation, kind.size, **draw)
        grid = self.settings.grid
        cells = torch.eye(grid**2).view(-1, 1, grid, grid)
        mask = F.interpolate(cells, size=self.images.shape[-2:], mode="nearest").to(self.images).expand(-1, self.images.shape[1], -1, -1)
        return mask, mask * self.images

    def predicted(self, weights: Tensor) -> dict[str, Tensor]:
        """Return the predictions by map, (samples,)."""
        return {name: (weights[:, :1] * found).flatten(1).cpu().double().sum(dim=1) for name, found in self.maps.items()}

    def winner(self, kind: Kind) -> str:
        """The map of least infidelity."""
        weights, taken = self.judging(kind)
        changes = self.changes(taken)
        infidelity = {name: float((values - changes).square().mean()) for name, values in self.predicted(weights).items()}
        return min(infidelity, key=infidelity.__getitem__)

    def step(self, kind: Kind, invert: Callable[[Tensor], Tensor]) -> Step:
        weights, taken = self.judging(kind)
        changes = self.changes(taken)
        by_cell, keys = self._by_cell(weights), _keys(weights)
        if kind.perturbation:
            optimal, ridge, known = self._fit(kind)
        else:
            optimal, ridge, known = optimal_map(by_cell, changes), 0.0, set(keys)
        predicted = {**self.predicted(weights), self.settings.optimal: by_cell @ optimal}
        first = 0 if kind.perturbation else int(changes.abs().argmax())
        order = torch.tensor([first, *(index for index in range(len(changes)) if index != first)])
        cells, repeats = self.settings.optimal_cells, np.ones([size // self.settings.optimal_cells for size in self.images.shape[-2:]])
        return Step(
            name=kind.name,
            noise=kind.perturbation == "gaussian",
            sampled=kind.perturbation is not None,
            taken=taken[first].mean(dim=0).cpu().numpy(),
            picture=_picture(invert(self.images[0] - taken[first])),
            products={name: (weights[first, 0] * self.maps[name][0, 0]).cpu().numpy() for name in list(self.maps)[:2]},
            logit=self.logit,
            changes=changes[order].numpy(),
            predicted={name: values[order].numpy() for name, values in predicted.items()},
            optimal=np.kron(optimal.view(cells, cells).numpy(), repeats),
            cells=cells**2,
            ridge=ridge,
            fitted=self.settings.passes(kind)["fit"] or len(changes),
            different=len(known),
            seen=sum(key in known for key in keys),
        )

    def _fit(self, kind: Kind) -> tuple[Tensor, float, set[bytes]]:
        """Return the optimal map by cell, (cells * cells,), its ridge, and the keys of the perturbations that it is fitted to."""
        sums, falls, known = [], [], set()
        for start in range(0, count := self.settings.draws(kind), BLOCK):
            draw = {"samples": min(BLOCK, count - start), "seed": self.settings.seed, "image_ids": [f"{self.image_id}, to fit, {start}"]}
            weights, taken = perturbations(self.images, kind.perturbation, kind.size, **draw)  # type: ignore[arg-type]
            changes = self.changes(taken)
            if kind.perturbation == "gaussian":  # I c(d) and -I c(-d), of which the mean is I times this
                changes = (changes - self.changes(-taken)) / 2
            sums.append(self._by_cell(weights))
            falls.append(changes)
            known.update(_keys(weights))
        fitted = torch.cat(sums), torch.cat(falls)
        ridge = best_ridge(*fitted)
        return optimal_map(*fitted, ridge), ridge, known

    def _by_cell(self, weights: Tensor) -> Tensor:
        """Return I summed over each cell of the optimal map, (samples, cells * cells) float64."""
        return patch_sums(weights[:, :1], self.settings.optimal_cells).cpu().double()


def _keys(weights: Tensor) -> list[bytes]:
    """Return a hash of each I, which tells perturbations (samples, C, H, W) apart."""
    return [blake2b(one.contiguous().numpy().tobytes(), digest_size=16).digest() for one in weights[:, 0].cpu()]


def _picture(image: Tensor) -> np.ndarray:
    """(3, H, W) in [0, 1] as (H, W, 3)."""
    return image.permute(1, 2, 0).cpu().numpy()
