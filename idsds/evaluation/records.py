"""Records of a run: one tidy frame, and a manifest that says how it came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor

from idsds.common import paths
from idsds.common.files import DamagedFileError, read_json, read_table, write_json
from idsds.common.hashing import versions
from idsds.datasets.base import ImageDataset
from idsds.protocols import PROTOCOLS

if TYPE_CHECKING:
    from idsds.evaluation.cache import Part, Shelf
    from idsds.evaluation.plan import Plan

MANIFEST = "manifest.json"
IDENTITY = ("model", "method", "seed", "image_id", "target", "dataset", "protocol", "family", "direction", "score")


def tidy(
    frames: Sequence[pd.DataFrame],
    models: Sequence[tuple[str, int]],
    methods: Sequence[str],
    direction: str,
    groups: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Frames of records as one, whatever shards they came in.

    Args:
        frames: of records, the images of each model and method in their fixed order.
        models: (model, seed) in the order wanted.
        methods: in the order wanted.
        direction: of the score, a column.
        groups: by image id, what an image belongs to, such as a photo that several are crops of; None for no such column.

    Returns:
        By model, seed, method and grid; what identifies a record first, then its score, then the rest.
    """
    records = pd.concat(frames, ignore_index=True).assign(direction=direction)
    if groups:
        records["group"] = records["image_id"].map(groups)
    place = {model: number for number, model in enumerate(models)}
    keys = pd.DataFrame(
        {
            "model": [place[pair] for pair in zip(records["model"], records["seed"], strict=True)],
            "method": records["method"].map({method: number for number, method in enumerate(methods)}),
            "grid": records.get("grid", 0),
        }
    )
    ordered = records.loc[keys.sort_values(["model", "method", "grid"], kind="stable").index]
    return ordered[[*IDENTITY, *(name for name in records.columns if name not in IDENTITY)]].reset_index(drop=True)


def load_records(output: str | Path) -> pd.DataFrame:
    """The records of a run, as :func:`idsds.evaluate` returned them.

    Args:
        output: the run's folder.

    Raises:
        FileNotFoundError: no run there, or one that is not complete.
        DamagedFileError: naming the file that cannot be read; starting the same run again computes that shard again.
    """
    folder = paths.resolve(output)
    if not (folder / MANIFEST).is_file():
        raise FileNotFoundError(f"no records in {str(folder)!r}: there is no {MANIFEST}")
    manifest = read_json(folder / MANIFEST)
    if manifest["status"] != "complete":
        raise FileNotFoundError(f"the run in {str(folder)!r} is not complete; start it again, it continues where it was")
    found = []
    for part in manifest["files"]:
        frame = read_table(folder / part["path"])[0]
        frame = frame[frame["method"].isin(part["methods"])]
        found.append(frame[frame["image_id"].isin(frame["image_id"].unique()[: part["images"]])])
    direction = manifest.get("direction") or PROTOCOLS[manifest["protocol"]].direction
    models = [(entry["model"], entry["seed"]) for entry in manifest["models"]]
    return tidy(found, models, manifest["methods"], direction, manifest.get("groups"))


class Files:
    """The files that a run's records and columns are in: which part of each belongs to the run, and what that took."""

    def __init__(self) -> None:
        self.entries: dict[str, list[dict[str, Any]]] = {"records": [], "prepared": []}

    def add_prepared(self, shelf: Shelf, path: Path, images: Mapping[str, str]) -> None:
        """Enter a file of columns."""
        self._enter("prepared", path.relative_to(shelf.folder), [part.only(images.keys()) for part in shelf.parts(path)], ())

    def add_records(self, shelf: Shelf, path: Path, images: Mapping[str, str], methods: Sequence[str]) -> pd.DataFrame:
        """Enter a file of records; its rows of these images and methods."""
        sheet = shelf.read(path).only(images.keys(), methods)
        self._enter("records", path.relative_to(shelf.folder), sheet.parts, methods)
        return sheet.frame

    def _enter(self, kind: str, path: Path, parts: Sequence[Part], methods: Sequence[str]) -> None:
        counts = {"images": sum(len(part.images) for part in parts)}
        passes = {name: round(sum(getattr(part, name) for part in parts)) for name in ("forward", "backward")}
        seconds = round(sum(part.seconds for part in parts), 3)
        self.entries[kind].append({"path": path.as_posix(), "methods": list(methods), **counts, **passes, "seconds": seconds})

    def total(self, what: str) -> float:
        """Of all files."""
        return sum(entry[what] for entries in self.entries.values() for entry in entries)


def begin_manifest(folder: Path, plan: Plan) -> None:
    """Mark the folder as that of a run that is not complete; what is complete stays so until there is a new manifest."""
    try:
        if read_json(folder / MANIFEST)["status"] == "complete":
            return
    except (DamagedFileError, KeyError, TypeError):
        pass
    write_manifest(folder, plan, "running")


def write_manifest(
    folder: Path, plan: Plan, status: str, records: pd.DataFrame | None = None, files: Files | None = None, seconds: float = 0.0
) -> None:
    """What was computed, how, from what, and what came out undefined.

    Args:
        folder: of the run.
        plan: what was announced.
        status: ``running`` or ``complete``.
        records: of a complete run.
        files: that they are in, and what each of them took, whenever and in whatever run that was.
        seconds: that this call took, with what it found done.
    """
    files = files or Files()
    content = {
        "status": status,
        "protocol": plan.protocol.name,
        "direction": plan.protocol.direction,
        "groups": plan.groups,
        "target": plan.target,
        "settings": {key: value for key, value in plan.settings.items() if not isinstance(value, Tensor)},
        "dataset": plan.dataset,
        "images": max(len(job.indices) for job in plan.jobs),
        "seeds": sorted({job.seed for job in plan.jobs}),
        "models": [{"model": job.model, "seed": job.seed, "weights": job.model_key} for job in plan.jobs if status == "complete"],
        "methods": plan.methods,
        "left_out": [{"model": job.model, "method": name, "why": why} for job in plan.jobs for name, why in job.excluded.items()],
        "device": plan.device,
        "precision": plan.precision,
        "channels_last": plan.channels_last,
        "compiled": plan.compiled,
        "versions": versions(),
        "passes": {
            "announced": plan.announced._asdict(),
            "counted": {"forward": files.total("forward"), "backward": files.total("backward")},
        },
        "seconds": {"passes": round(files.total("seconds"), 3), "this_call": round(seconds, 3)},
        "skipped": [] if records is None else skipped_images(plan, records),
        "undefined": [] if records is None else undefined_scores(records),
        "files": files.entries["records"],
        "prepared": files.entries["prepared"],
    }
    write_json(folder / MANIFEST, content)


def skipped_images(plan: Plan, records: pd.DataFrame) -> list[str]:
    """Ids of the images that were asked for and could not be read, so that they have no record; each run tries them again."""
    there = set(records["image_id"])
    asked = {job.dataset.image_ids[index]: None for job in plan.jobs if isinstance(job.dataset, ImageDataset) for index in job.indices}
    return [image_id for image_id in asked if image_id not in there]


def undefined_scores(records: pd.DataFrame) -> list[dict[str, Any]]:
    """The ledger of undefined scores: which image, which model and method, and why."""
    rows = records[records["score"].isna()]
    return [
        {"model": row.model, "method": row.method, "seed": int(row.seed), "image_id": row.image_id, "why": _why(row)}
        for row in rows.itertuples()
    ]


def _why(row: Any) -> str:
    if getattr(row, "counted", None) == 0:
        return "every augmentation moves the target's probability by the threshold or more, or leaves the image as it is"
    for what, name in (("attributions", "patch_sums"), ("drops", "drops")):
        values = getattr(row, name, None)
        if values is None:
            continue
        if not np.isfinite(values).all():
            return f"{what} that are not finite"
        if np.ptp(values) == 0:
            return f"{what} that are equal for all patches"
    return "undefined"
