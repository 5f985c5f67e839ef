"""Where the weights of a net come from: the user's net, a checkpoint, a package, or training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset

from idsds.common import paths
from idsds.models import authors, create_model
from idsds.protocols import ProtocolEntry
from idsds.training.checkpoints import PRETRAINED, Stage, plan_training, published, starts_from_package, trains_from_scratch
from idsds.training.recipes import Deletion


def source_of(
    name: str,
    net: nn.Module | Stage | None,
    dataset: str | Dataset,
    entry: ProtocolEntry,
    seed: int,
    checkpoints: Mapping[str, str | Path],
    device: str,
    precision: str,
    settings: Mapping[str, Any],
) -> Stage | Path | nn.Module:
    """Return where a net's weights come from. Raises ValueError or FileNotFoundError if there is no source."""
    if net is not None:
        return net
    packaged = isinstance(dataset, str) and starts_from_package(name, dataset)
    if packaged or checkpoints.get(name) == PRETRAINED:
        if not isinstance(dataset, str):
            raise ValueError(f"checkpoints: 'pretrained' goes with a data set by name; pass the net itself for your own: {{{name!r}: net}}")
        if packaged and entry.in_domain and name not in checkpoints:
            return plan_training(
                name, dataset, _deletion(settings, entry), weights=PRETRAINED, seed=seed, device=device, precision=precision
            )
        return published(name, dataset, device=device, precision=precision)
    if name in checkpoints:
        path = paths.resolve(checkpoints[name])
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint of {name!r} at {str(path)!r}")
        return path
    if isinstance(dataset, str) and trains_from_scratch(name, dataset):
        deletion = _deletion(settings, entry) if entry.in_domain else None
        return plan_training(name, dataset, deletion, seed=seed, device=device, precision=precision)
    in_paper = dataset == "imagenet" and entry.in_domain and _deletion(settings, entry) == Deletion(**authors.SETTINGS)
    if in_paper and authors.file_of(name).is_file():
        return authors.file_of(name)
    where = dataset if isinstance(dataset, str) else "your own data set"
    theirs = f"put the authors' {authors.file_of(name).name!r} ({authors.REPOSITORY}) into {str(authors.folder())!r}, " if in_paper else ""
    raise ValueError(
        f"there is no checkpoint of {name!r} for {where}: {theirs}name one with checkpoints={{{name!r}: path}}, or fine-tune one first "
        "(notebooks/finetune.ipynb). Only mini_* models are trained on the fly, on images of 32 x 32 or 64 x 64"
    )


def _deletion(settings: Mapping[str, Any], entry: ProtocolEntry) -> Deletion:
    """Return the grid (the first of several), the baseline and the fraction of images that a net is fine-tuned with."""
    deletion = {key: settings[key] for key in ("grid", "baseline") if key in settings}
    deletion = {key: value[0] if isinstance(value, tuple) else value for key, value in deletion.items()}
    return Deletion(**deletion, share=entry.masked_share)


def skeleton(name: str) -> nn.Module:
    """Return a registered net without memory for its weights, which suffices to see which methods apply."""
    try:
        with torch.device("meta"):
            return create_model(name)
    except RuntimeError:  # its constructor reads weights, which meta tensors do not have
        return create_model(name)
