"""The checkpoints of the paper's authors: their names, where they are looked for, and what is in the folder.

Hesse, Schaub-Meyer, Roth, NeurIPS 2024, link them from https://github.com/visinf/idsds: nets on ImageNet, fine-tuned in-domain on a grid of
4 with the baseline ``zeros``.
"""

from __future__ import annotations

import os
from pathlib import Path

import pandas as pd

from idsds.common import paths
from idsds.common.files import sha256_of
from idsds.models.weights import written_hash

REPOSITORY = "https://github.com/visinf/idsds"
ENDING = "_imagenet1000_lr0.001_epochs30_step10_checkpoint_best.pth.tar"
#: The beginning of a file's name, where it is not the model's.
NAMES = {"x_resnet50": "xresnet50", "x_vgg16": "xvgg16"}
#: What the checkpoints were fine-tuned for.
SETTINGS = {"grid": 4, "baseline": "zeros"}


def folder() -> Path:
    """Return the folder of the authors' checkpoints, ``IDSDS_CHECKPOINTS`` or ``checkpoints/``."""
    return paths.resolve(os.environ.get("IDSDS_CHECKPOINTS", "checkpoints"))


def file_of(model: str) -> Path:
    """Return where the authors' checkpoint of a model is looked for, whether it is there or not."""
    return folder() / f"{NAMES.get(model, model)}{ENDING}"


def listing(models: list[str]) -> pd.DataFrame:
    """Look for the checkpoints of models.

    Returns:
        One row per model: ``model``, ``file``, ``megabytes`` (NaN where there is none), ``sha256``, and ``check``: ``missing``,
        ``as written`` or ``differs`` by the ``.sha256`` file beside it (as ``sha256sum`` writes), or ``nothing to compare with``: the
        authors print none.
    """
    rows = []
    for model in models:
        path = file_of(model)
        row = {"model": model, "file": path.name, "megabytes": float("nan"), "sha256": "", "check": "missing"}
        if path.is_file():
            found, expected = sha256_of(path), written_hash(path)
            check = "as written" if expected == found else "differs" if expected else "nothing to compare with"
            row |= {"megabytes": path.stat().st_size / 1e6, "sha256": found, "check": check}
        rows.append(row)
    return pd.DataFrame(rows)
