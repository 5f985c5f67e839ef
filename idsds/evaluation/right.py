"""The number of images that the models of a run classify correctly, and whether that is better than guessing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from scipy.stats import binom

from idsds.evaluation.plan import Plan
from idsds.evaluation.records import Run

#: Fewer images say too little about a net's accuracy.
ENOUGH = 50


def images_right(run: Run, ledger: pa.Table) -> dict[str, Any]:
    """Count the images that each model classifies correctly, those on which every method is defined, and those with both for all models."""
    content, right = run.content(), []
    known = not content.predicted and all("prediction" in part.columns for part in content.prepared)
    for part in content.prepared if known else ():  # with target="prediction" there are no labels to compare with
        table = part.load(["prediction"])
        places = table["image"].to_numpy()
        good = places[table["prediction"].to_numpy() == content.targets[places]]
        right.append((part.model, part.seed, part.grid, {content.image_ids[place] for place in good}))
    defined = set(content.image_ids) - set(ledger["image_id"].to_pylist())
    common = defined.intersection(*(images for *_, images in right)) if right else None
    models = [{"model": model, "seed": seed, "grid": grid, "images": len(images)} for model, seed, grid, images in right]
    return {"models": models, "defined": len(defined), "common": None if common is None else len(common)}


def guesses(plan: Plan, records: pd.DataFrame | Path) -> Iterator[str]:
    """Yield a warning for each net of the user's, or on the user's images, that predicts their labels no better than by guessing."""
    for job in plan.jobs if plan.target == "label" else ():
        classes = job.facts.classes if job.facts else getattr(job.dataset, "num_classes", None) if job.own_images else None
        counts = _counts(records, job.model, job.seed) if classes else None
        if counts is None or counts[1] < ENOUGH or binom.sf(counts[0] - 1, counts[1], 1 / classes) < 0.05:
            continue
        yield (
            f"model {job.model!r} predicts the label of {counts[0]} of {counts[1]} images, no better than guessing among its {classes} "
            "classes: are the labels its class indices, counted from the same number, and the images normalised as it expects?"
        )


def _counts(records: pd.DataFrame | Path, model: str, seed: int) -> tuple[int, int] | None:
    """Return how many images a model classifies correctly, and of how many; None if the records do not say."""
    if isinstance(records, Path):
        run = Run.open(records)
        right = [each["images"] for each in run.manifest["right"]["models"] if (each["model"], each["seed"]) == (model, seed)]
        return (right[0], len(run.content().image_ids)) if right else None
    if "prediction" not in records.columns:
        return None
    own = records[(records["model"] == model) & (records["seed"] == seed)].drop_duplicates("image_id")
    return int((own["prediction"] == own["target"]).sum()), len(own)
