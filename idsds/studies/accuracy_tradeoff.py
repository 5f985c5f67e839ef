"""Accuracy against attribution quality: do models trade one for the other?

Accuracy is that of the in-domain fine-tuned net on intact test images; quality is the IDSDS of the model's best method. The best of several
methods, selected and scored on the same images, looks better than it is. So the images are divided into two halves: the method is selected
on each half and scored on the other, and the score is the mean over all images.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
from pydantic import PositiveInt
from scipy import stats

from idsds import plots
from idsds.datasets.base import first
from idsds.published import BASELINE, DATASET, GRID, accuracies, idsds_scores
from idsds.statistics import rank
from idsds.statistics.intervals import rng_for, wilson
from idsds.statistics.scores import unit_of
from idsds.statistics.verdicts import verdicts
from idsds.studies.base import EvaluationStudy, Findings, Result, named_score, resolve, takes_folder
from idsds.studies.result import listed
from idsds.training.predict import predicted


def accuracy(correct: pd.DataFrame, confidence: float = 0.95) -> pd.DataFrame:
    """Return the accuracy per model: ``accuracy`` (in [0, 1]), ``low``, ``high`` (Wilson, over images; nested bootstrap for several
    training seeds), ``count``, and ``top5`` (accuracy with five guesses) where ``correct`` has it. Images of one ``group`` count as one in
    the interval."""
    rows = []
    for model, found in correct.groupby("model", sort=False):
        share, count = found["correct"].mean(), len(found)
        if found["seed"].nunique() > 1:
            nested = rank(found.assign(method="accuracy", score=found["correct"].astype(float)), confidence, nested=True)
            low, high = nested["low"].iloc[0], nested["high"].iloc[0]
        else:
            units = min(count, found["group"].nunique()) if unit_of(found) == "group" else count
            low, high = wilson(share * units, units, confidence)
        row = {"model": model, "accuracy": share, "low": low, "high": high, "count": count}
        rows.append(row | ({"top5": found["top5"].mean()} if "top5" in found else {}))
    return pd.DataFrame(rows)


@takes_folder
def best(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records of each model's best method, selected on one half of the images and taken from the other; without controls.

    Images of one ``group`` are in one half.

    Returns:
        Records with one row per model, seed and image: ``method`` is the one selected for the image's half.
    """
    parts = []
    for (_, _), rows in records[records["family"] != "control"].groupby(["model", "seed"], sort=False):
        half = pd.Series(pd.factorize(rows[unit_of(rows)])[0] % 2, rows.index)
        for judged in (0, 1):
            picked = rows[half != judged].groupby("method", sort=False)["score"].mean()
            if picked.notna().any():
                parts.append(rows[(half == judged) & (rows["method"] == picked.idxmax())])
    return pd.concat(parts, ignore_index=True)


@takes_folder
def tradeoff(records: pd.DataFrame, correct: pd.DataFrame, resamples: int = 1_000, seed: int = 0) -> pd.DataFrame:
    """Compute both axes of each model, and whether another model is at least as good in both.

    Args:
        correct: one row per model, seed and image: ``image_id``, ``correct`` (bool), ``group`` where the records have it.

    Returns:
        One row per model, most accurate first: ``accuracy``, ``accuracy_low``, ``accuracy_high`` (:func:`accuracy`), ``method`` (the
        selected ones), ``idsds``, ``idsds_low``, ``idsds_high`` (:func:`idsds.rank`, nested), ``front`` (no other model is better in one
        and as good in the other), ``front_share`` (fraction of resamples in which that holds), ``count``, ``accuracy_count``,
        ``interval`` of the IDSDS, and ``top5`` where it is known.
    """
    picks = best(records)
    names = picks.groupby("model", sort=False)["method"].agg(lambda found: " / ".join(dict.fromkeys(found)))
    scores = rank(picks.assign(method="best"), nested=True).set_index("model")
    table = accuracy(correct).rename(columns={"low": "accuracy_low", "high": "accuracy_high", "count": "accuracy_count"})
    for name, column in {"idsds": "mean", "idsds_low": "low", "idsds_high": "high", "count": "count", "interval": "interval"}.items():
        table[name] = table["model"].map(scores[column])
    table["method"] = table["model"].map(names)
    table["front"] = on_front(table[["accuracy", "idsds"]].to_numpy())
    table["front_share"] = _resampled(picks, correct, list(table["model"]), resamples, seed)[0]
    columns = ["model", "accuracy", "accuracy_low", "accuracy_high", "method", "idsds", "idsds_low", "idsds_high", "front", "front_share"]
    return table.sort_values("accuracy", ascending=False, kind="stable", ignore_index=True)[
        [*columns, "count", "accuracy_count", "interval", *(["top5"] if "top5" in table else [])]
    ]


def on_front(values: np.ndarray) -> np.ndarray:
    """Return which rows (models, 2), higher is better in both, no other row dominates."""
    better = (values[None] >= values[:, None]).all(-1) & (values[None] > values[:, None]).any(-1)  # (row, other)
    return ~better.any(1)


@takes_folder
def correlation(records: pd.DataFrame, correct: pd.DataFrame, resamples: int = 1_000, seed: int = 0) -> dict[str, float]:
    """Spearman correlation over models of accuracy and best IDSDS: ``rho``, ``low``, ``high`` (95 %, percentile bootstrap over images
    and, where there are several, training seeds; the models held fixed), ``p`` (over models, two-sided), ``models``."""
    table = tradeoff(records, correct, resamples=1)
    found = stats.spearmanr(table["accuracy"], table["idsds"])
    drawn = _resampled(best(records), correct, list(table["model"]), resamples, seed)[1]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return {"rho": float(found.statistic), "low": float(low), "high": float(high), "p": float(found.pvalue), "models": len(table)}


def _resampled(picks: pd.DataFrame, correct: pd.DataFrame, models: list[str], resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the fraction of resamples in which each model is on the front (models,), and the correlations (resamples,)."""
    (scored, quality), (judged, right) = _by_seed(picks, "score", models), _by_seed(correct, "correct", models)
    of_quality, of_right = _members(picks, scored), _members(correct, judged)
    rng, seeds = rng_for(seed, "tradeoff", len(scored), len(judged)), len(quality)
    front, rho = np.zeros(len(models)), np.zeros(resamples)
    for number in range(resamples):
        # One seed fewer than there are, as in idsds.nested_bootstrap.
        of_seeds = rng.integers(0, seeds, seeds - 1) if seeds > 1 else [0]
        drawn = np.nanmean(right[of_seeds][:, _draw(rng, of_right)], axis=(0, 1))
        scores = np.nanmean(quality[of_seeds][:, _draw(rng, of_quality)], axis=(0, 1))
        front += on_front(np.column_stack([drawn, scores]))
        rho[number] = stats.spearmanr(drawn, scores).statistic if np.ptp(drawn) and np.ptp(scores) else np.nan
    return front / resamples, rho


def _by_seed(table: pd.DataFrame, values: str, models: list[str]) -> tuple[pd.Index, np.ndarray]:
    """Return the image ids, and a column of one row per model, seed and image as (seeds, images, models)."""
    parts = [rows.pivot_table(index="image_id", columns="model", values=values, sort=False) for _, rows in table.groupby("seed")]
    images = parts[0].index
    return images, np.stack([part.reindex(index=images, columns=models).to_numpy(float) for part in parts])


def _members(records: pd.DataFrame, image_ids: pd.Index) -> list[np.ndarray]:
    """The places in ``image_ids`` of the images of each group; without groups each image is one."""
    unit = records.drop_duplicates("image_id").set_index("image_id", drop=False)[unit_of(records)].loc[image_ids]
    codes = pd.factorize(unit)[0]
    return [np.flatnonzero(codes == code) for code in range(codes.max() + 1)]


def _draw(rng: np.random.Generator, members: list[np.ndarray]) -> np.ndarray:
    """The images of as many groups, drawn with replacement."""
    return np.concatenate([members[number] for number in rng.integers(0, len(members), len(members))])


def published_points(dataset: str = DATASET, grid: int = GRID, baseline: str = BASELINE) -> pd.DataFrame:
    """Return the poster's models with their accuracy and the best of their published scores: model, accuracy, idsds, method, inferred.

    Empty for another data set, grid or baseline than the poster's.
    """
    scores = idsds_scores().sort_values("score", ascending=False).drop_duplicates("model")
    found = accuracies()[["model", "accuracy"]].merge(scores.rename(columns={"score": "idsds"}), on="model")
    same = (dataset, grid, baseline) == (DATASET, GRID, BASELINE)
    return (found if same else found.head(0))[["model", "accuracy", "idsds", "method", "inferred"]]


def compare(table: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """Compare with the published values on both axes, for the models that both have."""
    both = table[["model", "accuracy", "idsds"]].merge(points, on="model", suffixes=("", "_published"))
    for name in ("accuracy", "idsds"):
        both[f"{name}_difference"] = both[name] - both[f"{name}_published"]
    return both.rename(columns={"method": "published_method"})


def findings(table: pd.DataFrame, correlated: dict[str, float], score: str = "IDSDS") -> Findings:
    """Test the claim by the interval of the correlation, and name the Pareto front."""
    claim = {"claim": f"accuracy and {score} trade off", **{f"Spearman {name}": correlated[name] for name in ("rho", "low", "high")}}
    claim |= {"p over models": correlated["p"], "verdict": str(verdicts(-correlated["high"], -correlated["low"]))}
    ends = f"95 % interval [{correlated['low']:+.2f}, {correlated['high']:+.2f}]"
    sentences = [
        f"Accuracy and best {score} correlate by {correlated['rho']:+.2f} (Spearman over {correlated['models']} models, {ends}).",
        f"Pareto front: {listed(table.loc[table['front'], 'model'])}.",
        "The interval holds for these architectures; p is over the choice of architectures.",
    ]
    return Findings(sentences, pd.DataFrame([claim]))


class AccuracyTradeoff(EvaluationStudy):
    """Compare models' accuracy with their best IDSDS; ``accuracy_images`` is the number of test images for the accuracy."""

    accuracy_images: PositiveInt

    def correct(self) -> pd.DataFrame:
        """Return whether each in-domain model classifies each of the first ``accuracy_images`` intact test images correctly.

        Returns:
            One row per model, seed and image: the columns of :func:`idsds.training.predict.predicted`, ``correct`` (bool), ``group``
            where images belong together.
        """
        plan, parts = resolve(**self.arguments(methods=["Random"], images=1)), []
        for job in plan.jobs:
            test = first(job.dataset, self.accuracy_images)
            table = predicted(job.load().to(plan.device), test, size=64, precision=self.precision)
            if test.groups is not None:
                table["group"] = table["image_id"].map(dict(zip(test.image_ids, test.groups, strict=True)))
            parts.append(table.assign(model=job.model, seed=job.seed, correct=table["prediction"] == table["target"]))
        return pd.concat(parts, ignore_index=True)

    def _run(self, progress: bool) -> Result:
        records, correct = self.records(progress), self.correct()
        table, points = tradeoff(records, correct), published_points(self.dataset, self.grid, self.baseline)
        score = named_score(records, "IDSDS")
        draw = partial(plots.accuracy_tradeoff, table, published=points, score=score, columns=self.columns)
        tables = {"": table, "published": compare(table, points)}
        return Result(self.stem, tables, findings(table, correlation(records, correct), score), draw, records)
