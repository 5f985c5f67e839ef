"""A few images explained by many methods: what :func:`idsds.plots.gallery` draws.

Scores, patch sums and deletion drops are the engine's own records. The maps, which records do not hold, are computed anew with the same
weights, seeds and image ids; :func:`disagreement` says how far their patch sums are from the recorded ones.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from idsds.common.normalisation import Normalisation
from idsds.common.registry import UnknownNameError
from idsds.evaluation.arguments import make_plan
from idsds.evaluation.evaluate import evaluate
from idsds.evaluation.plan import Job, Plan
from idsds.evaluation.run import autocast
from idsds.evaluation.run import batch_size as batch_size_of
from idsds.methods.base import shared_maps
from idsds.models.base import frozen
from idsds.protocols.single_deletion import patch_sums
from idsds.training.loop import batches

# Protocols whose records hold drops and patch sums, and what their score is called.
SCORES = {"idsds": "IDSDS", "single_deletion": "SDS"}


@dataclass(frozen=True, eq=False)
class Example:
    """One image as one model sees it, with the maps of all methods that apply.

    Args:
        model, seed, dataset, image_id: which.
        target, prediction: names of the classes.
        target_logit, prediction_logit: their logits on the intact image.
        picture: (H, W, 3) in [0, 1].
        drops: (grid, grid), how much the target's logit falls when a patch is deleted; the engine's record.
        records: the engine's records of this image, indexed by method; ``score`` and ``patch_sums`` (grid * grid,) are used.
        maps: by method the signed map (H, W), summed over channels.
        score: what the score is called.
    """

    model: str
    seed: int
    dataset: str
    image_id: str
    target: str
    prediction: str
    target_logit: float
    prediction_logit: float
    picture: np.ndarray
    drops: np.ndarray
    records: pd.DataFrame
    maps: Mapping[str, np.ndarray]
    score: str = "IDSDS"


def explain(
    models: Sequence[str] | Mapping[str, nn.Module],
    methods: Sequence[str] | Mapping[str, Any],
    dataset: str | Dataset = "mnist5k",
    images: int = 4,
    grid: int = 4,
    baseline: str = "zeros",
    seed: int | Sequence[int] = 0,
    output: str | Path | None = None,
    *,
    protocol: str = "idsds",
    normalisation: Normalisation | None = None,
    device: str = "auto",
    precision: str = "32-true",
    checkpoints: Mapping[str, str | Path] | None = None,
    batch_size: int | None = None,
    progress: bool = True,
) -> list[Example]:
    """Score a few images, and keep their maps.

    Args:
        models, methods, dataset, images, grid, baseline, seed, output: as in :func:`idsds.evaluate`, which computes the scores.
        protocol: ``idsds`` or ``single_deletion``.
        normalisation: what the images of a data set of your own went through, so that they can be shown; None: its attribute
            ``normalisation``, or nothing where it has none. Its attribute ``classes``, where it has one, gives the names of the classes.
        device, precision, checkpoints, batch_size, progress: as in :func:`idsds.evaluate`.

    Returns:
        One example per model, training seed and image, the images in their fixed order.

    Raises:
        UnknownNameError: an unknown name, with the nearest match.
        ValueError: images that are not in [0, 1] once the normalisation is undone, and whatever else :func:`idsds.evaluate` refuses.
    """
    if protocol not in SCORES:
        raise UnknownNameError("protocol with deletion drops and patch sums", protocol, SCORES)
    machine: dict[str, Any] = {"device": device, "precision": precision, "checkpoints": checkpoints or {}, "batch_size": batch_size}
    deletion = {"grid": grid, "baseline": baseline}
    seeds = [seed] if isinstance(seed, int) else list(seed)
    plan = make_plan(models, methods, dataset, protocol, images, seeds, shard=images, settings=deletion, **machine)
    for job in plan.jobs:
        _picture(job, job.dataset[job.indices[0]][0], normalisation)  # a wrong normalisation ends the run before any work is done
    # One shard, so that the batches here are the batches there.
    records = evaluate(
        models, methods, dataset, protocol, images, seed=seeds, output=output, progress=progress, shard=images, **deletion, **machine
    )
    return [example for job in plan.jobs for example in _examples(plan, job, records, normalisation)]


def _examples(plan: Plan, job: Job, records: pd.DataFrame, normalisation: Normalisation | None) -> Iterator[Example]:
    model = job.load().to(plan.device, memory_format=plan.layout)
    methods = job.create_methods(model, list(job.methods))
    mine = records[(records["model"] == job.model) & (records["seed"] == job.seed)]
    by_image = {image_id: rows.set_index("method") for image_id, rows in mine.groupby("image_id", sort=False)}
    names = _told(job.dataset, "classes")
    grid = plan.settings["grid"]
    for pixels, targets, image_ids in batches(job.dataset, job.indices, batch_size_of(plan, job)):
        images = pixels.to(plan.device).contiguous(memory_format=plan.layout)  # (B, 3, H, W)
        with autocast(plan):
            maps = shared_maps(methods, images, targets.to(plan.device), image_ids)
            with torch.inference_mode(), frozen(model):
                logits = model(images).float().cpu()  # (B, K)
        shown = {name: values[:, 0].float().cpu().numpy() for name, values in maps.items()}  # (B, H, W) each
        for row, (image_id, target) in enumerate(zip(image_ids, targets.tolist(), strict=True)):
            predicted = int(logits[row].argmax())
            yield Example(
                model=job.model,
                seed=job.seed,
                dataset=plan.dataset,
                image_id=image_id,
                target=names[target] if names else str(target),
                prediction=names[predicted] if names else str(predicted),
                target_logit=float(logits[row, target]),
                prediction_logit=float(logits[row, predicted]),
                picture=_picture(job, pixels[row], normalisation),
                drops=np.asarray(by_image[image_id]["drops"].iloc[0]).reshape(grid, grid),
                records=by_image[image_id],
                maps={name: values[row] for name, values in shown.items()},
                score=SCORES[plan.protocol.name],
            )


def _told(dataset: Any, name: str) -> Any:
    """What a data set says of itself, or else the one that it wraps (the engine wraps the user's); None where neither does."""
    while dataset is not None:
        if (value := getattr(dataset, name, None)) is not None:
            return value
        dataset = getattr(dataset, "dataset", None)
    return None


def _picture(job: Job, image: Tensor, normalisation: Normalisation | None) -> np.ndarray:
    """(3, H, W), normalised, as (H, W, 3) in [0, 1]."""
    normalisation = normalisation or _told(job.dataset, "normalisation")
    picture = image if normalisation is None else normalisation.invert(image)
    low, high = float(picture.min()), float(picture.max())
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(
            f"an image of {getattr(job.dataset, 'name', 'the data set')!r} goes from {low:.3g} to {high:.3g} and not from 0 to 1: "
            "say with normalisation= what it went through"
        )
    return picture.clamp(0, 1).permute(1, 2, 0).cpu().numpy()


def score_table(examples: Sequence[Example]) -> pd.DataFrame:
    """One row per model, seed, image and method: classes, logits and score."""
    rows = []
    for example in examples:
        names = ("model", "seed", "image_id", "target", "prediction", "target_logit", "prediction_logit")
        identity = {name: getattr(example, name) for name in names}
        rows += [{**identity, "method": method, "score": score} for method, score in example.records["score"].items()]
    return pd.DataFrame(rows)


def headline(examples: Sequence[Example]) -> str:
    """One sentence: how often each method explains an image best, among the images with a defined score."""
    scores = score_table(examples).pivot(index=["model", "seed", "image_id"], columns="method", values="score")
    scores = scores.dropna(how="all")
    wins = scores.idxmax(axis=1).value_counts()
    shares = ", ".join(f"{method} on {count}" for method, count in wins.items())
    return f"Of {len(scores)} pictures the highest score is that of {shares}."


def patch_table(examples: Sequence[Example]) -> pd.DataFrame:
    """One row per model, seed, image and patch (row-major, from 0): the drop, and a column of patch sums per method, with six digits."""
    parts = []
    for example in examples:
        n = example.drops.size
        identity = {"model": example.model, "seed": example.seed, "image_id": example.image_id, "patch": range(n)}
        columns = {"drop": example.drops.ravel(), **example.records["patch_sums"]}
        parts.append(pd.DataFrame({**identity, **{name: [f"{value:.6g}" for value in values] for name, values in columns.items()}}))
    return pd.concat(parts, ignore_index=True)


def disagreement(examples: Sequence[Example]) -> float:
    """The largest difference between the patch sums of a map and those in the records, as a share of the map's sum of |attribution|.

    Float rounding is about 1e-6; infinite where one of the two is not finite and the other is.
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
