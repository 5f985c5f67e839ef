"""Data sets. Importing this package fills the registry."""

from idsds.datasets import embedded, synthetic
from idsds.datasets.base import (
    DATASETS,
    DatasetEntry,
    ImageDataset,
    as_image_dataset,
    collate,
    create_dataset,
    fingerprint,
    fixed_order,
    list_datasets,
    register_dataset,
)

__all__ = [
    "DATASETS",
    "DatasetEntry",
    "ImageDataset",
    "as_image_dataset",
    "collate",
    "create_dataset",
    "embedded",
    "fingerprint",
    "fixed_order",
    "list_datasets",
    "register_dataset",
    "synthetic",
]
