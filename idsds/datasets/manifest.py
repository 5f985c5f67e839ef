"""Manifests: lists of a data set's images, which define the same subset for every model, method and machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pandas as pd

from idsds.common import paths
from idsds.datasets.base import ImageDataset, fixed_order

COLUMNS = ["image_id", "target", "class"]


def manifest(dataset: ImageDataset, images: int | None = None) -> pd.DataFrame:
    """Return a table (``image_id``, ``target``, ``class``) of a data set's first ``images`` in its fixed order; None for all.

    Raises:
        ValueError: if ``images`` is below 1 or above the number of images.
    """
    if images is not None and not 1 <= images <= len(dataset):
        raise ValueError(f"images must be in 1..{len(dataset)} for {dataset.name!r} ({dataset.split}), not {images}")
    order = fixed_order(dataset.image_ids)[:images]
    rows = [(dataset.image_ids[i], dataset.targets[i], dataset.classes[dataset.targets[i]]) for i in order]
    return pd.DataFrame(rows, columns=COLUMNS)


def write_manifest(dataset: ImageDataset, path: str | os.PathLike[str], images: int | None = None) -> Path:
    """Write :func:`manifest` as ``.csv`` or, with the data set's name, split and number of images, as ``.json``.

    Raises:
        ValueError: for any other file extension.
    """
    path, table = _checked(path), manifest(dataset, images)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        content = {"dataset": dataset.name, "split": dataset.split, "count": len(table), "images": table.to_dict("records")}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path


def read_manifest(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Read a file from :func:`write_manifest`.

    Raises:
        FileNotFoundError, ValueError: if the file or a column is missing; the message names it.
    """
    path = _checked(path)
    table = (
        pd.read_csv(path, dtype={"image_id": str, "class": str}, keep_default_na=False)
        if path.suffix == ".csv"
        else pd.DataFrame(json.loads(path.read_text(encoding="utf-8"))["images"])
    )
    if lacking := [column for column in COLUMNS if column not in table]:
        raise ValueError(f"manifest {str(path)!r} lacks the columns {lacking}; it has {list(table)}")
    return table


def select(dataset: ImageDataset, path: str | os.PathLike[str]) -> ImageDataset:
    """Select a manifest's images, in its order.

    Raises:
        ValueError: if the data set lacks an image or has another target for it; the message names the first.
    """
    table, index = read_manifest(path), {image_id: number for number, image_id in enumerate(dataset.image_ids)}
    if absent := [image_id for image_id in table["image_id"] if image_id not in index]:
        lacking = f"{len(absent)} images that {dataset.name!r} ({dataset.split}) does not have, the first is {absent[0]!r}"
        raise ValueError(f"manifest {str(path)!r} lists {lacking}")
    chosen = dataset.subset([index[image_id] for image_id in table["image_id"]])
    for image_id, here, there in zip(chosen.image_ids, chosen.targets, table["target"], strict=True):
        if here != there:
            raise ValueError(f"manifest {str(path)!r}: image {image_id!r} has target {there}, in {dataset.name!r} it has {here}")
    return chosen


def _checked(path: str | os.PathLike[str]) -> Path:
    path = paths.resolve(path)
    if path.suffix not in (".csv", ".json"):
        raise ValueError(f"a manifest ends in .csv or .json, not {path.suffix!r}: {str(path)!r}")
    return path
