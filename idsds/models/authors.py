"""Checkpoints of the paper's authors: their file names, where they are expected, and which are there.

Hesse, Schaub-Meyer and Roth (NeurIPS 2024) link to them from https://github.com/visinf/idsds: ImageNet models, fine-tuned in-domain with
a 4 x 4 grid and the baseline ``zeros``.
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
#: File name prefixes that differ from the model's name.
NAMES = {"x_resnet50": "xresnet50", "x_vgg16": "xvgg16"}
#: What the checkpoints were fine-tuned for.
SETTINGS = {"grid": 4, "baseline": "zeros"}


def folder() -> Path:
    """Return the folder of the authors' checkpoints, ``IDSDS_CHECKPOINTS`` or ``checkpoints/``."""
    return paths.resolve(os.environ.get("IDSDS_CHECKPOINTS", "checkpoints"))


def file_of(model: str) -> Path:
    """Return the path at which a model's checkpoint is expected, whether or not it exists."""
    return folder() / f"{NAMES.get(model, model)}{ENDING}"


def listing(models: list[str]) -> pd.DataFrame:
    """List the checkpoints of models.

    Returns:
        One row per model: ``model``, ``file``, ``megabytes`` (NaN if missing), ``sha256``, and ``check``: ``missing``; ``as written`` or
        ``differs``, compared with the ``.sha256`` file beside it (in the format of ``sha256sum``); or ``nothing to compare with``, since
        the authors publish no hashes.
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
