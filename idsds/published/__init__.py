"""Published numbers under our names, to draw beside our own: of the IDSDS paper's poster and of the xai-correlation study.

The source and reliability of each number are in ``README.md`` beside the files. ``inferred`` marks a value whose label is not printed in
the figure.
"""

from __future__ import annotations

from importlib import resources

import pandas as pd

# The settings of the published numbers; for others there is nothing to compare with.
DATASET, GRID, BASELINE = "imagenet", 4, "zeros"
# Readings from a figure are this close to the values behind it.
SCORE_READING, ACCURACY_READING = 0.003, 0.001

AXES = "poster, parallel IDSDS axes"
SCATTER = "poster, accuracy against IDSDS"
# The study's names for things that have other names here.
STUDY_MODELS = {"resnet18": "resnet18", "densenet": "densenet121", "efficientnet": "efficientnet_b0"}
STUDY_DATASETS = {
    "edible-plants": "edible_plants",
    "food101": "food101",
    "marvel": "marvel",
    "plant-data": "plants99",
    "stanford-dogs": "stanford_dogs",
}
STUDY_METHODS = {
    "gbp": "Guided Backprop",
    "Deconvolution": "Deconvolution",
    "Gradient SHAP": "GradientSHAP",
    "Guided Backpropagation": "Guided Backprop",
    "Guided GradCAM": "Guided Grad-CAM",
    "Integrated Gradients": "IG",
    "Saliency": "Saliency",
}
STUDY_FILTERS = {
    "Freaky Details": "detail",
    "Local Normalization": "local_normalisation",
    "Chroma Boost": "chroma_boost",
    "Mighty Details": "mighty_detail",
    "Sharpen": "sharpen",
}


def idsds_scores() -> pd.DataFrame:
    """Return IDSDS on ImageNet (validation images, grid of 4, zero baseline), read from the poster's figure to about +-0.003.

    Hesse, Schaub-Meyer, Roth, *Benchmarking the Attribution Quality of Vision Models*, NeurIPS 2024, arXiv 2407.11910.

    Returns:
        One row per model and method: ``score`` (mean rank correlation in [-1, 1], higher is better), ``inferred`` (whether the value's
        label was inferred because it is not printed), ``how_read``, ``figure``.
    """
    table = _read("idsds_poster").rename(columns={"idsds": "score"})
    return table.assign(inferred=~table["how_read"].str.startswith("labelled"), figure=AXES)[
        ["model", "method", "score", "inferred", "how_read", "figure"]
    ]


def accuracies() -> pd.DataFrame:
    """Return the top-1 accuracy on ImageNet of the poster's models, read from its scatter to about +-0.001; most likely after fine-tuning.

    Returns:
        One row per model: ``accuracy`` (a share in [0, 1], higher is better), ``figure``.
    """
    return _read("idsds_poster_accuracy").rename(columns={"top1_accuracy": "accuracy"}).assign(figure=SCATTER)


def xai_correlation_models() -> pd.DataFrame:
    """Return the study's 75 models (3 architectures x 5 data sets x 5 shares of the training images), as its notebooks print them.

    Returns:
        One row per model, data set and share: ``train_fraction`` (in (0, 1]), ``method`` (Guided Backprop), ``weighted_precision`` (what
        the study calls "acc") and ``f1`` in [0, 1], higher is better; ``infidelity`` and ``sensitivity`` of the maps, lower is better.
    """
    table = _read("xai_correlation_gbp_75_models")
    return table.assign(
        model=table["model"].map(STUDY_MODELS),
        dataset=table["dataset"].map(STUDY_DATASETS),
        method=table["method"].map(STUDY_METHODS),
        train_fraction=table["train_fraction"].str.removesuffix("%").astype(float) / 100,
    )


def xai_correlation_ssim() -> pd.DataFrame:
    """Return the structural similarity of maps before and after an augmentation, as the study "Don't Augment Me" prints it.

    The names of the augmentations are those of :func:`idsds.protocols.robustness.augmentations`; our filters are close equivalents of
    the study's. Rows over several augmentations are ``all rotations``, ``all filters`` and ``all``.

    Returns:
        One row per method and augmentation: ``group`` (``rotations``, ``filters``, ``all``), ``ssim`` (mean in [-1, 1], higher is more
        robust), ``sd`` over images, ``sd_reused`` (whether the study printed the filters' deviation instead).
    """
    table = _read("xai_correlation_ssim").rename(columns={"ssim_mean": "ssim", "ssim_std": "sd"})
    named = table["augmentation"].map(_augmentation)
    group = named.map(lambda name: "rotations" if "degrees" in name or "rotations" in name else "all" if name == "all" else "filters")
    table = table.assign(method=table["method"].map(STUDY_METHODS), augmentation=named, group=group, sd_reused=named == "all")
    return table[["method", "group", "augmentation", "ssim", "sd", "sd_reused"]]


def compare(table: pd.DataFrame, dataset: str = DATASET, grid: int = GRID, baseline: str = BASELINE) -> pd.DataFrame:
    """Put our scores beside the published ones for matching models and methods.

    Args:
        table: from :func:`idsds.rank`: model, method, mean, low, high.
        dataset, grid, baseline: the settings of the scores. Those on ImageNet with a grid of 4 and the zero baseline are published; for
            any other setting nothing matches.

    Returns:
        One row per match: ``model``, ``method``, ``ours``, ``low``, ``high``, ``published``, ``difference`` (ours minus published),
        ``inferred`` (of the published value's label). Empty if nothing matches.

    Raises:
        ValueError: if the table lacks a column.
    """
    columns = ["model", "method", "mean", "low", "high"]
    if missing := [name for name in columns if name not in table.columns]:
        raise ValueError(f"the table lacks the columns {missing}; it has {list(map(str, table.columns))}")
    same = (dataset, grid, baseline) == (DATASET, GRID, BASELINE)
    ours = table[columns].rename(columns={"mean": "ours"})
    both = (ours if same else ours.head(0)).merge(idsds_scores().rename(columns={"score": "published"}), on=["model", "method"])
    both = both.assign(difference=both["ours"] - both["published"])
    return both[["model", "method", "ours", "low", "high", "published", "difference", "inferred"]]


def _augmentation(name: str) -> str:
    """Return our name of the study's augmentation; a row over several keeps its name."""
    if name.endswith("° rotation"):
        return f"{int(name.removesuffix('° rotation')):+d} degrees"
    return STUDY_FILTERS.get(name, name)


def _read(name: str) -> pd.DataFrame:
    with resources.files(__name__).joinpath(f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)
