"""Explore a run image by image: which images a method explains worst and best, and what its maps look like there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from idsds.studies.explore.explorer import Explorer
from idsds.studies.explore.source import Source

__all__ = ["Explorer", "explore"]


def explore(
    records: pd.DataFrame | str | Path,
    *,
    models: Mapping[str, nn.Module] | None = None,
    methods: Mapping[str, Any] | None = None,
    dataset: Any = None,
    **arguments: Any,
) -> Explorer:
    """Explore records image by image: as the last line of a cell it shows itself, with controls in JupyterLab.

    Args:
        records: from :func:`idsds.evaluate`, or the folder of a run, of which one model is read at a time.
        models: your own nets, by their names in the records. Nets of the package are found in its cache; nothing is trained.
        methods: your own methods, or those with other options, by their names in the records, as for :func:`idsds.evaluate`.
        dataset: your own data set, if the records are of one.
        arguments: further arguments that :func:`idsds.evaluate` was given and that records do not hold: ``checkpoints``, ``split``,
            ``normalisation``, ``device``.

    Where a net, a method or an image is not there, a line says so and what to pass; patch sums, ranks and scores are those of the records.

    Raises:
        FileNotFoundError, OldRecordsError, DamagedFileError: as :func:`idsds.load_records` does.
        UnknownNameError: a model or method that the records do not hold.
        ValueError: a frame that is not of one protocol, data set and setting.
    """
    return Explorer(Source(records, models or {}, methods or {}, dataset, **arguments))
