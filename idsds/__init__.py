"""Measure the attribution quality of vision models: IDSDS and its rivals, from records to figures."""

from idsds.common.interventions import list_baselines
from idsds.common.registry import UnknownNameError
from idsds.common.settings import SettingsError
from idsds.datasets import create_dataset, list_datasets, register_dataset
from idsds.evaluation.evaluate import evaluate
from idsds.evaluation.records import load_records
from idsds.methods import as_method, create_method, list_methods, register_method
from idsds.models import create_model, describe, list_models, register_model
from idsds.protocols import list_protocols, register_protocol
from idsds.protocols.incremental_deletion import incremental_deletion
from idsds.protocols.single_deletion import SingleDeletionScore, deletion_drops, patch_sums, rank_correlation
from idsds.statistics import (
    images_needed,
    kendalls_w,
    krippendorffs_alpha,
    nested_bootstrap,
    null_band,
    paired_differences,
    rank,
    ranking_with_ties,
)

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
