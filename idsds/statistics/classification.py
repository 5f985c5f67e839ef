"""The quality of a classifier: accuracy, F1 and precision, each with an interval over images; the confusion matrix; scores per class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from idsds.statistics.intervals import check_options, rng_for

#: The measures, in the order of the columns.
QUALITIES = ("accuracy", "macro_f1", "weighted_f1", "weighted_precision")
#: Weighted precision minus accuracy on the same images, in [-1, 1]: the study prints the first under the name of the second.
EXCESS = "precision_excess"


def classification_scores(
    targets: Sequence[int], predictions: Sequence[int], confidence: float = 0.95, resamples: int = 1_000, seed: int = 0
) -> dict[str, float]:
    """Compute four measures of a classifier, all in [0, 1], higher is better.

    With n_k images of class k, p_k predicted as k, t_k of these correctly: accuracy = sum t_k / n; macro F1 = mean of 2 t_k / (n_k + p_k)
    over the classes that occur in either, weighted F1 their mean weighted by n_k / n; weighted precision = sum (n_k / n) (t_k / p_k),
    where a class that is never predicted has precision 0. The values equal those of scikit-learn's ``classification_report``.

    Args:
        confidence, resamples, seed: of the percentile bootstrap over images.

    Returns:
        ``accuracy``, ``macro_f1``, ``weighted_f1``, ``weighted_precision`` and ``precision_excess``, the fourth minus the first (each
        resample's own, so that its interval is paired), each followed by its ``_low`` and ``_high``; ``count`` of the images.

    Raises:
        ValueError: if there are no images, or if the two differ in length.
    """
    check_options(confidence, resamples=resamples)
    labels, predicted = np.asarray(targets), np.asarray(predictions)
    if labels.shape != predicted.shape or labels.ndim != 1 or not len(labels):
        raise ValueError(f"expected one prediction per target, and at least one target, not {labels.shape} and {predicted.shape}")
    classes, codes = np.unique(np.concatenate([labels, predicted]), return_inverse=True)
    pairs, counts = np.unique(codes.reshape(2, -1), axis=1, return_counts=True)  # (2, P): which (target, prediction) occur
    drawn = rng_for(seed, "classification", len(labels)).multinomial(len(labels), counts / len(labels), resamples)  # (resamples, P)
    observed, resampled = (_scores(values, pairs, len(classes)) for values in (counts[None], drawn))
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    row: dict[str, float] = {}
    for number, name in enumerate((*QUALITIES, EXCESS)):
        row |= {name: observed[0, number], f"{name}_low": low[number], f"{name}_high": high[number]}
    return {**row, "count": len(labels)}


def _scores(counts: np.ndarray, pairs: np.ndarray, classes: int) -> np.ndarray:
    """Return the measures and the excess (rows, 5) from the counts of the pairs, (rows, P)."""
    of_target, of_prediction = (np.eye(classes)[codes] for codes in pairs)  # (P, K) each
    support, predicted = counts @ of_target, counts @ of_prediction  # (rows, K)
    right = (counts * (pairs[0] == pairs[1])) @ of_target
    occurs = support + predicted
    total = support.sum(axis=1)
    f1 = 2 * right / np.maximum(occurs, 1)  # (rows, K)
    macro, weighted = f1.sum(axis=1) / (occurs > 0).sum(axis=1), (support * f1).sum(axis=1) / total
    precision = (support * right / np.maximum(predicted, 1)).sum(axis=1) / total
    accuracy = right.sum(axis=1) / total
    return np.stack([accuracy, macro, weighted, precision, precision - accuracy], axis=1)


def confusion(targets: Sequence[int], predictions: Sequence[int]) -> pd.DataFrame:
    """Count the pairs of ``target`` and ``prediction`` that occur: one row per pair, with its ``count``."""
    pairs = pd.DataFrame({"target": np.asarray(targets), "prediction": np.asarray(predictions)})
    return pairs.value_counts(sort=False).reset_index(name="count").sort_values(["target", "prediction"], ignore_index=True)


def per_class(targets: Sequence[int], predictions: Sequence[int]) -> pd.DataFrame:
    """Measure a classifier class by class, as scikit-learn's ``classification_report`` does.

    Returns:
        One row per class that occurs in either: ``class``, ``precision`` (fraction of the images predicted as the class that belong to it),
        ``recall`` (fraction of its images that are predicted as the class) and ``f1``, all in [0, 1], higher is better, 0 if there are no
        images to count; ``support``, the number of its images.
    """
    labels, outputs = np.asarray(targets), np.asarray(predictions)
    classes = np.union1d(labels, outputs)
    counts = [pd.Series(values).value_counts().reindex(classes, fill_value=0) for values in (labels, outputs, labels[labels == outputs])]
    support, predicted, right = (values.to_numpy() for values in counts)
    ratios = {"precision": right / np.maximum(predicted, 1), "recall": right / np.maximum(support, 1)}
    return pd.DataFrame({"class": classes, **ratios, "f1": 2 * right / (support + predicted), "support": support})
