"""How infidelity works, on one image: what is taken away, what a map foretells, what the model does, and when the number misleads.

``infidelity = E[(I . map - (f(x) - f(x - d)))^2]`` over perturbations: the noise I = d, or a mask I that removes d = I * x.

The optimal explanation of the paper, the map that no other has a lower infidelity than, solves a least squares problem:
``map* = E[I I^T]^-1 E[I (f(x) - f(x - d))]``. With fewer perturbations than pixels any change can be foretold, so it is sought here among
maps that are constant on patches, from some perturbations, and judged on others.

Source: Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019 (arXiv 1901.09392), proposition 2.1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Self

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from idsds.batching import in_batches
from idsds.datasets import DATASETS
from idsds.interventions import patch_size
from idsds.methods.base import shared_maps
from idsds.models.base import frozen
from idsds.protocols.infidelity import perturbations
from idsds.protocols.single_deletion import patch_sums
from idsds.resolving import make_plan
from idsds.settings import DatasetName, Device, MethodName, ModelName, Settings, check_output

Positive = Annotated[float, Field(gt=0)]
OPTIMAL = "optimal, by patch"


class InfidelityStepsSettings(Settings):
    """What ``params/*/how_infidelity_works.yaml`` may say: one model, one image, some maps and some perturbations."""

    dataset: DatasetName
    model: ModelName
    methods: Annotated[list[MethodName], Field(min_length=1)]
    image: Annotated[int, Field(ge=0)] = 0
    grid: PositiveInt = 4
    sigmas: Annotated[list[Positive], Field(min_length=1)]
    square: Annotated[float, Field(gt=0, le=1)] = 0.25
    samples: Annotated[int, Field(ge=2)] = 200
    seed: int = 0
    device: Device = "auto"
    output: str
    checkpoints: dict[str, str] = {}

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        size = DATASETS[self.dataset].image_size
        patch_size(size, size, self.grid)
        check_output(self.output)
        return self


@dataclass(frozen=True, eq=False)
class Step:
    """One kind of perturbation of one image.

    Args:
        name: what is done.
        taken: the first perturbation d, (H, W), mean over channels.
        picture: what it leaves, (H, W, 3) in [0, 1].
        logit: the target's, of the intact image.
        changes: how much it falls, (samples,).
        predicted: by map what it foretells, (samples,); of the first two maps.
        infidelity, normalised: by map, as it is and multiplied by its best factor, in squared logits.
        zero: infidelity of a map of zeros.
        maps: names of the maps.
    """

    name: str
    taken: np.ndarray
    picture: np.ndarray
    logit: float
    changes: np.ndarray
    predicted: dict[str, np.ndarray]
    infidelity: dict[str, float]
    normalised: dict[str, float]
    zero: float
    maps: tuple[str, ...]


def explain_infidelity(settings: InfidelityStepsSettings, *, progress: bool = True) -> list[Step]:
    """The steps of one image, one per perturbation; a small net that is not cached is trained first (without deletions)."""
    plan = make_plan(
        [settings.model],
        settings.methods,
        settings.dataset,
        "infidelity",
        settings.image + 1,
        [settings.seed],
        checkpoints=settings.checkpoints,
        device=settings.device,
        precision="32-true",
        batch_size=None,
        shard=1,
        settings={},
    )
    (job,) = plan.jobs
    job.prepare(progress)
    image, target, image_id = job.dataset[job.indices[-1]]
    model = job.load().to(plan.device)
    images, targets = image[None].to(plan.device), torch.tensor([target], device=plan.device)
    maps = shared_maps(job.create_methods(model, list(job.methods)), images, targets, [image_id])
    normalisation = job.dataset.normalisation
    with torch.inference_mode(), frozen(model):
        return [
            _step(model, maps, images, target, name, weights, taken, fresh, settings.grid, normalisation.invert)
            for name, weights, taken, fresh in _perturbed(images, image_id, settings)
        ]


def _perturbed(images: Tensor, image_id: str, settings: InfidelityStepsSettings) -> Iterator[tuple[str, Tensor, Tensor, bool]]:
    """Name, I and d, (samples, C, H, W) each, and whether there are twice as many, so that half are fresh for judging."""
    draw = {"samples": 2 * settings.samples, "seed": settings.seed, "image_ids": [image_id]}
    for sigma in settings.sigmas:
        yield f"noise, sigma {sigma:g}", *perturbations(images, "gaussian", sigma, **draw), True
    yield f"square, {settings.square:.0%} of side", *perturbations(images, "square", settings.square, **draw), True
    cells = torch.eye(settings.grid**2).view(-1, 1, settings.grid, settings.grid)
    mask = F.interpolate(cells, size=images.shape[-2:], mode="nearest").to(images).expand(-1, images.shape[1], -1, -1)
    yield "one patch", mask, mask * images, False  # all of them: nothing is drawn


def _step(
    model: nn.Module,
    maps: dict[str, Tensor],
    images: Tensor,
    target: int,
    name: str,
    weights: Tensor,
    taken: Tensor,
    fresh: bool,
    grid: int,
    invert: object,
) -> Step:
    logit = float(model(images)[0, target])
    changes = logit - in_batches(model, images - taken, size=64)[:, target].double()  # (samples,)
    by_patch = patch_sums(weights[:, :1], grid).double()  # (samples, grid * grid): I, summed over each patch
    half = len(changes) // 2 if fresh else len(changes)
    optimal = optimal_map(by_patch[:half], changes[:half])
    judged = slice(half, None) if fresh else slice(None)
    changes = changes[judged]
    foretold = {method: (weights[judged, :1] * found).flatten(1).double().sum(dim=1) for method, found in maps.items()}
    foretold[OPTIMAL] = by_patch[judged] @ optimal
    first = int(changes.abs().argmax()) if not fresh else 0
    order = torch.tensor([first, *(index for index in range(len(changes)) if index != first)], device=changes.device)
    return Step(
        name=name,
        taken=taken[judged][first].mean(dim=0).cpu().numpy(),
        picture=invert(images[0] - taken[judged][first]).permute(1, 2, 0).cpu().numpy(),  # type: ignore[operator]
        logit=logit,
        changes=changes[order].cpu().numpy(),
        predicted={method: foretold[method][order].cpu().numpy() for method in list(maps)[:2]},
        infidelity={method: float((values - changes).square().mean()) for method, values in foretold.items()},
        normalised={
            method: float((best_factor(values, changes) * values - changes).square().mean()) for method, values in foretold.items()
        },
        zero=float(changes.square().mean()),
        maps=tuple(foretold),
    )


def optimal_map(weights: Tensor, changes: Tensor) -> Tensor:
    """The map of least infidelity, (P,), for perturbations (samples, P) and the changes of the logit (samples,).

    ``E[I I^T]^-1 E[I change]``; where the perturbations leave several such maps, the one of least norm.
    """
    return torch.linalg.pinv(weights) @ changes


def best_factor(foretold: Tensor, changes: Tensor) -> Tensor:
    """What a map is to be multiplied by for its infidelity to be least: E[foretold change] / E[foretold^2], 0 for a map that is silent."""
    power = foretold.square().mean()
    return torch.where(power > 0, (foretold * changes).mean() / power.clamp(min=torch.finfo(power.dtype).tiny), torch.zeros_like(power))


def steps_table(steps: list[Step]) -> pd.DataFrame:
    """One row per perturbation and map: what the first perturbation does and what the map foretells of it, and the infidelity of all."""
    rows = []
    for step in steps:
        for name in step.maps:
            foretold = step.predicted[name][0] if name in step.predicted else float("nan")
            facts = {
                "perturbation": step.name,
                "map": name,
                "logit": step.logit,
                "first_change": step.changes[0],
                "first_foretold": foretold,
            }
            facts |= {"infidelity": step.infidelity[name], "normalised": step.normalised[name], "map_of_zeros": step.zero}
            rows.append({**facts, "perturbations": len(step.changes)})
    return pd.DataFrame(rows)


def findings(steps: list[Step]) -> list[str]:
    """What the steps say, one sentence per perturbation and one in all; every number is computed."""
    said, best = [], {}
    for step in steps:
        given = [name for name in step.maps if name != OPTIMAL]
        best[step.name] = min(given, key=step.infidelity.__getitem__)
        worse = [name for name in given if step.infidelity[name] > step.zero]
        first = ", ".join(f"{name} foretells {values[0]:.2g}" for name, values in step.predicted.items())
        said.append(
            f"{step.name}: the first perturbation lowers the logit of {step.logit:.2f} by {step.changes[0]:.2g}; {first}. Over "
            f"{len(step.changes)} of them {best[step.name]} has the lowest infidelity ({step.infidelity[best[step.name]]:.3g}); a map of "
            f"zeros has {step.zero:.3g}" + (f", less than {', '.join(worse)}." if worse else ", more than all maps.")
        )
    winners = sorted(set(best.values()))
    silent = sum(step.zero < step.infidelity[best[step.name]] for step in steps)
    reordered = sum(_order(step, step.infidelity) != _order(step, step.normalised) for step in steps)
    said.append(
        f"Of the given maps {'the same one' if len(winners) == 1 else 'not the same one'} is best for all {len(steps)} perturbations "
        f"({', '.join(winners)}): a number without its perturbation says little. A map of zeros beats every given map for {silent} of "
        f"{len(steps)}; with each map scaled to its best, their order is another for {reordered} of {len(steps)}."
    )
    return said


def _order(step: Step, values: dict[str, float]) -> list[str]:
    return sorted((name for name in step.maps if name != OPTIMAL), key=values.__getitem__)
