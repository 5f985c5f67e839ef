"""Which maps show the parts that matter: all FunnyBirds protocols, on images whose parts are known and can be removed.

Completeness (are the important parts decisive?), correctness (are they in the right order?) and contrastivity (for this class, or any?)
follow Hesse, Schaub-Meyer, Roth, ICCV 2023 (arXiv 2308.06248). The correlation with the parts' exact Shapley values is added.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Self

import numpy as np
import pandas as pd
from pydantic import Field, PositiveInt, model_validator

from idsds import plots, published
from idsds.datasets import DATASETS, create_dataset
from idsds.protocols.parts import THRESHOLDS, completeness
from idsds.statistics.intervals import covers, covers_both, nested, rng_for
from idsds.statistics.rankings import kendall
from idsds.statistics.verdicts import verdicts
from idsds.studies.base import EvaluationStudy, Findings, Result, need_columns, takes_folder
from idsds.studies.result import listed

#: Columns of the records with a value per threshold, and those with one.
CHECKS = ("csdc", "pc", "dc", "distractibility")
SINGLES = ("single_deletion", "target_sensitivity", "shapley")
SUMMARIES = ("completeness", "correctness", "contrastivity", "mean")
MEASURES = (*CHECKS, *SINGLES, *SUMMARIES)
#: Those of the net alone.
OF_NET = ("accuracy", "top5", "background_independence")
CONTROL = "Random"


@takes_folder
def best_threshold(records: pd.DataFrame) -> int | None:
    """Return the number of the threshold with the highest completeness over the images of a model and method; None if it is undefined."""
    stacked = [np.stack(records[name].to_list()) for name in CHECKS]
    if any(np.isnan(values).all() for values in stacked):  # such as CSDC for a net that is right on no image
        return None
    return int(np.argmax(completeness(*(np.nanmean(values, axis=0) for values in stacked))))  # type: ignore[arg-type]


def features(records: pd.DataFrame, threshold: int | None, of_model: pd.DataFrame) -> np.ndarray:
    """Return what means are made of, (images, training seeds, 2 x measures): values with 0 for NaN, then whether there is one.

    Without a threshold, what depends on it is undefined. Images and seeds are those of the records ``of_model``, of all methods.
    """
    columns = {name: np.nan if threshold is None else np.stack(records[name].to_list())[:, threshold] for name in CHECKS}
    columns |= {name: records[name].to_numpy(dtype=float) for name in SINGLES}
    values = pd.DataFrame(columns).to_numpy()
    return of_each(records, np.concatenate([np.nan_to_num(values), np.isfinite(values)], axis=1), of_model)


def of_each(records: pd.DataFrame, values: np.ndarray, of_model: pd.DataFrame) -> np.ndarray:
    """Return the ``values`` (records, F) of one model and method as (images, training seeds, F), in the order of those ``of_model``."""
    images, seeds = (pd.Index(dict.fromkeys(of_model[name])) for name in ("image_id", "seed"))
    sums = np.zeros((len(images), len(seeds), values.shape[1]))
    np.add.at(sums, (images.get_indexer(list(records["image_id"])), seeds.get_indexer(list(records["seed"]))), values)
    return sums


def measures(sums: np.ndarray) -> np.ndarray:
    """Return :data:`MEASURES` from sums of :func:`features`, (..., F) -> (..., measures)."""
    count = len(CHECKS) + len(SINGLES)
    with np.errstate(invalid="ignore"):
        means = sums[..., :count] / sums[..., count:]
    complete = completeness(*np.moveaxis(means[..., :4], -1, 0))
    correct, contrast = means[..., 4], means[..., 5]
    summaries = np.stack([complete, correct, contrast, (complete + correct + contrast) / 3], axis=-1)
    return np.concatenate([means, summaries], axis=-1)


@takes_folder
def table_of(records: pd.DataFrame, threshold_images: int = 0, resamples: int = 2_000) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Compute all measures with the threshold of each method and model, and how far each method is from the random one.

    Args:
        records: of the protocol ``funnybirds``.
        threshold_images: the last of the images, on which the threshold is chosen; the others are scored. 0: it is chosen on the images
            that are scored, as in the paper.

    Returns:
        One row per model, method and measure: ``value`` with ``low`` and ``high``, the ``count`` of images that have one for every training
        seed, and ``nan`` of the others, ``threshold``, ``chosen_on``, ``interval``; and one per model and method: ``difference`` of the
        mean to :data:`CONTROL`, with its interval (empty without that control).
    """
    order = list(dict.fromkeys(records["image_id"]))
    scored = set(order[: len(order) - threshold_images])
    chosen_on = f"{threshold_images} other images" if threshold_images else "the images that are scored, as in the paper"
    rows, apart = [], []
    for model, of_model in records.groupby("model", sort=False):
        found, judged = {}, of_model[of_model["image_id"].isin(scored)]
        covered = covers(0.95, 1) if judged["seed"].nunique() == 1 else covers_both(0.95)
        names = {"chosen_on": chosen_on, "interval": f"{covered}, thresholds held fixed"}
        for method, of_method in of_model.groupby("method", sort=False):
            inside = of_method["image_id"].isin(scored)
            threshold = best_threshold(of_method[~inside if threshold_images else inside])
            found[method] = made = features(of_method[inside], threshold, judged)
            values, (low, high) = measures(made.sum((0, 1))), nested(made, measures, 0.95, resamples, rng_for(0, model, method))
            defined = made[..., made.shape[-1] // 2 :].all(axis=1)
            counts = [*defined.sum(axis=0), *[len(made)] * len(SUMMARIES)]
            shared = {"model": model, "method": method, "family": of_method["family"].iloc[0], **names}
            shared |= {"threshold": np.nan if threshold is None else float(THRESHOLDS[threshold])}
            for measure, value, *ends, count in zip(MEASURES, values, low, high, counts, strict=True):
                both = dict(zip(("low", "high"), ends, strict=True))
                rows.append({**shared, "measure": measure, "value": value, **both, "count": int(count), "nan": len(made) - int(count)})
        for method in found if CONTROL in found else ():
            if method != CONTROL:
                apart.append({"model": model, "method": method, **_difference(found[method], found[CONTROL], resamples)})
    return pd.DataFrame(rows), pd.DataFrame(apart)


def _difference(first: np.ndarray, second: np.ndarray, resamples: int) -> dict[str, float]:
    """Return the difference of two methods' means on the same images, with its interval."""

    def mean(sums: np.ndarray) -> np.ndarray:
        width = first.shape[-1]
        return measures(sums[..., :width])[..., -1:] - measures(sums[..., width:])[..., -1:]

    both = np.concatenate([first, second], axis=-1)
    low, high = nested(both, mean, 0.95, resamples, rng_for(0, "difference"))
    return {"difference": float(mean(both.sum((0, 1)))[0]), "low": float(low[0]), "high": float(high[0])}


@takes_folder
def nets_of(records: pd.DataFrame, resamples: int = 2_000) -> pd.DataFrame:
    """Return :data:`OF_NET` of each model on all images with their intervals: ``model``, ``measure``, ``value``, ``low``, ``high``.

    Background independence is the fraction among all objects of all images, as in the authors' code.
    """
    need_columns(records, "top5")
    rows = []
    for model, found in records.groupby("model", sort=False):
        one = found[found["method"] == found["method"].iloc[0]]
        kept = one["background_independence"].fillna(0) * one["objects"]
        ones = np.ones(len(one))
        made = of_each(one, np.stack([one["correct"], one["top5"], kept, ones, ones, one["objects"]], axis=1).astype(float), one)

        def shares(sums: np.ndarray) -> np.ndarray:
            return sums[..., :3] / sums[..., 3:]

        values, (low, high) = shares(made.sum((0, 1))), nested(made, shares, 0.95, resamples, rng_for(0, model))
        ends = zip(OF_NET, values, low, high, strict=True)
        rows += [{"model": model, "measure": measure, "value": v, "low": a, "high": b} for measure, v, a, b in ends]
    return pd.DataFrame(rows)


def compared(table: pd.DataFrame, nets: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return the values beside the published ones for the same models and methods; empty for other data sets."""
    ours = pd.concat([table, nets.merge(table[["model", "method"]].drop_duplicates(), on="model")])[["model", "method", "measure", "value"]]
    both = ours.merge(published.funnybirds(), on=["model", "method", "measure"]) if dataset == "funnybirds" else ours.head(0)
    return both.assign(difference=both["value"] - both["published"]) if len(both) else pd.DataFrame()


def findings(table: pd.DataFrame, apart: pd.DataFrame, nets: pd.DataFrame) -> Findings:
    """State which method is best on each net, where the threshold was chosen, and which methods beat the random one."""
    means = table[(table["measure"] == "mean") & table["value"].notna()]
    best = means.loc[means.groupby("model", sort=False)["value"].idxmax()]
    said = listed(f"{row.method} on {row.model} ({row.value:.2f} [{row.low:.2f}, {row.high:.2f}])" for row in best.itertuples())
    of_net = nets.pivot(index="model", columns="measure", values="value")
    of_net = of_net[list(OF_NET)].map("{:.3f}".format)
    right = listed(f"{', '.join(row)} ({model})" for model, row in of_net.iterrows())
    tau = [_agreement(rows) for _, rows in table[table["family"] != "control"].groupby("model", sort=False)]
    sentences = [
        f"Highest mean of the three: {said} (95 %)." if said else "No method has a mean of the three: a term is undefined on all images.",
        f"Accuracy, top-5 accuracy and background independence: {right}; thresholds are chosen on {table['chosen_on'].iloc[0]}.",
        f"Kendall's tau of the order by the mean and by exact Shapley values is at least {min(tau):+.2f}.",
    ]
    if not len(apart):
        return Findings(sentences)
    claims = apart.assign(claim=apart["method"] + " is better than a random map", verdict=verdicts(apart["low"], apart["high"]))
    return Findings(sentences, claims[["model", "claim", "difference", "low", "high", "verdict"]])


def _agreement(rows: pd.DataFrame) -> float:
    wide = rows.pivot(index="method", columns="measure", values="value")
    return float(kendall(wide["mean"].to_numpy()[None], wide["shapley"].to_numpy()[None])[0]) if len(wide) > 1 else float("nan")


class Funnybirds(EvaluationStudy):
    """Score methods by all FunnyBirds protocols.

    ``threshold_images`` is the number of images, the last of the fixed order, on which each method's threshold is chosen; 0 chooses it on
    the images that are scored, as in the paper. ``reference`` reproduces the authors' code where it differs, see
    :mod:`idsds.protocols.funnybirds`. ``image_size`` reads ``funnybirds`` at another size than its 256 pixels, such as 224 for a ViT.
    """

    threshold_images: Annotated[int, Field(ge=0)] = 0
    reference: bool = False
    image_size: PositiveInt | None = None

    @model_validator(mode="after")
    def _parts_are_known(self) -> Self:
        if self.threshold_images >= self.images:
            raise ValueError(f"threshold_images={self.threshold_images} leaves none of images={self.images} to be scored")
        if self.image_size is not None and "image_size" not in DATASETS[self.dataset].options:
            raise ValueError(f"image_size: {self.dataset!r} has one size, {DATASETS[self.dataset].image_size}")
        return self

    def runs(self) -> dict[str, dict[str, Any]]:
        """One run of the protocol ``funnybirds``, which computes all protocols at all thresholds."""
        changes: dict[str, Any] = {"protocol": "funnybirds", "reference": self.reference}
        if self.image_size is not None:
            changes["dataset"] = create_dataset(self.dataset, "test", image_size=self.image_size)
        return {"": self.arguments(**changes)}

    def _run(self, progress: bool) -> Result:
        records = self.records(progress)
        table, apart = table_of(records, self.threshold_images)
        table = table.assign(reference=self.reference)
        nets = nets_of(records)
        theirs = compared(table, nets, self.dataset)
        draw = partial(plots.funnybirds, table, nets, theirs, columns=self.columns)
        return Result(self.stem, {"": table, "nets": nets, "published": theirs}, findings(table, apart, nets), draw, records)
