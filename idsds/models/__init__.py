"""Models by family. Importing this package fills the registry."""

from idsds.common.normalisation import HALF, IMAGENET, UNIT, Normalisation
from idsds.models import bagnet, bcos, densenet, efficientnet, fixup, libraries, packaged, resnet, vgg, vit
from idsds.models.base import MODELS, ModelEntry, create_model, describe, frozen, list_models, register_model
from idsds.models.weights import CheckpointError, load_checkpoint, save_checkpoint
