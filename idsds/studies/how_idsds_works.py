"""IDSDS of one image, step by step: the deletions, the drops, the patch sums, their ranks and the rank correlation.

Everything is computed here step by step, one deleted image at a time, and compared with the engine's records.

Source: Hesse, Schaub-Meyer, Roth, NeurIPS 2024 (arXiv 2407.11910), figure 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from scipy.stats import rankdata

from idsds import plots
from idsds.common.interventions import all_deletions, baseline_images
from idsds.models.base import frozen
from idsds.studies.base import EvaluationStudy, Findings, ModelName, Result, resolve
from idsds.studies.gallery import explain, pictures
from idsds.studies.result import listed


def delete_each(arguments: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Delete each patch of the last image alone: return these images (n, H, W, 3) in [0, 1], row-major, and the target's logits (n,).

    ``arguments`` are those of :func:`idsds.evaluate`, with one model and one training seed.
    """
    plan = resolve(**arguments)
    (job,) = plan.jobs
    image, target, image_id = job.dataset[job.indices[-1]]  # (3, H, W)
    image = image[None].to(plan.device)
    replacement = baseline_images(image, arguments["baseline"], seed=job.seed, image_ids=[image_id])
    deleted = all_deletions(image, replacement, arguments["grid"])[0]  # (n, 3, H, W)
    model = job.load().to(plan.device)
    with torch.inference_mode(), frozen(model):
        logits = [float(model(one[None])[0, target]) for one in deleted]
    return pictures(deleted, getattr(job.dataset, "normalisation", None)), np.array(logits)


def patch_table(intact: float, logits: np.ndarray, sums: Sequence[float]) -> pd.DataFrame:
    """Compute one method's correlation patch by patch.

    Args:
        intact: the target's logit of the intact image.
        logits: (n,), each patch deleted.
        sums: (n,), the attribution of each patch.

    Returns:
        One row per patch (row-major, from 0): ``logit`` of the target with the patch deleted, ``drop``, ``rank of drop`` (1 is the
        smallest), ``patch sum`` of attribution, ``rank of sum``, ``difference`` of the ranks and its ``square``.
    """
    drop, sums = intact - logits, np.asarray(sums, dtype=float)
    columns = {"logit": logits, "drop": drop, "rank of drop": rankdata(drop), "patch sum": sums, "rank of sum": rankdata(sums)}
    table = pd.DataFrame({"patch": range(len(sums)), **columns})
    difference = table["rank of drop"] - table["rank of sum"]
    return table.assign(difference=difference, square=difference**2)


def spearman(table: pd.DataFrame) -> float:
    """Correlate the two columns of ranks (Pearson); without ties it is 1 - 6 sum d^2 / (n (n^2 - 1)). NaN for a constant column."""
    first, second = (table[name] - table[name].mean() for name in ("rank of drop", "rank of sum"))
    norm = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum() / norm) if norm else float("nan")


def sentences(target: str, table: pd.DataFrame, scores: pd.DataFrame) -> list[str]:
    """State which patch matters most, how often the logit rises, and the rank correlations.

    Args:
        scores: a row per method with ``by_hand``, the correlation.
    """
    n, most = len(table), table["drop"].idxmax()
    row, column = divmod(int(table["patch"][most]), round(n**0.5))
    correlations = listed(f"{score.method} {score.by_hand:+.3f}" for score in scores.itertuples())
    return [
        f"The patch in row {row + 1}, column {column + 1} matters most: without it the logit of {target!r} falls by"
        f" {table['drop'][most]:.2f} to {table['logit'][most]:.2f}.",
        f"The logit rises without {int((table['drop'] < 0).sum())} of the {n} patches.",
        f"Rank correlation of the drops with the patch sums: {correlations}.",
    ]


class HowIdsdsWorks(EvaluationStudy):
    """Compute IDSDS step by step for one image, the last of the first ``images``, on one model."""

    SCOPED = False

    models: Annotated[list[ModelName], Field(min_length=1, max_length=1)]
    seeds: Annotated[list[int], Field(min_length=1, max_length=1)] = [0]

    def _run(self, progress: bool) -> Result:
        example = explain(**self.arguments(), progress=progress)[-1]
        deleted, logits = delete_each(self.arguments())
        patches = {name: patch_table(example.target_logit, logits, row["patch_sums"]) for name, row in example.records.iterrows()}
        facts = {"target": example.target, "prediction": example.prediction, "intact_logit": example.target_logit}
        rows = [{"method": name, **facts, "squares": t["square"].sum(), "by_hand": spearman(t)} for name, t in patches.items()]
        scores = pd.DataFrame(rows).assign(recorded=example.records["score"].to_numpy(float))
        draw = partial(plots.how_idsds_works, example, deleted, patches, scores, columns=self.columns)
        first, *rest = patches
        tables = {"": patches[first], **{name.replace(" ", "_"): patches[name] for name in rest}, "scores": scores}
        return Result(self.stem, tables, Findings(sentences(example.target, patches[first], scores)), draw, example)
