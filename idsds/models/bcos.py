"""B-cos networks (Böhle, Singh, Fritz and Schiele, "B-cos Alignment for Inherently Interpretable CNNs and Vision Transformers", TPAMI
2024).

A B-cos layer scales each output by how well its input aligns with its weight, ``|cos(x, w)| w^T x / |w|``. The whole net is therefore an
input-dependent linear map, ``f(x) = W(x) x + b`` with the constant logit bias ``b``, and ``W(x)`` is its explanation. The nets are those
of the authors' ``bcos`` package plus the input encoding.

A batched intrinsic explanation takes four members of :class:`BcosResNet`::

    encoded = model.encode(images).detach().requires_grad_()          # (B, 6, H, W)
    with model.explanation_mode():                                    # the scaling is constant, so that the gradient is W(x)
        logits = model.classify(encoded)                              # (B, K)
        rows, = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), encoded)
    contributions = rows * encoded                                    # (B, 6, H, W); sums to the target logit minus model.logit_bias
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import bcos.models.resnet
import torch
from bcos.models.resnet import BasicBlock, Bottleneck
from bcos.modules import BcosConv2d
from bcos.modules.norms import BatchNormUncentered2d
from torch import Tensor, nn

from idsds.common.normalisation import UNIT
from idsds.models.base import register_model
from idsds.models.pretrained import load_published

SOURCE = "Böhle et al., TPAMI 2024"


def norm_without_bias(channels: int) -> nn.Module:
    """Return a BatchNorm that neither subtracts a mean nor adds a bias, so that the layer stays linear."""
    norm = BatchNormUncentered2d(channels)
    norm.bias = None
    return norm


class BcosResNet(bcos.models.resnet.BcosResNet):
    """A B-cos ResNet, (B, 3, H, W) with values in [0, 1] -> logits (B, K).

    Args:
        block: the package's ``BasicBlock`` or ``Bottleneck``.
        width: channels of the first stage.
        small_inputs: whether to use a 3 x 3 stem with stride 2, for 32 x 32 pixels, instead of 7 x 7 with stride 2 and pooling.
    """

    def __init__(
        self, block: type[nn.Module], blocks: Sequence[int], num_classes: int, *, width: int = 64, small_inputs: bool = False
    ) -> None:
        super().__init__(
            block, list(blocks), num_classes=num_classes, norm_layer=norm_without_bias, inplanes=width, small_inputs=small_inputs
        )
        if small_inputs:
            self.conv1 = BcosConv2d(6, width, kernel_size=3, stride=2, padding=1)

    @property
    def logit_bias(self) -> float:
        """The constant added to every logit, -log(K - 1), so that an untrained net gives each class probability 1 / K."""
        return self.logit_layer.logit_bias

    @staticmethod
    def encode(images: Tensor) -> Tensor:
        """Append ``1 - images`` as three more channels, (B, 3, H, W) -> (B, 6, H, W), so that black is not the zero vector."""
        return torch.cat([images, 1 - images], dim=1)

    def classify(self, encoded: Tensor) -> Tensor:
        """Return the logits of encoded images, (B, 6, H, W) -> (B, K)."""
        return super().forward(encoded)

    def forward(self, images: Tensor) -> Tensor:
        return self.classify(self.encode(images))

    @contextmanager
    def explanation_mode(self) -> Iterator[None]:
        """Make the gradient at the encoded input ``W(x)`` by treating the scaling as constant. Logits do not change.

        The modes are restored on exit, even after an exception.
        """
        layers = {module: module.detach for module in self.modules() if hasattr(module, "set_explanation_mode")}
        try:
            for layer in layers:
                layer.set_explanation_mode(True)
            yield
        finally:
            for layer, mode in layers.items():
                layer.set_explanation_mode(mode)

    def own_key(self, key: str) -> str:
        """Return the name in this net of a checkpoint's ``key``.

        The study's files call the weight of a B-cos layer ``X.weight``; the package calls it ``X.linear.weight``.
        """
        stem, _, leaf = key.rpartition(".")
        layer = dict(self.named_modules()).get(stem)
        return f"{stem}.linear.{leaf}" if isinstance(layer, BcosConv2d) else key


def _register(name: str, block: type[nn.Module], blocks: Sequence[int]) -> None:
    @register_model(f"bcos_{name}", family="bcos", normalisation=UNIT, intrinsic="B-cos", loss="binary_cross_entropy", source=SOURCE)
    def build(num_classes: int, pretrained: bool = False) -> nn.Module:
        net = BcosResNet(block, blocks, num_classes)
        if pretrained:  # downloads the weights that the ``bcos`` package links to
            published = importlib.import_module("bcos.models.pretrained")
            load_published(net, getattr(published, name)(pretrained=True).state_dict())
        return net


_register("resnet50", Bottleneck, (3, 4, 6, 3))
_register("resnet18", BasicBlock, (2, 2, 2, 2))


@register_model(
    family="bcos",
    normalisation=UNIT,
    intrinsic="B-cos",
    loss="binary_cross_entropy",
    num_classes=10,
    input_size=32,
    source=SOURCE,
    training={"epochs": 6, "lr": 1e-2, "batch_size": 32},
)
def mini_bcos(num_classes: int) -> nn.Module:
    """Build the B-cos counterpart of mini_resnet8."""
    return BcosResNet(BasicBlock, (1, 1, 1), num_classes, width=16, small_inputs=True)
