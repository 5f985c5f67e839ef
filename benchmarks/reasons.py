"""Reasons for published findings that do not show on the digits, tested on the records of the ranking; the numbers of docs/findings.md.

    python -m idsds reproduce mnist5k rank_methods
    python benchmarks/reasons.py runs/mnist5k/rank_methods
    python benchmarks/reasons.py bagnet
    python benchmarks/reasons.py other_images
    python benchmarks/reasons.py params/reasons/rank_methods_batchnorm.yaml
    python benchmarks/reasons.py params/mnist5k/design_choice_depth.yaml

A folder: the fraction of patches whose attribution has the wrong sign, among those that count, for IxG and IG, with the paired difference;
and each published comparison on those patches alone. ``bagnet``: BagNet's explanation with each window's evidence on all of its pixels.
``other_images``: how alike the maps of different images are, for the claims about robustness and sanity checks. A params file: its models
compared in pairs, on all patches, on those that count, and for each training seed alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn

from idsds import create_method, evaluate, load_records, paired_differences
from idsds.datasets import collate
from idsds.methods import register_method
from idsds.methods.base import shared_maps
from idsds.protocols.similarity import spearman, structural_similarity
from idsds.studies.base import resolve
from idsds.studies.design_choice import differences
from idsds.studies.rank_methods import NOISE, above_noise, published_findings


def wrong_signs(records: pd.DataFrame) -> pd.DataFrame:
    """Return the records with the fraction of the patches that count whose attribution and drop differ in sign as ``score``."""
    drops, sums = (np.stack(records[name].to_numpy()).astype(float) for name in ("drops", "patch_sums"))  # (records, patches)
    kept = np.abs(drops) > NOISE * np.abs(drops).max(axis=1, keepdims=True)
    return records.assign(score=(kept & (np.sign(drops) != np.sign(sums))).sum(axis=1) / kept.sum(axis=1))


def windows(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return BagNet's explanation, (B, 1, H, W), with each window's logit on all of its 5 x 5 pixels in place of the central one."""
    return F.avg_pool2d(create_method("BagNet", model)(images, targets), 5, stride=1, padding=2, count_include_pad=False)


def minus_empty(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Return gradient times activation of the CAM layer, without what it is on an empty image."""
    method = create_method("captum/LayerGradientXActivation", model)
    return method(images, targets) - method(torch.zeros_like(images), targets)


def both(records: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the records, and those of the patches that count."""
    yield "all patches", records
    yield "patches that count", above_noise(records)


def of_bagnet() -> None:
    """Print BagNet's explanation, on pixels and on windows, against IG on the same nets."""
    register_method("windows", family="intrinsic")(windows)
    records = evaluate(["mini_bagnet"], ["BagNet", "windows", "IG"], "mnist5k", images=150, seed=[0, 1, 2], progress=False)
    pairs = [("BagNet", "IG"), ("windows", "IG"), ("windows", "BagNet")]
    for name, rows in both(records):
        found = paired_differences(rows, pairs=pairs, permutations=1, nested=True)
        print(f"{name}\n{found[['a', 'b', 'difference', 'low', 'high']].round(3).to_string()}")


def of_other_images() -> None:
    """Print, for three training seeds, the mean similarity between the maps of different images of the same net, with its 95 % interval."""
    names = ["Gradient", "Saliency", "Deconvolution", "Guided Backprop", "Guided Grad-CAM", "Grad-CAM", "Random"]
    measures = {"spearman": spearman, "absolute": lambda a, b: spearman(a.abs(), b.abs()), "ssim": structural_similarity}
    for job in resolve(models=["mini_resnet8"], methods=names, protocol="sanity_check", images=100, seed=[0, 1, 2]).jobs:
        images, targets, ids = collate([job.dataset[index] for index in job.indices])
        for name, maps in shared_maps(job.create_methods(job.load(), names), images, targets, ids).items():
            found = {measure: similarity(maps, maps.roll(1, dims=0)) for measure, similarity in measures.items()}
            found = {measure: values[values.isfinite()] for measure, values in found.items()}
            said = [f"{m} {v.mean():.2f} +- {1.96 * v.std() / len(v) ** 0.5:.2f}" for m, v in found.items()]
            print(f"seed {job.seed}, {name}: {', '.join(said)}", flush=True)


def of_params(path: Path) -> None:
    """Print the differences between the models of a params file, see this module's docstring."""
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    if "captum/LayerGradientXActivation" in given["methods"]:
        register_method("minus_empty", family="CAM")(minus_empty)
        given["methods"] = [*given["methods"], "minus_empty"]
    chains = given.get("chains", [given["models"][:2], given["models"][2:]])
    names = {"images": given["images"], "seed": given["seeds"], "progress": False}
    records = evaluate(given["models"], given["methods"], given["dataset"], **names)
    parts = [*both(records), *((f"seed {seed}", records[records["seed"] == seed]) for seed in given["seeds"])]
    for name, rows in parts:
        found = differences(rows, chains)
        print(f"{name}\n{pd.crosstab([found['higher'], found['lower']], found['verdict']).to_string()}")
        print(found[["higher", "lower", "method", "difference", "low", "high", "verdict"]].round(2).to_string())


def of_ranking(folder: Path) -> None:
    """Print the wrong signs and the published comparisons of a ranking's records."""
    records = load_records(folder)
    signs = wrong_signs(records[records["method"].isin(["IG", "IxG"])])
    print(signs.groupby(["model", "method"])["score"].mean().unstack().round(3).to_string())
    print(paired_differences(signs, pairs=[("IxG", "IG")], permutations=1, nested=True)[["model", "difference", "low", "high"]].to_string())
    table = published_findings(above_noise(records)).drop(columns="interval")
    print(table.round(3).to_string())


if __name__ == "__main__":
    what = sys.argv[1]
    if what == "bagnet":
        of_bagnet()
    elif what == "other_images":
        of_other_images()
    elif what.endswith(".yaml"):
        of_params(Path(what))
    else:
        of_ranking(Path(what))
