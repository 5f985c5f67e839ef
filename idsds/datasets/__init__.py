"""Data sets. Importing this package fills the registry."""

from idsds.datasets import embedded, folders, funnybirds, photos, sprites, synthetic, torchvision, xai_correlation
from idsds.datasets.base import (
    DATASETS,
    AugmentedDataset,
    DatasetEntry,
    ImageDataset,
    ImageReadError,
    collate,
    create_dataset,
    fingerprint,
    fixed_order,
    list_datasets,
    register_dataset,
)
from idsds.datasets.manifest import manifest, read_manifest, select, write_manifest
from idsds.datasets.own import as_image_dataset
from idsds.datasets.splits import stratified_split
