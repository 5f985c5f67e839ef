"""The number of images that the models of a run classify correctly."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from idsds.evaluation.records import Run


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
