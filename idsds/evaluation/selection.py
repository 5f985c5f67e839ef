"""Selections of images for fair comparisons: the same for every method and model, or the correctly classified ones."""

from __future__ import annotations

import pandas as pd

from idsds.common.registry import check_name

CORRECT = "correct"


def select_images(records: pd.DataFrame, only: str | None = None, common: bool = False) -> pd.DataFrame:
    """Return the records of the images to compare.

    Args:
        records: from :func:`idsds.evaluate`; ``only`` needs the column ``prediction``, which IDSDS and single deletion have.
        only: ``correct`` keeps, for each model (and training seed), the images that it classifies correctly; None keeps all.
        common: keep the images on which every method of every model has a defined score and, with ``only``, every model is right.

    Returns:
        The selected rows of ``records``, unchanged; :func:`images_said` describes the selection.

    Raises:
        UnknownNameError: for an unknown ``only``.
        ValueError: if there are no predictions, if the prediction was explained rather than the label, or if no image is left.
    """
    if only is not None:
        check_name("choice of images", only, (CORRECT,))
        if "prediction" not in records or records["prediction"].isna().any():
            raise ValueError("only='correct' needs the models' predictions, which the records of idsds and single_deletion have")
        if "explained" in records:
            raise ValueError("only='correct' needs the labels, but these records explain the predictions: evaluate with target='label'")
    kept = records if only is None else records[records["prediction"] == records["target"]]
    if common:
        keys = [name for name in ("model", "method", "seed", "grid") if name in records]
        expected = len(records[keys].drop_duplicates())
        counts = kept.loc[kept["score"].notna(), "image_id"].value_counts()
        kept = kept[kept["image_id"].isin(counts.index[counts == expected])]
    if kept.empty and len(records):
        raise ValueError(f"no image is left of {records['image_id'].nunique()}: {images_said(records, kept, only, common)}")
    return kept


def images_said(records: pd.DataFrame, kept: pd.DataFrame, only: str | None, common: bool) -> str:
    """Describe which images of ``records`` are kept, for axes and findings; an empty string if all are."""
    if only is None and not common:
        return ""
    which = {
        (CORRECT, True): "every method is defined and every model right",
        (CORRECT, False): "its model is right",
        (None, True): "every method of every model is defined",
    }[only, common]
    if kept.empty or common:
        return f"the {kept['image_id'].nunique()} of {records['image_id'].nunique()} images on which {which}"
    counts = kept.groupby("model", sort=False)["image_id"].nunique()
    return f"{counts.min()} to {counts.max()} of {records['image_id'].nunique()} images, on which {which}"
