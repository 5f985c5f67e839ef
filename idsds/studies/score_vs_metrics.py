"""Each image's probability against the infidelity and max-sensitivity of its maps: are maps for confident predictions better?

The xai-correlation study (burnpiro/xai-correlation) plots the probability of every image's predicted class against both metrics, with
that class explained.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import numpy as np
import pandas as pd
from pydantic import Field, PositiveInt

from idsds import plots
from idsds.datasets.base import first
from idsds.evaluation.plan import Target
from idsds.statistics.intervals import rng_for
from idsds.statistics.rankings import spearman
from idsds.statistics.verdicts import count_verdicts, verdicts
from idsds.studies.base import EvaluationStudy, Findings, Positive, Result, resolve
from idsds.studies.method_settings import MethodSettings
from idsds.training.predict import outputs
from idsds.training.steps import loader_of

METRICS = {"infidelity": "infidelity", "max_sensitivity": "max-sensitivity"}


def correlations(table: pd.DataFrame, confidence: float = 0.95, resamples: int = 1_000, seed: int = 0) -> pd.DataFrame:
    """Correlate the probability with each metric over images.

    Returns:
        One row per model, method and metric: Spearman's ``rho`` (the mean of the training seeds'), ``low``, ``high`` (over training seeds
        and images; NaN for a constant metric), ``count`` of the images, ``nan`` of those without a score, and the ``verdict`` on the
        claim that more probable classes have a lower, that is better, metric.
    """
    rows = []
    for (model, method, metric), part in table.groupby(["model", "method", "metric"], sort=False):
        wide = part.pivot(index="image_id", columns="seed", values=["probability", "score"])
        known = wide.dropna()
        values = known.to_numpy().reshape(len(known), 2, -1)  # (images, probability and score, seeds)
        (n, _, seeds), rng = values.shape, rng_for(seed, "score against metrics", len(values))
        fewer = max(1, seeds - 1)  # one fewer than there are, as in nested_bootstrap
        drawn = [_rho(values[rng.integers(0, n, n)][..., rng.integers(0, seeds, fewer)]) for _ in range(resamples)] if n > 2 else [np.nan]
        ends = [(1 - confidence) / 2, (1 + confidence) / 2]
        low, high = np.quantile(drawn, ends) if np.isfinite(drawn).all() else (np.nan, np.nan)
        facts = {"model": model, "method": method, "metric": metric, "rho": _rho(values), "low": low, "high": high}
        rows.append({**facts, "count": n, "nan": len(wide) - n, "verdict": str(verdicts(-high, -low))})
    return pd.DataFrame(rows)


def _rho(values: np.ndarray) -> float:
    """Return the mean over seeds of Spearman's correlation of two columns, (images, 2, seeds); NaN if one is constant."""
    return float(spearman(*values.transpose(1, 2, 0)).mean()) if len(values) > 2 else float("nan")


class ScoreVsMetrics(MethodSettings, EvaluationStudy):
    """Compare the explained class's probability with infidelity and max-sensitivity, image by image.

    ``target`` is the class that is explained, ``prediction`` as in the study or ``label``; ``sigma``, ``radius`` and ``samples`` are
    settings of the metrics; ``method_settings`` are options of methods, by name. The nets are not fine-tuned on deleted patches.
    """

    target: Target = "prediction"
    sigma: Positive = 0.003
    radius: Annotated[float, Field(gt=0)] = 0.02
    samples: PositiveInt = 10

    def runs(self) -> dict[str, dict[str, Any]]:
        """One run per metric."""
        own = {"infidelity": {"sigma": self.sigma}, "max_sensitivity": {"radius": self.radius}}
        shared = {"methods": self.with_settings(), "target": self.target, "samples": self.samples}
        return {name: self.arguments(protocol=name, output=f"{self.output}/{name}", **shared, **own[name]) for name in METRICS}

    def probabilities(self) -> pd.DataFrame:
        """Return each model's prediction for each image.

        Returns:
            One row per model, seed and image: ``image_id``, ``probability`` (of the explained class, in [0, 1]), ``correct`` (bool).
        """
        plan, parts = resolve(**self.runs()["infidelity"]), []
        for job in plan.jobs:
            data = first(job.dataset, self.images)
            chosen = [range(start, min(start + 64, len(data))) for start in range(0, len(data), 64)]
            for logits, labels, ids in outputs(job.load().to(plan.device), loader_of(data, chosen, 0)):
                shares, said = logits.softmax(dim=1), logits.argmax(dim=1)
                explained = said if self.target == "prediction" else labels
                facts = {"model": job.model, "seed": job.seed, "image_id": ids, "correct": (said == labels).cpu().numpy()}
                parts.append(pd.DataFrame({**facts, "probability": shares.gather(1, explained[:, None])[:, 0].cpu().numpy()}))
        return pd.concat(parts, ignore_index=True)

    def images_of(self, progress: bool = True) -> pd.DataFrame:
        """Return one row per image: model, method, ``metric``, seed, ``image_id``, ``probability``, ``correct``, ``score``."""
        records = self.records(progress)
        columns = ["model", "method", "family", "label", "seed", "image_id", "score"]
        table = records[columns].merge(self.probabilities(), on=["model", "seed", "image_id"], validate="many_to_one")
        return table.rename(columns={"label": "metric"})

    def _run(self, progress: bool) -> Result:
        images = self.images_of(progress)
        table = correlations(images)
        draw = partial(plots.score_vs_metrics, images, table, target=self.target, columns=self.columns)
        sentences = []
        for metric, name in METRICS.items():
            part = table[(table["metric"] == metric) & table["rho"].notna()]
            span = f"{part['rho'].min():+.2f} to {part['rho'].max():+.2f}" if len(part) else "undefined"
            sentences.append(f"Spearman correlation of the probability with {name} over images: {span} ({len(part)} models and methods).")
        sentences.append("Below 0: the more probable the class, the better the metric looks. Intervals: 95 %, bootstrap.")
        judged = count_verdicts(table.assign(claim="more probable, lower " + table["metric"].map(METRICS)), "claim")
        return Result(self.stem, {"": table, "images": images}, Findings(sentences, judged), draw, images)
