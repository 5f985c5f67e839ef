"""Nets without normalisation: as their paper writes them down, and homogeneous where they have no bias."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from idsds.models import create_model
from idsds.models.fixup import NormFreeResNet
from tests.models.golden import filled


def fixup_logits(state, images):
    """The net of the Fixup paper's figure 1 (right) with bottlenecks, written down from its keys alone."""

    def scalar(name):
        return state.get(name, 0.0)

    x = F.relu(F.conv2d(images, state["conv1.weight"], stride=2, padding=3) + scalar("bias1"))
    x = F.max_pool2d(x, 3, 2, 1)
    for block in sorted({key[: key.index("conv")] for key in state if key.startswith("layer") and "conv" in key}):
        stride = 2 if block[5] > "1" and block[7] == "0" else 1
        out = F.relu(F.conv2d(x + scalar(block + "bias1a"), state[block + "conv1.weight"]) + scalar(block + "bias1b"))
        weight = state[block + "conv2.weight"]
        out = F.relu(F.conv2d(out + scalar(block + "bias2a"), weight, stride=stride, padding=1) + scalar(block + "bias2b"))
        out = F.conv2d(out + scalar(block + "bias3a"), state[block + "conv3.weight"])
        out = out * state.get(block + "scale", 1.0) + scalar(block + "bias3b")
        if block + "downsample.weight" in state:
            x = F.conv2d(x + scalar(block + "bias1a"), state[block + "downsample.weight"], stride=stride)
        x = F.relu(out + x)
    return F.linear(x.mean(dim=(2, 3)) + scalar("bias2"), state["fc.weight"], state.get("fc.bias"))


@pytest.mark.parametrize("name", ["fixup_resnet50", "x_resnet50"])
def test_nets_without_normalisation_follow_the_paper(name):
    model = create_model(name, num_classes=7).double()
    model.load_state_dict(filled(model.state_dict()))
    images = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    with torch.inference_mode():
        # float64 against float64: what is left is the order of the sums.
        torch.testing.assert_close(model(images), fixup_logits(model.state_dict(), images), rtol=1e-10, atol=1e-10)


def test_fixup_starts_as_the_paper_says():
    """In a branch: He's deviation times L^(-1/(2m-2)), the last convolution zero; biases 0, multipliers 1."""
    torch.manual_seed(0)
    net = NormFreeResNet(10, (2, 2, 2), scalars=True, bottleneck=True, width=32, small_inputs=True)
    weight = net.layer3[1].conv2.weight
    expected = (2 / (weight.shape[0] * 9)) ** 0.5 * 6 ** (-1 / 4)
    assert weight.std().item() == pytest.approx(expected, rel=0.02)  # 147,456 draws: a standard error of 0.2 %
    assert all(not block.conv3.weight.any() and block.scale.item() == 1 for stage in (net.layer1, net.layer3) for block in stage)


@pytest.mark.parametrize("name", ["x_resnet50", "mini_x_resnet8", "mini_x_vgg11"])
def test_a_net_without_bias_is_homogeneous(name):
    model = create_model(name, num_classes=5).double()
    model.load_state_dict(filled(model.state_dict()))
    images = torch.randn(2, 3, 32, 48, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(model(2.5 * images), 2.5 * model(images), rtol=1e-10, atol=1e-12)
        assert model(images).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("name", "kinds"), [("mini_fixup_resnet8", ["norm"]), ("mini_x_resnet8", ["norm", "bias"]), ("mini_x_vgg11", ["bias"])]
)
def test_what_a_variant_leaves_out(name, kinds):
    model = create_model(name)
    if "norm" in kinds:
        assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert any("bias" in key for key, _ in model.named_parameters()) == ("bias" not in kinds)
