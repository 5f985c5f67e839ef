# The public names: lazy_loader imports each from where this file says when it is first used.
from . import common, datasets, evaluation, methods, models, plots, protocols, published, statistics, studies, training
from .common.interventions import list_baselines
from .common.registry import UnknownNameError
from .common.settings import SettingsError
from .datasets import create_dataset, list_datasets, register_dataset
from .evaluation.evaluate import evaluate
from .evaluation.records import load_records
from .methods import as_method, create_method, list_methods, register_method
from .models import create_model, describe, list_models, register_model
from .protocols import list_protocols, register_protocol
from .protocols.incremental_deletion import incremental_deletion
from .protocols.single_deletion import SingleDeletionScore, deletion_drops, patch_sums, rank_correlation
from .statistics import (
    images_needed,
    kendalls_w,
    krippendorffs_alpha,
    nested_bootstrap,
    null_band,
    paired_differences,
    rank,
    ranking_with_ties,
)
from .training.own import finetune

__all__ = [
    "SettingsError",
    "SingleDeletionScore",
    "UnknownNameError",
    "as_method",
    "create_dataset",
    "create_method",
    "create_model",
    "deletion_drops",
    "describe",
    "evaluate",
    "finetune",
    "images_needed",
    "incremental_deletion",
    "kendalls_w",
    "krippendorffs_alpha",
    "list_baselines",
    "list_datasets",
    "list_methods",
    "list_models",
    "list_protocols",
    "load_records",
    "nested_bootstrap",
    "null_band",
    "paired_differences",
    "patch_sums",
    "rank",
    "rank_correlation",
    "ranking_with_ties",
    "register_dataset",
    "register_method",
    "register_model",
    "register_protocol",
]
