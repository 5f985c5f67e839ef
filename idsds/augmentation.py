"""Robustness of attribution methods to rotations and photo filters: what :func:`idsds.plots.augmentation_robustness` draws.

Source: the robustness experiment "Don't Augment Me" of the xai-correlation study.
"""

from __future__ import annotations

from typing import Annotated, Any, get_args

import pandas as pd
from pydantic import Field

from idsds.benchmark import evaluate
from idsds.protocols.robustness import ANGLES, FILTERS, Filters, Group, Similarity
from idsds.settings import RunSettings
from idsds.statistics import rank

MEASURES = get_args(Similarity)
TIED = 1e-3  # of a measure: methods that are no farther below the best share its place
AUGMENTATIONS: dict[str, list[str]] = {"rotations": [f"{angle:+.0f} degrees" for angle in ANGLES], "filters": list(FILTERS)}


class AugmentationSettings(RunSettings):
    """What the notebook ``augmentation_robustness`` takes: a run, and the augmentations.

    ``data_range`` is that of SSIM: one number for the whole experiment, as in the study, or None for each pair of maps its own.
    """

    groups: Annotated[list[Group], Field(min_length=1)] = ["rotations", "filters"]
    filters: Filters = "torchvision"
    threshold: Annotated[float, Field(gt=0, le=1)] = 0.05
    top_share: Annotated[float, Field(gt=0, le=1)] = 0.05
    data_range: Annotated[float, Field(gt=0)] | None = None

    @property
    def ssim_range(self) -> str:
        """In words, the data range of SSIM."""
        return "of each pair of maps" if self.data_range is None else f"{self.data_range:g} for all maps"

    def runs(self) -> list[dict[str, Any]]:
        """What to call :func:`idsds.evaluate` with, once per group of augmentations."""
        given = {**self.evaluate(), "protocol": "augmentation_robustness"}
        groups = given.pop("groups")
        return [{**given, "group": group, "output": f"{self.output}/{group}"} for group in groups]


def cost(settings: AugmentationSettings) -> pd.DataFrame:
    """What the run will do, one row per model, seed, group of augmentations and shared computation."""
    return pd.concat([evaluate(**run, dry_run=True).assign(group=run["group"]) for run in settings.runs()], ignore_index=True)


def measure(settings: AugmentationSettings) -> pd.DataFrame:
    """Do the runs, or read what is there, and average over images.

    Returns:
        One row per model, method, augmentation (and ``all rotations``, ``all filters``: the mean per image over those that count) and
        measure: ``mean``, ``low``, ``high``, ``count`` of the images that count, ``nan`` of those that do not (their target's probability
        moved by the threshold or more, the augmentation did nothing to them, or their map is constant), ``counted``, the share of the
        images that were changed and whose probability stayed, ``data_range`` of SSIM in words (empty for the other measures), ``family``
        and ``interval``, what it covers.
    """
    parts = []
    for run in settings.runs():
        records = evaluate(**run)
        shifts = pd.DataFrame(records["shifts"].tolist(), index=records.index)
        families = dict(zip(records["method"], records["family"], strict=True))
        plain = records[["model", "method", "seed", "image_id"]]
        names = [*AUGMENTATIONS[run["group"]], f"all {run['group']}"]
        for number, name in enumerate(names):
            stayed = shifts[number] < settings.threshold if number < len(names) - 1 else (shifts < settings.threshold).any(axis=1)
            for measure_name in MEASURES:
                each = records[measure_name] if number == len(names) - 1 else records[f"{measure_name}_each"].str[number]
                table = rank(plain.assign(score=each.astype(float)))
                facts = {"group": run["group"], "augmentation": name, "measure": measure_name, "counted": stayed.mean()}
                facts["data_range"] = settings.ssim_range if measure_name == "ssim" else ""
                counted = stayed.groupby(records["model"]).mean()
                parts.append(table.assign(**facts).assign(counted=table["model"].map(counted), family=table["method"].map(families)))
    found = pd.concat(parts, ignore_index=True)
    order = {name: number for number, name in enumerate(settings.methods)}
    columns = [
        "model",
        "method",
        "group",
        "augmentation",
        "measure",
        "mean",
        "low",
        "high",
        "count",
        "nan",
        "counted",
        "data_range",
        "family",
        "interval",
    ]
    return (
        found.sort_values("method", key=lambda names: names.map(order), kind="stable")
        .sort_values("model", key=lambda names: names.map(settings.models.index), kind="stable")[columns]
        .reset_index(drop=True)
    )


def _best(values: pd.Series, control: dict[str, bool]) -> str:
    """The methods at the top, those within :data:`TIED` of it as well, controls first: what ties with noise is not robust by merit."""
    top = values.index[values >= values.max() - TIED]
    return ", ".join(sorted(top, key=lambda name: not control[name]))


def findings(table: pd.DataFrame, published: pd.DataFrame) -> list[str]:
    """What the table says, in sentences whose numbers are computed.

    Args:
        table: from :func:`measure`.
        published: from :func:`idsds.published.xai_correlation_ssim`.
    """
    lines = []
    whole = table[table["augmentation"].str.startswith("all ")]
    for (model, group), rows in whole.groupby(["model", "group"], sort=False):
        by_measure = rows.pivot_table(index="method", columns="measure", values="mean", sort=False)
        counted = rows["counted"].iloc[0]
        ssim_range = rows.loc[rows["measure"] == "ssim", "data_range"].iloc[0]
        lines.append(f"{model}, {group}: {counted:.0%} of the images have an augmentation that leaves the target's probability alone.")
        known = by_measure.dropna()
        if len(known) > 1:
            control = dict(zip(rows["method"], rows["family"] == "control", strict=True))
            best = {name: _best(known[name], control) for name in MEASURES}
            agreement = known.corr("spearman").loc["ssim"]
            lines.append(
                f"{model}, {group}: most robust by SSIM (data range {ssim_range}) is {best['ssim']} "
                f"({known['ssim'].max():.2f}), by Spearman {best['spearman']} "
                f"({known['spearman'].max():.2f}), by the top pixels {best['top_intersection']} ({known['top_intersection'].max():.2f}). "
                f"SSIM orders the methods like Spearman to {agreement['spearman']:+.2f} and like the top pixels to "
                f"{agreement['top_intersection']:+.2f} (rank correlation over {len(known)} methods)."
            )
        theirs = published[published["augmentation"] == f"all {group}"].set_index("method")["ssim"].rename("published")
        both = by_measure.join(theirs, how="inner").dropna(subset=["ssim", "published"])
        if len(both) > 2:
            rho = both["ssim"].corr(both["published"], method="spearman")
            lines.append(
                f"{model}, {group}: over the {len(both)} methods that the study printed, our SSIM orders them like its SSIM to {rho:+.2f} "
                "(rank correlation)."
            )
    return lines
