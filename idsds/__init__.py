"""Measure the attribution quality of vision models: IDSDS and its rivals, from records to figures.

The public names are imported on first use from the modules listed here, so that ``import idsds`` takes almost no time.
"""

import os

import lazy_loader

# Threads of GNU OpenMP, which torch loads later, spin while they wait and take the cores from other processes; so they sleep sooner.
# No number depends on it. Two trainings side by side on two busy cores: four times as fast.
os.environ.setdefault("GOMP_SPINCOUNT", "100")

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "common",
        "datasets",
        "evaluation",
        "methods",
        "models",
        "plots",
        "protocols",
        "published",
        "statistics",
        "studies",
        "training",
    ],
    submod_attrs={
        "common.interventions": ["list_baselines"],
        "common.registry": ["UnknownNameError"],
        "common.settings": ["SettingsError"],
        "datasets": ["create_dataset", "list_datasets", "register_dataset"],
        "evaluation.costs": ["load_costs"],
        "evaluation.evaluate": ["evaluate"],
        "evaluation.records": ["load_records"],
        "evaluation.selection": ["select_images"],
        "methods": ["as_method", "create_method", "list_methods", "register_method"],
        "models": ["create_model", "describe", "list_models", "register_model"],
        "protocols": ["list_protocols", "register_protocol"],
        "protocols.incremental_deletion": ["incremental_deletion"],
        "protocols.single_deletion": ["SingleDeletionScore", "deletion_drops", "patch_sums", "rank_correlation"],
        "statistics": [
            "images_needed",
            "kendalls_w",
            "krippendorffs_alpha",
            "nested_bootstrap",
            "null_band",
            "paired_differences",
            "rank",
            "ranking_with_ties",
        ],
        "studies.explore": ["explore"],
        "training.own": ["finetune"],
    },
)
