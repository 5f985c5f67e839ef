"""IDSDS of one image, step by step: the deletions, the drops, the patch sums, their ranks and the rank correlation.

Everything is computed here the long way, one deleted image after the other, and compared with what the engine recorded.

Source: Hesse, Schaub-Meyer, Roth, NeurIPS 2024 (arXiv 2407.11910), figure 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from scipy.stats import rankdata

from idsds.common.interventions import all_deletions, baseline_images
from idsds.common.normalisation import Normalisation
from idsds.evaluation.arguments import make_plan
from idsds.models.base import frozen
from idsds.studies.base import ModelName, RunSettings
from idsds.studies.gallery import Example, explain


class WalkthroughSettings(RunSettings):
    """What ``params/*/how_idsds_works.yaml`` may say: one model, and of the first ``images`` images the last."""

    columns: Literal[1, 2] = 2  # width of the figure in columns of a paper
    models: Annotated[list[ModelName], Field(min_length=1, max_length=1)]
    seeds: Annotated[list[int], Field(min_length=1, max_length=1)] = [0]

    def evaluate(self) -> dict[str, Any]:
        """The keyword arguments of :func:`idsds.evaluate`."""
        return {name: value for name, value in super().evaluate().items() if name != "columns"}


@dataclass(frozen=True, eq=False)
class Walkthrough:
    """One image with all its steps.

    Args:
        example: the image as the engine scored it: picture, drops, maps, patch sums, scores.
        deleted: (n, H, W, 3) in [0, 1], the picture without each of its patches, row-major.
        logits: (n,) of the target, each patch deleted.
        baseline: what replaced the patches.
    """

    example: Example
    deleted: np.ndarray
    logits: np.ndarray
    baseline: str

    @property
    def drops(self) -> np.ndarray:
        """(n,): the target's logit of the intact image minus that of each deleted one."""
        return self.example.target_logit - self.logits


def walk(settings: WalkthroughSettings, *, progress: bool = True) -> Walkthrough:
    """Take one image through IDSDS.

    Returns:
        All steps. The engine's own records of the image are in ``example``.
    """
    example = explain(**settings.evaluate(), progress=progress)[-1]
    seeds, shared = settings.seeds, {"device": settings.device, "precision": settings.precision, "checkpoints": settings.checkpoints}
    deletion = {"grid": settings.grid, "baseline": settings.baseline}
    where = (settings.dataset, "idsds", settings.images, seeds)
    plan = make_plan(settings.models, settings.methods, *where, batch_size=None, shard=settings.images, settings=deletion, **shared)
    job = plan.jobs[0]
    image, target, image_id = job.dataset[job.indices[-1]]  # (3, H, W)
    image = image[None].to(plan.device)
    replacement = baseline_images(image, settings.baseline, seed=seeds[0], image_ids=[image_id])
    deleted = all_deletions(image, replacement, settings.grid)[0]  # (n, 3, H, W)
    model = job.load().to(plan.device)
    with torch.inference_mode(), frozen(model):
        logits = [float(model(one[None])[0, target]) for one in deleted]
    normalisation: Normalisation | None = getattr(job.dataset, "normalisation", None)
    pictures = deleted if normalisation is None else normalisation.invert(deleted)
    shown = pictures.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()  # (n, H, W, 3)
    return Walkthrough(example, shown, np.array(logits), settings.baseline)


def patch_table(walkthrough: Walkthrough, method: str) -> pd.DataFrame:
    """The correlation of one method worked out patch by patch.

    Returns:
        One row per patch (row-major, from 0): ``logit`` of the target with the patch deleted, ``drop``, ``rank of drop`` (1 is the
        smallest), ``patch sum`` of attribution, ``rank of sum``, ``difference`` of the ranks and its ``square``.
    """
    sums = np.asarray(walkthrough.example.records.loc[method, "patch_sums"], dtype=float)
    drops, sums_ranks = rankdata(walkthrough.drops), rankdata(sums)
    columns = {"logit": walkthrough.logits, "drop": walkthrough.drops, "rank of drop": drops, "patch sum": sums, "rank of sum": sums_ranks}
    table = pd.DataFrame({"patch": range(len(sums)), **columns})
    return table.assign(difference=drops - sums_ranks, square=(drops - sums_ranks) ** 2)


def spearman(table: pd.DataFrame) -> float:
    """Pearson's correlation of the two columns of ranks; without ties 1 - 6 sum d^2 / (n (n^2 - 1)). NaN for a constant column."""
    first, second = (table[name] - table[name].mean() for name in ("rank of drop", "rank of sum"))
    norm = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / norm) if norm else float("nan")


def sentences(walkthrough: Walkthrough) -> list[str]:
    """The steps in words; each number is that of this image."""
    example, drops = walkthrough.example, walkthrough.drops
    n, most = len(drops), int(drops.argmax())
    side = len(example.drops)
    lines = [
        f"1. The image shows {example.target!r}. The net answers {example.prediction!r}; the logit of {example.target!r} is"
        f" {example.target_logit:.2f}.",
        f"2. Each of the {n} patches is deleted alone (baseline {walkthrough.baseline}), and the logit is read again: {n} numbers from"
        f" {walkthrough.logits.min():.2f} to {walkthrough.logits.max():.2f}.",
        f"3. The drop is the difference. The patch in row {most // side + 1}, column {most % side + 1} matters most: without it the logit"
        f" falls by {drops[most]:.2f}. Without {int((drops < 0).sum())} of the patches it rises.",
    ]
    for method in example.records.index:
        table = patch_table(walkthrough, method)
        squares, rho = float(table["square"].sum()), spearman(table)
        ties = table["rank of drop"].duplicated().any() or table["rank of sum"].duplicated().any()
        worked = "with tied ranks at their mean" if ties else f"1 - 6 x {squares:.0f} / ({n} x {n * n - 1})"
        lines.append(
            f"4 to 6. {method}: the attribution is summed over each patch and ranked; the ranks correlate by {worked} = {rho:+.3f}."
        )
    return lines


def headline(walkthrough: Walkthrough) -> str:
    """What the figure shows, in a sentence of computed numbers."""
    drops, example = walkthrough.drops, walkthrough.example
    scores = ", ".join(f"{method} {spearman(patch_table(walkthrough, method)):+.2f}" for method in example.records.index)
    return (
        f"One {example.target!r}: deleting each of {len(drops)} patches moves its logit of {example.target_logit:.2f}"
        f" by {-drops.max():+.2f} to {-drops.min():+.2f}; the rank correlation with the patches' attribution is {scores}."
    )
