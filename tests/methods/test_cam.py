"""CAMs against torchcam, the papers' formulas, and the closed form of nets that average positions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
import torchcam.methods
from scipy.stats import spearmanr
from torch import Tensor, nn

from idsds.common.registry import UnknownNameError
from idsds.methods import create_method, list_methods
from tests.methods.nets import ConvNet, images_of, seeded

IMAGES, TARGETS = images_of(3, 8, 12), torch.tensor([0, 3, 1])
TORCHCAM = {"Grad-CAM": "GradCAM", "Grad-CAM++": "GradCAMpp", "XGrad-CAM": "XGradCAM", "Layer-CAM": "LayerCAM"}


def net(pooled: bool = False) -> nn.Module:
    return seeded(ConvNet, pooled=pooled, positions=24)


def maps(name: str, model: nn.Module, **options: object) -> Tensor:
    return create_method(name, model, layer="features", **options)(IMAGES, TARGETS)[:, 0]


def resized(cam: Tensor) -> Tensor:
    return F.interpolate(cam[:, None], size=IMAGES.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def activations_and_gradients(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Of the layer before the linear one, worked out by hand."""
    with torch.no_grad():
        activations = F.relu(model.conv2(F.relu(model.conv1(images))))
    return activations, model.fc.weight.detach()[TARGETS].view_as(activations)


@pytest.mark.parametrize("name", TORCHCAM)
def test_as_torchcam(name: str) -> None:
    model = net()
    with getattr(torchcam.methods, TORCHCAM[name])(model, "features") as extractor:
        wanted = resized(extractor(TARGETS.tolist(), model(IMAGES), normalized=False)[0])
    assert wanted.abs().amax(dim=(1, 2)).min() > 0
    assert torch.allclose(maps(name, model), wanted, rtol=1e-9, atol=0)


def test_smooth_grad_cam_as_torchcam() -> None:
    model, noise = net(), torch.randn(3, 4, 3, 8, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torchcam.methods.SmoothGradCAMpp(model, "features", num_samples=4, std=0.3) as extractor:
        samples = iter((0.3 * noise).unbind(dim=1))
        extractor._distrib = type("Given", (), {"sample": lambda self, _size: next(samples)})()
        model(IMAGES)
        wanted = resized(extractor(TARGETS.tolist(), normalized=False)[0])
    assert torch.allclose(maps("SG-CAM++", model, noise=noise), wanted, rtol=1e-9, atol=0)


def test_grad_cam_plus_plus_of_the_paper() -> None:
    model = net()
    a, g = activations_and_gradients(model, IMAGES)
    alpha = g**2 / (2 * g**2 + a.sum(dim=(2, 3), keepdim=True) * g**3)
    wanted = ((alpha * g.relu()).sum(dim=(2, 3), keepdim=True) * a).sum(dim=1).relu()
    assert torch.allclose(maps("Grad-CAM++ (paper)", model), resized(wanted), rtol=1e-9, atol=0)


def test_smooth_grad_cam_of_the_paper() -> None:
    class Net(ConvNet):
        """A curved end, so that the gradient at the features differs between noisy copies."""

        def forward(self, x: Tensor) -> Tensor:
            logits = super().forward(x)
            return logits + logits**2

    model = seeded(Net, pooled=False, positions=24)
    noise = torch.randn(3, 4, 3, 8, 12, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    clean = activations_and_gradients(model, IMAGES)[0]
    moments = {power: torch.zeros_like(clean) for power in (1, 2, 3)}
    for sample in range(4):
        _, w = activations_and_gradients(model, IMAGES + 0.3 * noise[:, sample])
        logits = ConvNet.forward(model, IMAGES + 0.3 * noise[:, sample]).detach().gather(1, TARGETS[:, None])[..., None, None]
        for power in moments:
            moments[power] += (w * (1 + 2 * logits)) ** power / 4
    alpha = moments[1] / (2 * moments[2] + clean.sum(dim=(2, 3), keepdim=True) * moments[3])
    wanted = ((alpha * moments[1].relu()).sum(dim=(2, 3), keepdim=True) * clean).sum(dim=1).relu()
    assert torch.allclose(maps("SG-CAM++ (paper)", model, noise=noise), resized(wanted), rtol=1e-9, atol=1e-12)


def test_grad_cam_and_xgrad_cam_rank_patches_alike_where_positions_are_averaged() -> None:
    model = net(pooled=True)
    sums = [maps(name, model).unflatten(2, (3, 4)).unflatten(1, (2, 4)).sum(dim=(2, 4)).flatten(1) for name in ("Grad-CAM", "XGrad-CAM")]
    for grad_cam, xgrad_cam in zip(*sums, strict=True):
        if grad_cam.any():
            assert spearmanr(grad_cam, xgrad_cam).statistic == pytest.approx(1)
    assert sums[0].any()
    # Its map is the linear layer's weights on the features, over the number of positions.
    a = F.relu(model.conv2(F.relu(model.conv1(IMAGES)))).detach()
    wanted = (model.fc.weight.detach()[TARGETS][..., None, None] / 24 * a).sum(dim=1).relu()
    assert torch.allclose(maps("Grad-CAM", model), resized(wanted), rtol=1e-9, atol=0)


def test_layer_must_exist_and_give_feature_maps() -> None:
    model = net()
    with pytest.raises(UnknownNameError, match="Did you mean 'features'"):
        create_method("Grad-CAM", model, layer="featuers")(IMAGES, TARGETS)
    with pytest.raises(ValueError, match=r"in evaluate as \{\"Grad-CAM\": \(\"Grad-CAM\", \{\"layer\": \"conv2\"\}\)\}"):
        create_method("Grad-CAM", model)(IMAGES, TARGETS)
    with pytest.raises(ValueError, match=r"layer 'fc' gives \(3, 4\)"):
        create_method("Grad-CAM", model, layer="fc")(IMAGES, TARGETS)
    with pytest.raises(ValueError, match="once per pass"):
        create_method("Grad-CAM", model, layer="act")(IMAGES, TARGETS)


def test_a_net_of_ones_own_has_cams_by_its_layer() -> None:
    assert set(TORCHCAM) <= set(list_methods(net()))
