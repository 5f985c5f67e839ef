"""Models by family. Importing this package fills the registry."""

from idsds.models import bagnet, resnet, vgg
from idsds.models.base import (
    HALF,
    IMAGENET,
    MODELS,
    UNIT,
    ModelEntry,
    Normalisation,
    create_model,
    describe,
    frozen,
    list_models,
    register_model,
)
from idsds.models.checkpoints import CheckpointError, load_checkpoint

__all__ = [
    "HALF",
    "IMAGENET",
    "MODELS",
    "UNIT",
    "CheckpointError",
    "ModelEntry",
    "Normalisation",
    "bagnet",
    "create_model",
    "describe",
    "frozen",
    "list_models",
    "load_checkpoint",
    "register_model",
    "resnet",
    "vgg",
]
