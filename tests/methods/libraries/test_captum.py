"""Methods of captum, against captum called directly and formulas."""

from __future__ import annotations

import warnings

import captum.attr
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import idsds
from idsds.common.interventions import patch_numbers
from idsds.common.randomness import seeded as generators
from idsds.methods import create_method
from tests.methods.libraries.nets import TARGETS, net_of_modules
from tests.methods.nets import ConvNet, Linear, images_of, mini, seeded


@pytest.mark.parametrize(
    ("name", "make", "options"),
    [
        ("captum/DeepLift", captum.attr.DeepLift, {}),
        ("captum/InputXGradient", captum.attr.InputXGradient, {}),
        ("captum/Saliency", captum.attr.Saliency, {}),
        ("captum/IntegratedGradients", captum.attr.IntegratedGradients, {"n_steps": 7}),
        ("captum/GuidedBackprop", captum.attr.GuidedBackprop, {}),
        ("captum/Deconvolution", captum.attr.Deconvolution, {}),
        ("captum/Occlusion", captum.attr.Occlusion, {"sliding_window_shapes": (3, 3, 2), "strides": (3, 2, 2)}),
        ("captum/FeatureAblation", captum.attr.FeatureAblation, {"feature_mask": torch.arange(48).view(1, 1, 6, 8) // 7}),
    ],
)
def test_captum_called_directly_gives_the_same(name: str, make: type, options: dict) -> None:
    net, images, targets = net_of_modules(), images_of(3, 6, 8), torch.tensor([0, 3, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = make(net).attribute(images.clone().requires_grad_(), target=targets, **options).sum(1, keepdim=True)
        found = create_method(name, net, **options)(images, targets)
    tolerance = 1e-10 if wanted.dtype == torch.float64 else 1e-6  # captum sums windows in float32
    assert torch.allclose(found, wanted.detach().double(), rtol=tolerance, atol=tolerance / 100)


@pytest.mark.parametrize("name", ["KernelShap", "Lime", "ShapleyValueSampling"])
def test_captums_random_methods_with_the_same_generator(name: str) -> None:
    net, images, targets = net_of_modules(), images_of(2, 6, 8), torch.tensor([0, 3])
    mask = (torch.arange(6)[:, None] // 3 * 2 + torch.arange(8) // 4)[None, None]
    found = create_method(f"captum/{name}", net, seed=5, grid=2, n_samples=12)(images, targets, ["x", "y"])
    for number, image_id in enumerate(("x", "y")):
        some = slice(number, number + 1)
        with generators(5, f"captum/{name}", image_id), torch.no_grad():
            wanted = getattr(captum.attr, name)(net).attribute(images[some], target=targets[some], feature_mask=mask, n_samples=12)
        assert torch.allclose(found[some], wanted.sum(1, keepdim=True).double(), rtol=1e-6, atol=1e-8)


def test_random_methods_are_keyed_and_leave_the_global_generators_alone() -> None:
    net, image, target = net_of_modules(), images_of(1, 6, 8), torch.tensor([1])
    torch.manual_seed(4)
    np.random.seed(4)
    first = create_method("Shapley", net, grid=2, n_samples=1)(image, target, ["a"])
    drawn = torch.rand(()), np.random.rand()
    torch.manual_seed(4)
    np.random.seed(4)
    assert drawn == (torch.rand(()), np.random.rand())
    assert torch.equal(first, create_method("Shapley", net, grid=2, n_samples=1)(image, target, ["a"]))
    others = [create_method("Shapley", net, seed=seed, grid=2, n_samples=1)(image, target, [i]) for seed, i in ((1, "a"), (0, "b"))]
    assert any(not torch.equal(first, other) for other in others)


@pytest.mark.parametrize("relu", ["module", "in place", "functional"])
def test_deeplift_on_reused_and_functional_relus_is_deeplift_on_modules(relu: str) -> None:
    images, targets = images_of(3, 6, 8), torch.tensor([0, 3, 1])
    wanted = create_method("DeepLIFT", net_of_modules())(images, targets)
    found = create_method("DeepLIFT", seeded(ConvNet, relu=relu))(images, targets)
    assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-14)


def test_deeplift_of_a_linear_net_is_weight_times_difference() -> None:
    net, images = seeded(Linear), images_of(2, 6, 4)
    found = create_method("DeepLIFT", net, baselines=0.25)(images, TARGETS % 3)
    wanted = net.fc.weight[TARGETS % 3].view_as(images) * (images - 0.25)
    assert torch.allclose(found, wanted.sum(1, keepdim=True))


def test_deepshap_is_deeplift_averaged_over_baselines() -> None:
    net, images, targets = seeded(ConvNet), images_of(2, 6, 8), torch.tensor([0, 3])
    baselines = images_of(3, 6, 8, seed=5)
    each = [create_method("DeepLIFT", net, baselines=baseline[None])(images, targets) for baseline in baselines]
    assert torch.allclose(create_method("DeepSHAP", net, baselines=baselines)(images, targets), torch.stack(each).mean(0))


class Wave(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.erf(self.conv(3 * x)).mean((2, 3)))


def test_deeplift_that_does_not_sum_to_what_the_logit_moves_by_is_an_error() -> None:
    with pytest.raises(ValueError, match="do not sum to the change of the logit"):
        create_method("DeepLIFT", seeded(Wave))(images_of(2, 6, 8), torch.tensor([0, 2]))


def test_deeplift_warns_where_captums_rule_for_pooling_is_not_exact() -> None:
    with pytest.warns(RuntimeWarning, match="max pooling is not exact"):
        create_method("DeepLIFT", mini("mini_vgg11_bn"), baselines=images_of(1, 32, 32, seed=9))(images_of(2, 32, 32), TARGETS)


@pytest.mark.parametrize(
    ("kind", "name"), [("FeatureAblation", "feature_mask"), ("FeatureAblation", "baselines"), ("IntegratedGradients", "baselines")]
)
def test_masks_and_baselines_per_image_are_refused(checkpoint, kind: str, name: str) -> None:
    """Images come in the engine's order, so that one image would get another's."""
    net = idsds.create_model("mini_resnet8", num_classes=10, checkpoint=checkpoint)
    options = {name: patch_numbers(torch.zeros(1, 3, 32, 32), 4).expand(2, 1 if name == "feature_mask" else 3, -1, -1)}
    for thing in (f"captum/{kind}", getattr(captum.attr, kind)(net)):
        with pytest.raises(ValueError, match=rf"{name} \(2, ., 32, 32\) has one entry per image"):
            idsds.evaluate({"own": net}, {"mine": (thing, options)}, "digits", images=2, progress=False)
