"""Published numbers under our names, for comparison with our own: from the IDSDS paper's poster, from an independent reproduction (DECAF)
and from the xai-correlation study.

The source and reliability of each number are in ``README.md`` beside the files. ``inferred`` marks a value whose label is not printed in
the figure.
"""

from __future__ import annotations

from importlib import resources

import pandas as pd

# The settings of the published numbers; nothing is published for others.
DATASET, GRID, BASELINE = "imagenet", 4, "zeros"
# Readings from a figure are this close to the plotted values.
SCORE_READING, ACCURACY_READING = 0.003, 0.001
# Two readings of a bar that are more pixels apart than this are doubtful.
DOUBTFUL_PIXELS = 3
# The upper limit of the sensitivity axis in the study's charts.
CLIPPED = 3.0

AXES = "poster, parallel IDSDS axes"
SCATTER = "poster, accuracy against IDSDS"
# Where a score comes from.
POSTER, REPRODUCTION = "poster", "DECAF"
MEAN = "mean of "
COLUMNS = ["model", "method", "ours", "low", "high", "published", "difference", "inferred", "source"]
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
    "saliency": "Saliency",
    "guided_gradcam": "Guided Grad-CAM",
    "gradshap": "GradientSHAP",
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

    Hesse, Schaub-Meyer, Roth, *Benchmarking the Attribution Quality of Vision Models*, NeurIPS 2024, arXiv 2407.11910. The absolute maps
    (except ``IG-U abs``) and the squared and variance versions of SmoothGrad are the six unlabelled squares on each axis. The squares of
    ``IG-SG-SQ`` and ``IG-SG-VG`` cannot be told apart; they differ by at most 0.007.

    Returns:
        One row per model and method: ``score`` (mean rank correlation in [-1, 1], higher is better), ``inferred`` (whether the value's
        label was inferred because it is not printed), ``how_read``, ``figure``.
    """
    table = _read("idsds_poster")
    squares = _read("idsds_poster_squares")
    either = squares["inferred_method"].str.contains(" or ")
    squares = squares.assign(
        method=squares["inferred_method"].str.split(" or ").str[0],
        how_read="extrapolated, label inferred from its colour (" + squares["colour"] + ")" + either.map({True: ", SQ or VG", False: ""}),
    )
    table = pd.concat([table, squares], ignore_index=True).rename(columns={"idsds": "score"})
    return table.assign(inferred=~table["how_read"].str.startswith("labelled"), figure=AXES)[
        ["model", "method", "score", "inferred", "how_read", "figure"]
    ]


def idsds_reproduction() -> pd.DataFrame:
    """Return IDSDS on ImageNet as measured by another group: DECAF (2026), arXiv 2608.12935, tables 6, 7, 10 and appendix H.2.

    Correctly classified images only, IG with 32 steps. Means over three nets have the model ``mean of ...``. ``SmoothGrad``, whose
    settings are unknown, matches none of our methods.

    Returns:
        One row per model and method: ``score`` (mean rank correlation in [-1, 1], higher is better), ``steps`` of IG, ``images``, ``how``.
    """
    table = _read("decaf_idsds").rename(columns={"idsds": "score"})
    return table.drop_duplicates(["model", "method"], ignore_index=True)[["model", "method", "score", "steps", "images", "how"]]


def accuracies() -> pd.DataFrame:
    """Return the top-1 accuracy on ImageNet of the poster's models, read from its scatter to about +-0.001; most likely after fine-tuning.

    Returns:
        One row per model: ``accuracy`` (a fraction in [0, 1], higher is better), ``figure``.
    """
    return _read("idsds_poster_accuracy").rename(columns={"top1_accuracy": "accuracy"}).assign(figure=SCATTER)


def xai_correlation_models() -> pd.DataFrame:
    """Return the study's 75 models (3 architectures x 5 data sets x 5 fractions of the training images) under four methods.

    Numbers of Guided Backprop are printed in the study's notebooks. Those of Saliency, Guided Grad-CAM and GradientSHAP are read from its
    charts; reading Guided Backprop in the same way reproduces its numbers to 0.2 % in infidelity and 0.007 in sensitivity.

    Returns:
        One row per model, data set, fraction, method: ``train_fraction`` (in (0, 1]), ``weighted_precision`` (what the study calls "acc")
        and ``weighted_f1`` (what it calls "f1") in [0, 1], higher is better; ``infidelity`` and ``sensitivity`` of the maps, lower is
        better, NaN if the chart has no bar; ``digitised``, whether the numbers are read from a chart; ``doubtful``, whether two readings
        are more than :data:`DOUBTFUL_PIXELS` pixels apart or the bar reaches the end of the chart.
    """
    model = ["model", "dataset", "train_fraction"]
    printed = _read("xai_correlation_gbp_75_models")
    read = _read("xai_correlation_75_models_digitised")
    apart = (read[["inf_spread_px", "sens_spread_px"]] > DOUBTFUL_PIXELS).any(axis=1)
    read = read.assign(digitised=True, doubtful=apart | (read["sensitivity"] >= CLIPPED - 0.01))
    read = read[read["method"] != "gbp"].merge(printed[[*model, "weighted_precision", "f1"]], on=model, validate="many_to_one")
    table = pd.concat([printed.assign(digitised=False, doubtful=False), read], ignore_index=True).rename(columns={"f1": "weighted_f1"})
    table = table.assign(
        model=table["model"].map(STUDY_MODELS),
        dataset=table["dataset"].map(STUDY_DATASETS),
        method=table["method"].map(STUDY_METHODS),
        train_fraction=table["train_fraction"].str.removesuffix("%").astype(float) / 100,
    )
    measured = ["weighted_precision", "weighted_f1", "infidelity", "sensitivity"]
    return table[[*model, "method", *measured, "digitised", "doubtful"]]


def xai_correlation_ssim() -> pd.DataFrame:
    """Return the structural similarity of maps before and after an augmentation, as printed in the study "Don't Augment Me".

    The names of the augmentations are those of :func:`idsds.protocols.robustness.augmentations`; our filters are close equivalents of
    the study's. Rows that average several augmentations are ``all rotations``, ``all filters`` and ``all``.

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
        dataset, grid, baseline: the settings of the scores. Scores are published for ImageNet with a grid of 4 and the zero baseline only;
            with any other settings nothing matches.

    Returns:
        One row per match: ``model``, ``method``, ``ours``, ``low``, ``high``, ``published``, ``difference`` (ours minus published),
        ``inferred`` (whether the published value's label is), ``source`` (:data:`POSTER` or :data:`REPRODUCTION`). A published mean over
        nets is compared with our mean if all of these nets have the method, without an interval. Empty if nothing matches.

    Raises:
        ValueError: if the table lacks a column.
    """
    columns = ["model", "method", "mean", "low", "high"]
    if missing := [name for name in columns if name not in table.columns]:
        raise ValueError(f"the table lacks the columns {missing}; it has {list(map(str, table.columns))}")
    same = (dataset, grid, baseline) == (DATASET, GRID, BASELINE)
    ours = table[columns] if same else table[columns].head(0)
    repeated = idsds_reproduction().assign(inferred=False, source=REPRODUCTION)
    published = pd.concat([idsds_scores().assign(source=POSTER), repeated], ignore_index=True)
    ours = pd.concat([ours, *(_mean_of_nets(ours, name) for name in sorted(set(published["model"])) if name.startswith(MEAN))])
    both = ours.rename(columns={"mean": "ours"}).merge(published.rename(columns={"score": "published"}), on=["model", "method"])
    return both.assign(difference=both["ours"] - both["published"])[COLUMNS]


def funnybirds() -> pd.DataFrame:
    """Return published values of the protocols of FunnyBirds on its test images, with the threshold chosen on these.

    Returns:
        One row per model, method and measure: ``model``, ``method``, ``measure``, ``published``, ``source``. The summaries
        (``completeness``, ``correctness``, ``contrastivity``, ``mean``) are computed from the printed values.
    """
    table = _read("funnybirds")
    table["completeness"] = (table[["csdc", "pc", "dc"]].mean(axis=1) + table["distractibility"]) / 2
    table["correctness"], table["contrastivity"] = table["single_deletion"], table["target_sensitivity"]
    table["mean"] = table[["completeness", "correctness", "contrastivity"]].mean(axis=1)
    measures = [name for name in table.columns if name not in ("model", "method", "threshold", "source")]
    return table.melt(["model", "method", "source"], measures, "measure", "published").dropna(ignore_index=True)


def _mean_of_nets(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return our counterpart of a published mean over the nets listed in its name: a row per method that all of them have."""
    nets = name.removeprefix(MEAN).split(", ")
    groups = table[table["model"].isin(nets) & table["mean"].notna()].groupby("method", sort=False)["mean"]
    means = groups.mean()[groups.size() == len(nets)]
    return pd.DataFrame({"model": name, "method": means.index, "mean": means.to_numpy(), "low": float("nan"), "high": float("nan")})


def _augmentation(name: str) -> str:
    """Return our name for the study's augmentation; the name of an average over several is kept."""
    if name.endswith("° rotation"):
        return f"{int(name.removesuffix('° rotation')):+d} degrees"
    return STUDY_FILTERS.get(name, name)


def _read(name: str) -> pd.DataFrame:
    with resources.files(__name__).joinpath(f"{name}.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file)
