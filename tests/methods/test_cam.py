"""CAMs against torchcam, the papers' formulas, and the closed form of nets that average positions."""

from __future__ import annotations

import captum.attr
import pytest
import torch
import torch.nn.functional as F
import torchcam.methods
import torchvision
from scipy.stats import spearmanr
from torch import Tensor, nn

from idsds.common.registry import UnknownNameError
from idsds.methods import as_method, create_method, list_methods
from idsds.methods.base import MethodError
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


class ChannelsLast(nn.Module):
    """Patches to tokens on a grid, (B, h, w, K), as in Swin; ``tokens`` gives them as (B, N, K), as in a ViT."""

    def __init__(self, width: int = 10, tokens: bool = False) -> None:
        super().__init__()
        self.patches, self.mix, self.act = nn.Conv2d(3, width, 2, 2), nn.Linear(width, width), nn.GELU()
        self.block, self.tokens, self.fc = nn.Identity(), nn.Identity() if tokens else None, nn.Linear(width, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = self.block(self.act(self.mix(self.patches(images).permute(0, 2, 3, 1))))
        if self.tokens is not None:
            return self.fc(self.tokens(x.flatten(1, 2)).mean(1))
        return self.fc(x.mean((1, 2)))


def by_hand(model: nn.Module, layer: str, rearrange=lambda x: x.permute(0, 3, 1, 2)) -> Tensor:
    """Grad-CAM of a layer that is brought to (B, K, h, w)."""
    kept = {}
    handle = model.get_submodule(layer).register_forward_hook(lambda _module, _inputs, output: kept.update(a=output))
    scores = model(IMAGES)
    handle.remove()
    (gradient,) = torch.autograd.grad(scores.gather(1, TARGETS[:, None]).sum(), kept["a"])
    maps = (rearrange(gradient).mean((2, 3), keepdim=True) * rearrange(kept["a"])).sum(1, keepdim=True).relu()
    return F.interpolate(maps.detach(), IMAGES.shape[-2:], mode="bilinear")


HEIGHT = IMAGES.shape[-2] // 2


@pytest.mark.parametrize("width", [10, HEIGHT, IMAGES.shape[-1] // 2])
@pytest.mark.parametrize("layer", ["mix", "act", "block"])
def test_channels_last_are_recognised(width: int, layer: str) -> None:
    model = seeded(lambda: ChannelsLast(width))
    assert torch.allclose(create_method("Grad-CAM", model, layer=layer)(IMAGES, TARGETS), by_hand(model, layer))
    assert torch.allclose(create_method("Grad-CAM", model, layer=layer, channels="last")(IMAGES, TARGETS), by_hand(model, layer))
    assert torch.allclose(create_method("Grad-CAM", model, layer="patches")(IMAGES, TARGETS), by_hand(model, "patches", lambda x: x))


def test_a_layer_that_can_be_read_in_both_ways_is_refused() -> None:
    class Turned(nn.Module):
        """Square features with as many channels, turned by hand."""

        def __init__(self) -> None:
            super().__init__()
            self.conv, self.block, self.fc = nn.Conv2d(3, 4, 2, 2), nn.Identity(), nn.Linear(4, 4)

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(self.block(self.conv(images).permute(0, 2, 3, 1)).mean((1, 2)))

    model, images = seeded(Turned), IMAGES[..., :8, :8]
    with pytest.raises(ValueError, match=r"layer 'block' gives \(\d, 4, 4, 4\), which can be read in both ways: give channels='first'"):
        create_method("Grad-CAM", model, layer="block")(images, TARGETS)
    assert create_method("Grad-CAM", model, layer="block", channels="last")(images, TARGETS).any()
    with pytest.raises(UnknownNameError, match=r"channels 'lst'.*'last'"):
        create_method("Grad-CAM", model, layer="block", channels="lst")(images, TARGETS)


def test_tokens_need_a_function() -> None:
    model = seeded(lambda: ChannelsLast(tokens=True))
    with pytest.raises(ValueError, match=r"layer 'tokens' gives \(\d, \d+, 10\).*channels=a function"):
        create_method("Grad-CAM", model, layer="tokens")(IMAGES, TARGETS)

    def grid(x: Tensor) -> Tensor:
        return x.unflatten(1, (HEIGHT, -1)).permute(0, 3, 1, 2)

    for name in ("Grad-CAM", "SG-CAM++", "Guided Grad-CAM"):
        if name != "Guided Grad-CAM":  # this net has no ReLU
            assert create_method(name, model, layer="tokens", channels=grid)(IMAGES, TARGETS).any()
    assert torch.allclose(create_method("Grad-CAM", model, layer="tokens", channels=grid)(IMAGES, TARGETS), by_hand(model, "tokens", grid))


def swin() -> nn.Module:
    return torchvision.models.SwinTransformer([2, 2], 12, [2, 2], [2, 2], [2, 2], num_classes=4)


def convnext() -> nn.Module:
    block = torchvision.models.convnext.CNBlockConfig
    return torchvision.models.ConvNeXt([block(8, 12, 2), block(12, None, 1)], num_classes=4)


@pytest.mark.parametrize(
    ("make", "layers"),
    [
        (swin, {"features.1": "last", "norm": "last"}),
        (convnext, {"features.1": "first", "features.1.0.block.0": "first", "features.1.0.block.3": "last"}),
    ],
)
def test_layers_of_swin_and_convnext(make, layers: dict[str, str]) -> None:
    model = seeded(make)
    images, targets = torch.randn(2, 3, 64, 64, dtype=torch.double), torch.tensor([1, 2])
    for layer, channels in layers.items():
        found = create_method("Grad-CAM", model, layer=layer)(images, targets)
        assert torch.equal(found, create_method("Grad-CAM", model, layer=layer, channels=channels)(images, targets)), layer


def test_objects_of_libraries_do_not_misread_channels_last() -> None:
    model = seeded(ChannelsLast).float()
    images = IMAGES.float()
    way = "reads as \\(B, K, h, w\\)"
    with torchcam.methods.GradCAM(model, "block") as thing, pytest.raises(MethodError, match=way):
        as_method("x", thing, model)(images, TARGETS)
    for attribution in (captum.attr.LayerGradCam, captum.attr.GuidedGradCam):
        with pytest.raises(MethodError, match=way):
            as_method("x", attribution(model, model.block), model)(images, TARGETS)
    with torchcam.methods.GradCAM(model, "block", reshape_transform=lambda x: x.permute(0, 3, 1, 2)) as thing:
        found = as_method("x", thing, model)(images, TARGETS)
    assert torch.allclose(found, create_method("Grad-CAM", model, layer="block")(images, TARGETS), atol=1e-5)
