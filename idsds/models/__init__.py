"""Models by family. Importing this package fills the registry."""

from idsds.common.normalisation import HALF, IMAGENET, UNIT, Normalisation
from idsds.models import bagnet, bcos, densenet, efficientnet, fixup, libraries, packaged, resnet, vgg, vit
from idsds.models.base import MODELS, ModelEntry, create_model, describe, frozen, list_models, register_model
from idsds.models.weights import CheckpointError, load_checkpoint, save_checkpoint

__all__ = [
    "HALF",
    "IMAGENET",
    "MODELS",
    "UNIT",
    "CheckpointError",
    "ModelEntry",
    "Normalisation",
    "bagnet",
    "bcos",
    "create_model",
    "densenet",
    "describe",
    "efficientnet",
    "fixup",
    "frozen",
    "libraries",
    "list_models",
    "load_checkpoint",
    "packaged",
    "register_model",
    "resnet",
    "save_checkpoint",
    "vgg",
    "vit",
]
