"""Models of timm and torchvision by name: ``timm/convnext_tiny.fb_in1k``, ``torchvision/regnet_y_400mf``.

Each name builds the library's own net, with the normalisation, input size and number of classes of the library's configuration. The CAM
layer is the last layer that outputs feature maps, found by a forward pass on the meta device; ``layer=`` selects another. Weights are
randomly initialised unless you pass a checkpoint or ``pretrained=True``, which downloads the library's. ``timm/NAME@448`` is the same net
for images of 448 x 448 pixels; timm interpolates its position embeddings.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
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
        size: pixels per side of the input; None for the library's default.
    """

    library: str
    name: str
    size: int | None = None

    def __getattr__(self, name: str) -> str:
        if name == "__qualname__":  # part of a record's address, together with the source of this module
            size = "" if self.size is None else f"@{self.size}"
            return f"{self.library}/{self.name}{size} {version(self.library)}"
        raise AttributeError(name)

    def __call__(self, num_classes: int, pretrained: bool = False, image_size: int | None = None) -> nn.Module:
        """Build the net.

        Args:
            num_classes: K. If the library's weights are for another number of classes, the classifier stays randomly initialised.
            pretrained: whether to load the library's weights, downloaded on first use.
            image_size: pixels per side, for nets whose weights depend on it; None for the library's default.
        """
        if self.library == "timm":
            import timm

            sized = {} if image_size is None else {"img_size": image_size}
            make = partial(timm.create_model, self.name, pretrained=pretrained, num_classes=num_classes)
            if self.size is None or sized:
                return make(**sized)
            try:
                return make(img_size=self.size)
            except TypeError:  # its weights do not depend on the size
                return make()
        import torchvision

        from idsds.models.pretrained import load_published

        size = self.size if image_size is None and "vit_" in self.name else image_size
        sized = {} if size is None else {"image_size": size}
        net = torchvision.models.get_model(self.name, weights=None, num_classes=num_classes, **sized)
        if pretrained:
            state = torchvision.models.get_model(self.name, weights="DEFAULT").state_dict()
            load_published(net, state if self.size is None else at_size(net, state))
        return net


class Names(tuple[str, ...]):
    """Model names, each optionally followed by ``@`` and the pixels per side of its input."""

    def __contains__(self, name: object) -> bool:
        home, at, size = str(name).partition("@")
        return tuple.__contains__(self, home) and (not at or (size.isdecimal() and int(size) > 0))


@cache
def timm_names() -> Names:
    """Return the names of timm's models, with and without the tag of their weights."""
    import timm

    return Names(dict.fromkeys((*timm.list_models(), *timm.list_models(pretrained=True))))


@cache
def torchvision_names() -> Names:
    """Return the names of torchvision's classifiers."""
    import torchvision

    return Names(torchvision.models.list_models(module=torchvision.models))


def at_size(net: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights for ``NAME@size``, with position embeddings interpolated to that size by the library's own function."""
    state, own, home = dict(state), net.state_dict(), sys.modules[type(net).__module__]
    if all(value.shape == own[key].shape for key, value in state.items() if key in own):
        return state
    if hasattr(home, "interpolate_embeddings"):  # torchvision's ViT
        return dict(home.interpolate_embeddings(net.image_size, net.patch_size, OrderedDict(state)))
    return dict(home.checkpoint_filter_fn(state, net)) if hasattr(home, "checkpoint_filter_fn") else state


def configuration(library: str, name: str) -> dict[str, Any]:
    """Return the fields of :class:`ModelEntry` that the library's configuration determines."""
    if library == "timm":
        import timm

        found = timm.get_pretrained_cfg(name)
        if found is None:
            return {"normalisation": IMAGENET}
        normalisation = Normalisation(tuple(found.mean), tuple(found.std))
        how = {"input_size": found.input_size[-1], "crop": found.crop_pct, "interpolation": found.interpolation}
        how["squash"] = found.crop_mode == "squash"
        return {"normalisation": normalisation, "num_classes": found.num_classes or 1000, **how}
    import torchvision

    weights = torchvision.models.get_model_weights(name).DEFAULT
    transform = weights.transforms()
    (size,), (resize,) = transform.crop_size, transform.resize_size
    normalisation = Normalisation(tuple(transform.mean), tuple(transform.std))
    classes = len(weights.meta["categories"])
    how = {"input_size": size, "crop": size / resize, "interpolation": transform.interpolation.value}
    return {"normalisation": normalisation, "num_classes": classes, **how}


@cache
def entry_of(key: str) -> ModelEntry:
    """Return the entry of ``library/Name``."""
    library, _, local = key.partition("/")
    name, _, size = local.partition("@")
    build, settings = LibraryNet(library, name, int(size) if size else None), configuration(library, name)
    settings |= {"input_size": int(size)} if size else {}
    with torch.device("meta"):
        try:
            net = build(settings.get("num_classes", 1000))
        except (RuntimeError, NotImplementedError, TypeError) as error:  # it reads its weights while it is built
            net = None
            if size:
                raise ValueError(f"{library}/{name} cannot be built for images of {size} pixels: {error}") from error
        except AssertionError as error:
            raise ValueError(f"{library}/{name} cannot be built for images of {size} pixels: {error or type(error).__name__}") from error
    layer, channels = (None, "first") if net is None else feature_layer(net, settings.get("input_size", 224))
    family = library if net is None else type(net).__module__.rpartition(".")[2]
    patch = 1 if net is None else patch_of(net)
    if size and int(size) % patch:
        fits = [int(size) // patch * patch, (int(size) // patch + 1) * patch]
        raise ValueError(
            f"{key}: {size} pixels are no multiple of its patches of {patch}; nearest: {' and '.join(map(str, filter(None, fits)))}"
        )
    where = {"cam_layer": layer, "cam_channels": channels, "source": f"{library} {version(library)}"}
    return ModelEntry(name=key, build=build, family=family, patch=patch, **where, **settings)


def patch_of(net: nn.Module) -> int:
    """Return the pixels per side of the patches into which a net splits its input; 1 if it has none."""
    size = getattr(getattr(net, "patch_embed", None), "patch_size", getattr(net, "patch_size", 1))
    return int(size[0] if isinstance(size, tuple) else size)


def feature_layer(net: nn.Module, size: int) -> tuple[str | None, Channels]:
    """Return the last layer that outputs feature maps and their channel dimension, for a net on the meta device; None if there is none.

    A net in which token sequences (B, N, K) follow the last feature maps, such as a vision transformer, counts as having none.
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


MODELS.add_library("timm", timm_names, entry_of)
MODELS.add_library("torchvision", torchvision_names, entry_of)
