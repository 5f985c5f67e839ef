"""Explore a run image by image: a method's worst and best images, and its maps there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from idsds.studies.explore.explorer import Explorer
from idsds.studies.explore.source import Source


def explore(
    records: pd.DataFrame | str | Path,
    *,
    models: Mapping[str, nn.Module] | None = None,
    methods: Mapping[str, Any] | None = None,
    dataset: Any = None,
    **arguments: Any,
) -> Explorer:
    """Explore records image by image: as the last line of a cell it displays itself, with controls in JupyterLab.

    Args:
        records: from :func:`idsds.evaluate`, or a run's folder, which is read one model at a time.
        models: your own nets, by their names in the records. The package's nets come from its cache; nothing is trained.
        methods: your own methods, or those with other options, by their names in the records, as for :func:`idsds.evaluate`.
        dataset: your own data set, if the records are of one.
        arguments: further arguments that :func:`idsds.evaluate` was given and that records do not hold: ``checkpoints``, ``split``,
            ``normalisation``, ``device``.

    If a net, method or image is missing, a line says so and what to pass; patch sums, ranks and scores come from the records.

    Raises:
        FileNotFoundError, OldRecordsError, DamagedFileError: see :func:`idsds.load_records`.
        UnknownNameError: for a model or method that the records do not hold.
        ValueError: if a frame is not of one protocol, data set and setting.
    """
    return Explorer(Source(records, models or {}, methods or {}, dataset, **arguments))
