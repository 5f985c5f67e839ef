"""The study's checkpoints: their keys, and the reference's logits for deterministic weights."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from idsds.models import MODELS, create_model
from idsds.models.bcos import BcosResNet
from idsds.models.fixup import NormFreeResNet
from tests.models.golden import KEY_LISTS, LOGITS, filled, golden_images, study_file, study_state, tensor_for, tolerance


@pytest.mark.parametrize("name", KEY_LISTS)
def test_keys_and_shapes_are_those_of_the_checkpoint(name):
    with torch.device("meta"):
        model = create_model(name)
    own_key = model.own_key if isinstance(model, BcosResNet) else lambda key: key
    wanted = [(own_key(key), tuple(shape), dtype) for key, shape, dtype in KEY_LISTS[name]["entries"]]
    assert [(k, tuple(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in model.state_dict().items()] == wanted
    assert sum(parameter.numel() for parameter in model.parameters()) == KEY_LISTS[name]["n_parameters"]


@pytest.mark.parametrize("name", LOGITS)
def test_the_study_file_gives_the_logits_of_the_reference(name, tmp_path):
    model = create_model(name, checkpoint=study_file(study_state(name), tmp_path / "checkpoint_best.pth.tar"))
    with torch.inference_mode():
        logits = model(golden_images(name))
    torch.testing.assert_close(logits, LOGITS[name], rtol=0, atol=tolerance(name))


@pytest.mark.parametrize("name", sorted({"resnet50", "resnet101", "resnet152", "wide_resnet50_2", "vgg13", "vgg16", "vgg19", "vgg16_bn"}))
def test_the_others_are_torchvisions_own_nets(name):
    with torch.device("meta"):
        ours, theirs = create_model(name), torchvision.models.get_model(name)
    assert type(ours) is type(theirs)
    assert repr(ours) == repr(theirs)


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


def test_x_vgg16_has_the_layers_of_vgg16_and_no_bias():
    with torch.device("meta"):
        ours, theirs = create_model("x_vgg16"), torchvision.models.vgg16()
    assert [type(m) for m in ours.modules()] == [type(m) for m in theirs.modules()]
    assert all(m.bias is None for m in ours.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
    assert [m.p for m in ours.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]


@pytest.mark.parametrize("name", [name for name in MODELS if name.startswith("vit") or name == "mini_vit"])
def test_attention_gives_the_same_logits_fused_or_not(name):
    model = create_model(name, num_classes=5)
    model.load_state_dict(filled(model.state_dict()))
    images = torch.randn(1, 3, model.entry.input_size, model.entry.input_size)
    with torch.inference_mode():
        fused = model(images)
        for block in model.blocks:
            assert block.attn.fused_attn
            block.attn.fused_attn = False
        torch.testing.assert_close(model(images), fused, rtol=1e-4, atol=1e-5)  # float32, another order of sums


def test_the_deterministic_weights_depend_on_key_and_shape_alone():
    # First values of conv1.weight of resnet18 as the reference's run recorded them.
    found = tensor_for("conv1.weight", (64, 3, 7, 7), gains=(1.15, 1.0)).flatten()[:4]
    recorded = torch.tensor([0.07261140644550323, -0.14311544597148895, 0.30195173621177673, 0.029556777328252792])
    torch.testing.assert_close(found, recorded, rtol=1e-6, atol=0)
