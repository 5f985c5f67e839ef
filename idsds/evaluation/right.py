"""How many images the models of a run get right."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from idsds.evaluation.records import Run


def images_right(run: Run, ledger: pa.Table) -> dict[str, Any]:
    """How many images each model gets right, where its predictions are known; on how many all methods are defined, and all models right."""
    content, right = run.content(), []
    for part in content.prepared if all("prediction" in part.columns for part in content.prepared) else ():
        names = ["prediction", *(["target"] if content.predicted else [])]
        table = part.load(names)
        places = table["image"].to_numpy()
        targets = table["target"].to_numpy() if content.predicted else content.targets[places]
        good = places[table["prediction"].to_numpy() == targets]
        right.append((part.model, part.seed, part.grid, {content.image_ids[place] for place in good}))
    defined = set(content.image_ids) - set(ledger["image_id"].to_pylist())
    common = defined.intersection(*(images for *_, images in right)) if right else None
    models = [{"model": model, "seed": seed, "grid": grid, "images": len(images)} for model, seed, grid, images in right]
    return {"models": models, "defined": len(defined), "common": None if common is None else len(common)}
