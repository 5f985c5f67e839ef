"""Nets of timm and torchvision by name: ``timm/convnext_tiny.fb_in1k``, ``torchvision/regnet_y_400mf``.

A name stands for the library's own net. Normalisation, input size and number of classes are those of the library's configuration. The CAM
layer is the last layer that gives feature maps, found by a forward pass without numbers; ``layer=`` names another. Weights are fresh unless
you ask for ``pretrained=True``, which downloads the library's, or give a checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from idsds.common.normalisation import IMAGENET, Normalisation
from idsds.models.base import MODELS, Channels, ModelEntry


@dataclass(frozen=True)
class LibraryNet:
    """Builds one net of a library.

    Args:
        library: ``timm`` or ``torchvision``.
        name: the library's name for it.
    """

    library: str
    name: str

    def __getattr__(self, name: str) -> str:
        if name == "__qualname__":  # part of a record's address, together with the source of this module
            return f"{self.library}/{self.name} {version(self.library)}"
        raise AttributeError(name)

    def __call__(self, num_classes: int, pretrained: bool = False, image_size: int | None = None) -> nn.Module:
        """Build the net.

        Args:
            num_classes: K. Where the library's weights are for another number, the classifier keeps fresh ones.
            pretrained: whether to load the library's weights, which are downloaded the first time.
            image_size: pixels per side, for nets whose weights depend on it; None: the library's own.
        """
        if self.library == "timm":
            import timm

            sized = {} if image_size is None else {"img_size": image_size}
            return timm.create_model(self.name, pretrained=pretrained, num_classes=num_classes, **sized)
        import torchvision

        from idsds.models.pretrained import load_published

        sized = {} if image_size is None else {"image_size": image_size}
        net = torchvision.models.get_model(self.name, weights=None, num_classes=num_classes, **sized)
        if pretrained:
            load_published(net, torchvision.models.get_model(self.name, weights="DEFAULT").state_dict())
        return net


@cache
def timm_names() -> Sequence[str]:
    """The nets of timm, with and without the tag of their weights."""
    import timm

    return tuple(dict.fromkeys((*timm.list_models(), *timm.list_models(pretrained=True))))


@cache
def torchvision_names() -> Sequence[str]:
    """The classifiers of torchvision."""
    import torchvision

    return tuple(torchvision.models.list_models(module=torchvision.models))


def configuration(library: str, name: str) -> dict[str, Any]:
    """The fields of :class:`ModelEntry` that the library's configuration determines."""
    if library == "timm":
        import timm

        found = timm.get_pretrained_cfg(name)
        if found is None:
            return {"normalisation": IMAGENET}
        normalisation = Normalisation(tuple(found.mean), tuple(found.std))
        size, crop = found.input_size[-1], found.crop_pct
        return {"normalisation": normalisation, "input_size": size, "num_classes": found.num_classes or 1000, "crop": crop}
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    transform = weights.transforms()
    (size,), (resize,) = transform.crop_size, transform.resize_size
    normalisation = Normalisation(tuple(transform.mean), tuple(transform.std))
    classes = len(weights.meta["categories"])
    return {"normalisation": normalisation, "input_size": size, "num_classes": classes, "crop": size / resize}


@cache
def entry_of(key: str) -> ModelEntry:
    """The entry of ``library/Name``."""
    library, _, name = key.partition("/")
    build, settings = LibraryNet(library, name), configuration(library, name)
    with torch.device("meta"):
        try:
            net = build(settings.get("num_classes", 1000))
        except (RuntimeError, NotImplementedError, TypeError):  # it reads its weights while it is built
            net = None
    layer, channels = (None, "first") if net is None else feature_layer(net, settings.get("input_size", 224))
    family = library if net is None else type(net).__module__.rpartition(".")[2]
    return ModelEntry(
        name=key, build=build, family=family, cam_layer=layer, cam_channels=channels, source=f"{library} {version(library)}", **settings
    )


def feature_layer(net: nn.Module, size: int) -> tuple[str | None, Channels]:
    """The last layer of a net on the meta device that gives feature maps, and where their channels are; None where there is none.

    Nor is there one where lists of tokens (B, N, K) come after the last feature maps, as in vision transformers.
    """
    found: list[tuple[str | None, Channels]] = [(None, "first")]

    def note(name: str, module: nn.Module, output: object) -> None:
        if not isinstance(output, Tensor) or isinstance(module, nn.Identity) or "Pool" in type(module).__name__:
            return
        if output.ndim == 3 and output.shape[1] > 1:
            found.append((None, "first"))
        if output.ndim == 4:
            first, second, third = output.shape[1:]
            if second == third > 1 and first != second:
                found.append((name, "first"))
            elif first == second > 1 and third != second:
                found.append((name, "last"))

    handles = [
        module.register_forward_hook(lambda module, _inputs, output, name=name: note(name, module, output))
        for name, module in net.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            net.eval()(torch.empty(1, 3, size, size, device="meta"))
    except (RuntimeError, NotImplementedError, TypeError, AssertionError):
        return None, "first"
    finally:
        for handle in handles:
            handle.remove()
    return found[-1]


def _register() -> None:
    for library, names in (("timm", timm_names), ("torchvision", torchvision_names)):
        MODELS.add_library(library, names, entry_of)


_register()
