"""Deconvolution and Guided Backprop against matrix formulas, and against captum where captum is right."""

from __future__ import annotations

import captum.attr
import pytest
import torch
import torch.nn.functional as F
from captum.attr import GuidedBackprop, Saliency
from torch import Tensor, nn

from idsds import create_model
from idsds.methods import create_method, list_methods
from idsds.methods.guided import no_relu
from tests.methods.nets import ConvNet, images_of, mini, seeded

CAPTUM = {"Guided Backprop": captum.attr.GuidedBackprop, "Deconvolution": captum.attr.Deconvolution}
IMAGES, TARGETS = images_of(3, 6, 4), torch.tensor([0, 2, 1])


class Residual(nn.Module):
    """logits = V (relu(A x) + A x): the ReLU and the shortcut read the same tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.v = nn.Linear(72, 9), nn.Linear(9, 3)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x.flatten(1))
        return self.v(self.relu(hidden) + hidden)


def test_two_layers_by_matrices() -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 9), nn.ReLU(), nn.Linear(9, 3)))
    first, second = model[1].weight.detach(), model[3].weight.detach()[TARGETS]
    active = model[1](IMAGES.flatten(1)).detach() > 0
    wanted = {"Gradient": second * active, "Deconvolution": second.relu(), "Guided Backprop": second.relu() * active}
    for name, hidden in wanted.items():
        found = create_method(name, model)(IMAGES, TARGETS)
        assert torch.allclose(found, (hidden @ first).view(3, 3, 6, 4).sum(dim=1, keepdim=True), rtol=1e-9, atol=1e-12), name


def test_a_shortcut_keeps_its_negative_gradient() -> None:
    model = seeded(Residual)
    a, v = model.a.weight.detach(), model.v.weight.detach()[TARGETS]
    active = model.a(IMAGES.flatten(1)).detach() > 0
    wanted = ((v.relu() * active + v) @ a).view(3, 3, 6, 4)
    found = create_method("Guided Backprop", model)(IMAGES, TARGETS)
    assert torch.allclose(found, wanted.sum(dim=1, keepdim=True), rtol=1e-9, atol=1e-12)
    # Captum rectifies what the shortcut hands down as well; should it mend that, its own result may be used.
    theirs = captum.attr.GuidedBackprop(model).attribute(IMAGES.clone().requires_grad_(), target=TARGETS)
    assert not torch.allclose(theirs, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", CAPTUM)
@pytest.mark.parametrize("relu", ["module", "in place", "functional"])
def test_every_kind_of_relu_is_seen(name: str, relu: str) -> None:
    class Two(ConvNet):
        """The same net with a ReLU module of its own at either place, as captum wants it."""

        def __init__(self) -> None:
            super().__init__()
            self.act2 = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            x = self.features(self.act2(self.conv2(self.act(self.conv1(x)))))
            return self.fc(x.mean(dim=(2, 3)))

    reference, model = seeded(Two), seeded(ConvNet, relu=relu)
    model.load_state_dict(reference.state_dict())
    wanted = CAPTUM[name](reference).attribute(IMAGES.clone().requires_grad_(), target=TARGETS).sum(dim=1, keepdim=True)
    assert torch.allclose(create_method(name, model)(IMAGES, TARGETS), wanted, rtol=1e-9, atol=1e-12)


EFFECTS = {
    "method": lambda hidden: hidden.relu_(),
    "function": lambda hidden: F.relu_(hidden),
    "argument": lambda hidden: F.relu(hidden, True),
    "keyword": lambda hidden: F.relu(hidden, inplace=True),
    "module": nn.ReLU(inplace=True),
}


@pytest.mark.parametrize("effect", EFFECTS)
def test_a_relu_called_for_its_effect_alone(effect: str) -> None:
    class Effect(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.v = nn.Linear(72, 9), nn.Linear(9, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x.flatten(1))
            EFFECTS[effect](hidden)
            return self.v(hidden)

    model = seeded(Effect)
    active = model.a(IMAGES.flatten(1)).detach() > 0
    wanted = ((model.v.weight.detach()[TARGETS].relu() * active) @ model.a.weight.detach()).view(3, 3, 6, 4).sum(dim=1, keepdim=True)
    assert torch.allclose(create_method("Guided Backprop", model)(IMAGES, TARGETS), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CAPTUM)
@pytest.mark.parametrize("model_name", ["mini_vgg11", "mini_resnet8"])
@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_as_captum_on_torchvisions_blocks(name: str, model_name: str) -> None:
    model, images, targets = mini(model_name), images_of(2, 32, 40), torch.tensor([1, 7])
    wanted = CAPTUM[name](model).attribute(images.clone().requires_grad_(), target=targets).sum(dim=1, keepdim=True)
    assert torch.allclose(create_method(name, model)(images, targets), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_guided_grad_cam_as_captum() -> None:
    model, images, targets = mini("mini_vgg11"), images_of(2, 32, 40), torch.tensor([1, 7])
    guided = captum.attr.GuidedGradCam(model, model.features)
    wanted = guided.attribute(images.clone().requires_grad_(), target=targets).sum(dim=1, keepdim=True)
    assert torch.allclose(create_method("Guided Grad-CAM", model)(images, targets), wanted, rtol=1e-9, atol=1e-12)
    smooth = create_method("Grad-CAM", model)(images, targets) * create_method("Guided Backprop", model)(images, targets)
    assert torch.allclose(create_method("Guided Grad-CAM (paper)", model)(images, targets), smooth, rtol=1e-9, atol=1e-12)


def test_a_model_without_relu_is_refused() -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 3)))
    assert "Guided Backprop" in list_methods(model)  # a net of the user's may have functional ReLUs
    with pytest.raises(ValueError, match="no ReLU ran in Sequential"):
        create_method("Guided Backprop", model)(IMAGES, TARGETS)


def test_relus_are_themselves_again_afterwards() -> None:
    model = seeded(ConvNet)
    create_method("Deconvolution", model)(IMAGES, TARGETS)
    x = torch.tensor([1.0, -1.0], requires_grad=True)
    F.relu(x).backward(torch.tensor([-2.0, 3.0]))
    assert x.grad.tolist() == [-2.0, 0.0]


@pytest.mark.parametrize("cap", [nn.ReLU6(), nn.Hardtanh(0, 6), nn.Hardtanh(0, 6, inplace=True)])
def test_a_relu_with_a_cap_by_matrices(cap: nn.Module) -> None:
    model = seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(72, 9), cap, nn.Linear(9, 3)))
    model[1].weight.data *= 20
    first, second = model[1].weight.detach(), model[3].weight.detach()[TARGETS]
    hidden = model[1](IMAGES.flatten(1)).detach()
    active = (hidden > 0) & (hidden < 6)
    assert (hidden > 6).any()
    wanted = {"Gradient": second * active, "Deconvolution": second.relu(), "Guided Backprop": second.relu() * active}
    for name, gradient in wanted.items():
        found = create_method(name, model)(IMAGES, TARGETS)
        assert torch.allclose(found, (gradient @ first).view(3, 3, 6, 4).sum(dim=1, keepdim=True), rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize("clip", [lambda x: x.clamp(min=0), lambda x: x.clamp_min(0), lambda x: F.threshold(x, 0, 0), lambda x: x.clip_(0)])
def test_a_clip_at_zero_is_a_relu(clip) -> None:
    class Clipped(ConvNet):
        def __init__(self) -> None:
            super().__init__()
            self.act = type("Clip", (nn.Module,), {"forward": lambda _self, x: clip(x)})()

    model, reference = seeded(Clipped), seeded(ConvNet)
    for name in CAPTUM:
        found = create_method(name, model)(IMAGES, TARGETS)
        assert torch.equal(found, create_method(name, reference)(IMAGES, TARGETS))


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_guided_backprop_of_a_net_without_relus_is_captums_plain_gradient():
    """What the study's rows of EfficientNet show, and why our scatter draws another method than Guided Backprop there."""
    net = create_model("mini_efficientnet")
    assert no_relu(create_model("efficientnet_b0", num_classes=2)), "torchvision's has SiLUs alone"
    with pytest.raises(ValueError, match="does not apply"):
        create_method("Guided Backprop", net)
    images, targets = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 5])
    guided = GuidedBackprop(net).attribute(images.clone().requires_grad_(), target=targets)
    gradient = Saliency(net).attribute(images.clone().requires_grad_(), target=targets, abs=False)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(guided, gradient, rtol=0, atol=0)
