"""A few images explained by many methods, for :func:`idsds.plots.gallery`.

Scores, patch sums and deletion drops are the engine's own records. The maps, which records do not hold, are recomputed with the same
weights, seeds and image ids; :func:`disagreement` measures how far their patch sums are from the recorded ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from idsds import plots
from idsds.common.normalisation import Normalisation
from idsds.common.registry import UnknownNameError
from idsds.evaluation.evaluate import evaluate
from idsds.evaluation.job import Job
from idsds.evaluation.plan import Plan
from idsds.evaluation.run import autocast
from idsds.evaluation.run import batch_size as batch_size_of
from idsds.evaluation.trial import tried
from idsds.methods.base import Method, shared_maps
from idsds.models.base import frozen
from idsds.models.isolation import on_loan
from idsds.plots.gallery import Example
from idsds.protocols import Batch
from idsds.protocols.single_deletion import patch_sums
from idsds.studies.base import EvaluationStudy, Findings, Result, resolve
from idsds.studies.rank_methods import SCORES
from idsds.studies.result import listed
from idsds.training.loop import batches


def explain(
    models: Sequence[str] | Mapping[str, nn.Module],
    methods: Sequence[str] | Mapping[str, Any],
    dataset: str | Dataset = "mnist5k",
    images: int = 4,
    *,
    normalisation: Normalisation | None = None,
    progress: bool = True,
    **arguments: Any,
) -> list[Example]:
    """Score a few images, and keep their maps.

    Args:
        models, methods, dataset, images, progress: see :func:`idsds.evaluate`, which computes the scores.
        normalisation: the normalisation of your own data set, undone for display; None for its attribute ``normalisation``, if any. Its
            attribute ``classes``, if any, gives the class names.
        arguments: further arguments of :func:`idsds.evaluate`; ``protocol`` is one of :data:`~idsds.studies.rank_methods.SCORES`,
            whose records hold drops and patch sums.

    Returns:
        One example per model, training seed and image, the images in their fixed order.

    Raises:
        UnknownNameError: for an unknown name, with the nearest match.
        ValueError: if images are not in [0, 1] once the normalisation is undone, and as for :func:`idsds.evaluate`.
    """
    if (protocol := arguments.get("protocol", "idsds")) not in SCORES:
        raise UnknownNameError("protocol with deletion drops and patch sums", protocol, SCORES)
    # One shard, so that both use the same batches.
    arguments |= {"models": models, "methods": methods, "dataset": dataset, "images": images, "shard": images}
    plan = resolve(**arguments)
    for job in plan.jobs:
        picture_of(job, job.dataset[job.indices[0]][0], normalisation)  # a wrong normalisation stops the run before any work
    records = evaluate(**arguments, progress=progress)
    examples = []
    for job in plan.jobs:
        with on_loan(job.load(), plan.device, plan.layout_of(job)) as model:
            examples += _examples(model, plan, job, records, normalisation)
    return examples


def _examples(model: nn.Module, plan: Plan, job: Job, records: pd.DataFrame, normalisation: Normalisation | None) -> Iterator[Example]:
    methods: list[Method] = []
    mine = records[(records["model"] == job.model) & (records["seed"] == job.seed)]
    by_image = {image_id: rows.set_index("method") for image_id, rows in mine.groupby("image_id", sort=False)}
    names = attribute_of(job.dataset, "classes")
    grid = plan.settings["grid"]
    for pixels, targets, image_ids in batches(job.dataset, job.indices, batch_size_of(plan, job)):
        images = pixels.to(plan.device).contiguous(memory_format=plan.layout_of(job))  # (B, 3, H, W)
        with autocast(plan):
            methods = methods or tried(job.create_methods(model, list(job.methods)), Batch(images, targets.to(plan.device), image_ids))
            maps = shared_maps(methods, images, targets.to(plan.device), image_ids)
            with torch.inference_mode(), frozen(model):
                logits = model(images).float().cpu()  # (B, K)
        shown = {name: values[:, 0].float().cpu().numpy() for name, values in maps.items()}  # (B, H, W) each
        for row, (image_id, target) in enumerate(zip(image_ids, targets.tolist(), strict=True)):
            predicted = int(logits[row].argmax())
            classes = [names[each] if names else str(each) for each in (target, predicted)]
            decision = *classes, float(logits[row, target]), float(logits[row, predicted])
            drops = np.asarray(by_image[image_id]["drops"].iloc[0]).reshape(grid, grid)
            maps = {name: values[row] for name, values in shown.items()}
            score = SCORES[plan.protocol.name] + " (distilled)" * job.distilled
            picture = picture_of(job, pixels[row], normalisation)
            yield Example(job.model, job.seed, plan.dataset, image_id, *decision, picture, drops, by_image[image_id], maps, score)


def attribute_of(dataset: Any, name: str) -> Any:
    """Return an attribute of a data set, or of the data set that it wraps (the engine wraps a user's); None if neither has it."""
    while dataset is not None:
        if (value := getattr(dataset, name, None)) is not None:
            return value
        dataset = getattr(dataset, "dataset", None)
    return None


def pictures(images: Tensor, normalisation: Normalisation | None) -> np.ndarray:
    """Undo the normalisation of images (..., 3, H, W), -> (..., H, W, 3) in [0, 1]."""
    shown = images if normalisation is None else normalisation.invert(images)
    return shown.clamp(0, 1).movedim(-3, -1).cpu().numpy()


def picture_of(job: Job, image: Tensor, normalisation: Normalisation | None) -> np.ndarray:
    """Return an image (3, H, W) for display. Raises ValueError if it leaves [0, 1] once the normalisation is undone."""
    normalisation = normalisation or attribute_of(job.dataset, "normalisation")
    shown = image if normalisation is None else normalisation.invert(image)
    low, high = float(shown.min()), float(shown.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"an image of {getattr(job.dataset, 'name', 'the data set')!r} goes from {low:.3g} to {high:.3g} and not from 0 to 1: "
            "pass its normalisation="
        )
    return pictures(shown, None)


def score_table(examples: Sequence[Example]) -> pd.DataFrame:
    """Return one row per model, seed, image and method: classes, logits and score."""
    rows = []
    for example in examples:
        names = ("model", "seed", "image_id", "target", "prediction", "target_logit", "prediction_logit")
        identity = {name: getattr(example, name) for name in names}
        rows += [{**identity, "method": method, "score": score} for method, score in example.records["score"].items()]
    return pd.DataFrame(rows)


def best(table: pd.DataFrame) -> str:
    """Count the images on which each method scores highest, from a table of :func:`score_table`; ties go to the first."""
    scores = table.pivot(index=["model", "seed", "image_id"], columns="method", values="score").dropna(how="all")
    wins = scores.idxmax(axis=1).value_counts()
    counts = listed(f"{method} on {count}" for method, count in wins.items())
    return f"Highest score on {len(scores)} images with a defined score: {counts}."


def patch_table(examples: Sequence[Example]) -> pd.DataFrame:
    """Return one row per model, seed, image and patch (row-major, from 0): the drop, and a column of patch sums per method (six digits)."""
    parts = []
    for example in examples:
        n = example.drops.size
        identity = {"model": example.model, "seed": example.seed, "image_id": example.image_id, "patch": range(n)}
        columns = {"drop": example.drops.ravel(), **example.records["patch_sums"]}
        parts.append(pd.DataFrame({**identity, **{name: [f"{value:.6g}" for value in values] for name, values in columns.items()}}))
    return pd.concat(parts, ignore_index=True)


def disagreement(examples: Sequence[Example]) -> float:
    """Return the largest difference between a map's patch sums and the recorded ones, as a fraction of the map's sum of |attribution|.

    Float rounding gives about 1e-6; infinite if only one of the two is finite.
    """
    worst = 0.0
    for example in examples:
        for name, shown in example.maps.items():
            mine = patch_sums(torch.from_numpy(np.ascontiguousarray(shown))[None, None], len(example.drops))[0].numpy()
            recorded = np.asarray(example.records.loc[name, "patch_sums"])
            if not np.array_equal(np.isfinite(mine), np.isfinite(recorded)):
                return float("inf")
            finite = np.isfinite(mine)
            difference = np.abs(mine - recorded)[finite].max(initial=0.0)
            worst = max(worst, float(difference / max(np.abs(shown[np.isfinite(shown)]).sum(), 1e-30)))
    return worst


class Gallery(EvaluationStudy):
    """Show a few images, the effect of deleting their patches, and the maps of many methods side by side."""

    SCOPED = False

    def _run(self, progress: bool) -> Result:
        examples = explain(**self.arguments(), progress=progress)
        tables = {"": score_table(examples), "patches": patch_table(examples)}
        return Result(self.stem, tables, Findings([best(tables[""])]), lambda: plots.gallery(examples, columns=self.columns), examples)
