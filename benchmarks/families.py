"""Which methods apply to which families of nets, and whether they are right there; writes docs/methods-by-family.md.

    python benchmarks/families.py

Small nets of timm and torchvision with random weights, in float64. A method is run on a batch of two images and on each alone, which must
agree, and is then compared with what its library gives when it is called directly, or with its formula, written down here without the
package's own passes. tests/test_families.py runs all methods on all nets, and computes a sample of the page's cells again.
"""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import captum.attr
import timm
import torch
import torch.nn.functional as F
import torchcam.methods
import torchvision.models as tv
from timm.models import efficientnet, mlp_mixer, regnet, vgg
from timm.models._efficientnet_builder import decode_arch_def
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from benchmarks.relevance_rules import chefer, composite
from idsds.common.interventions import patch_numbers
from idsds.common.randomness import Draws, generator, seeded
from idsds.methods import METHODS, create_method
from idsds.methods.base import reason_against
from idsds.methods.gradient import path_start
from idsds.methods.libraries import ADAPTERS, PLAIN
from idsds.methods.libraries.base import library
from idsds.methods.rise import random_masks
from idsds.models import MODELS, create_model, describe
from idsds.models.libraries import feature_layer

PAGE = Path(__file__).resolve().parents[1] / "docs" / "methods-by-family.md"
RIGHT = "✓"
IDS, TARGETS = ["a", "b"], torch.tensor([1, 4])
CLASSES = 5


def _efficientnet() -> nn.Module:
    stages = decode_arch_def([["ds_r1_k3_s1_e1_c8_se0.25"], ["ir_r1_k3_s2_e4_c12_se0.25"], ["ir_r1_k5_s2_e4_c16_se0.25"]])
    return efficientnet.EfficientNet(stages, num_classes=CLASSES, num_features=24, stem_size=8, act_layer=nn.SiLU)


def _mobilenet() -> nn.Module:
    net = tv.MobileNetV2(CLASSES, width_mult=0.25, inverted_residual_setting=[[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]])
    net.features[-1] = Conv2dNormActivation(8, 24, kernel_size=1, activation_layer=nn.ReLU6)  # of 1,280 channels
    net.classifier[1] = nn.Linear(24, CLASSES)
    return net


def _vit(name: str, patch_size: int = 8) -> nn.Module:
    sizes = {"img_size": 4 * patch_size, "patch_size": patch_size, "embed_dim": 16, "depth": 2, "num_heads": 2}
    return timm.create_model(name, num_classes=CLASSES, **sizes)


def _torchvision_vit() -> nn.Module:
    return tv.VisionTransformer(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=CLASSES)


#: By the page's column: the library's net whose configuration counts, a small net of its class, pixels per side.
FAMILIES: dict[str, tuple[str, Callable[[], nn.Module], int]] = {
    "ResNet": ("timm/resnet18", lambda: timm.create_model("resnet18", num_classes=CLASSES, channels=(8, 12, 16, 24), layers=(1,) * 4), 64),
    "ResNet (torchvision)": ("mini_resnet8", lambda: create_model("mini_resnet8", num_classes=CLASSES), 32),
    "VGG": (
        "timm/vgg11_bn",
        lambda: vgg.VGG([8, "M", 12, "M", 16, "M"], num_classes=CLASSES, mlp_ratio=0.01, norm_layer=nn.BatchNorm2d),
        56,
    ),
    "DenseNet": ("torchvision/densenet121", lambda: tv.DenseNet(6, (2, 2), 8, num_classes=CLASSES), 64),
    "SqueezeNet": ("torchvision/squeezenet1_1", lambda: tv.squeezenet1_1(num_classes=CLASSES), 64),
    "MobileNetV2": (
        "torchvision/mobilenet_v2",
        _mobilenet,
        32,
    ),
    "MobileNetV3": ("timm/mobilenetv3_small_050", lambda: timm.create_model("mobilenetv3_small_050", num_classes=CLASSES), 64),
    "ShuffleNetV2": ("torchvision/shufflenet_v2_x0_5", lambda: tv.ShuffleNetV2([1, 1, 1], [8, 12, 16, 24, 32], CLASSES), 64),
    "RegNet": (
        "timm/regnetx_002",
        lambda: regnet.RegNet(regnet.RegNetCfg(depth=6, w0=8, wa=8.0, wm=1.8, group_size=4), num_classes=CLASSES),
        64,
    ),
    "EfficientNet": ("timm/efficientnet_b0", _efficientnet, 32),
    "ConvNeXt": (
        "timm/convnext_atto",
        lambda: timm.create_model("convnext_atto", num_classes=CLASSES, dims=(8, 12, 16, 24), depths=(1,) * 4),
        64,
    ),
    "Swin": (
        "timm/swin_tiny_patch4_window7_224",
        lambda: timm.create_model(
            "swin_tiny_patch4_window7_224", num_classes=CLASSES, img_size=56, embed_dim=12, depths=(2, 2), num_heads=(2, 2)
        ),
        56,
    ),
    "MLP-Mixer": (
        "timm/mixer_s32_224",
        lambda: mlp_mixer.MlpMixer(CLASSES, img_size=32, patch_size=8, num_blocks=2, embed_dim=16),
        32,
    ),
    "ViT (timm)": ("timm/vit_tiny_patch16_224", partial(_vit, "vit_tiny_patch16_224"), 32),
    "ViT (torchvision)": ("torchvision/vit_b_16", _torchvision_vit, 32),
    "CLIP ViT": ("timm/vit_base_patch16_clip_224", partial(_vit, "vit_base_patch16_clip_224"), 32),
    "DINOv2, registers": ("timm/vit_small_patch14_reg4_dinov2", partial(_vit, "vit_small_patch14_reg4_dinov2", 7), 28),
}

#: Few steps and samples; a method gets those that it has.
SMALL = {"steps": 2, "samples": 2, "baseline_samples": 2, "n_samples": 4, "num_samples": 1, "n_steps": 3, "x_steps": 3, "grid": 2}
CONTROLS = [name for name, entry in METHODS.items() if entry.family == "control"]
ROWS = [name for name in {**METHODS, **METHODS.unlisted} if name not in CONTROLS]
ROWS += [f"{home}/{name}" for home, adapter in ADAPTERS.items() for name in adapter.NAMES]  # type: ignore[attr-defined]


@cache
def net_of(family: str) -> nn.Module:
    """The small net of a family, with random weights, statistics and shares, so that no part is silent."""
    key, build, size = FAMILIES[family]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build().eval()
        for name, value in net.state_dict().items():
            if name.endswith("running_mean"):
                value.normal_(0, 0.1)
            elif name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif (value.is_floating_point() and value.abs().max() < 1e-3) or (
                name.endswith(("head.weight", "fc.weight", "classifier.weight")) and value.std() < 0.05
            ):
                value.normal_(0, 0.3)
    if isinstance(net, tv.SqueezeNet):  # or a ReLU makes its logits 0
        nn.init.ones_(net.classifier[1].bias)
    with torch.device("meta"):
        layer, channels = feature_layer(build().to("meta"), size)
    net.entry = dataclasses.replace(MODELS[key], cam_layer=layer, cam_channels=channels)
    return net.double()


def images_of(family: str) -> Tensor:
    """Two images that are not square where the net takes such."""
    size = FAMILIES[family][2]
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def options_of(name: str, net: nn.Module) -> dict[str, Any]:
    """Few steps and samples, and what else a method must be told."""
    known = METHODS[name].settings()
    options = {key: value for key, value in SMALL.items() if key in known}
    if name.endswith("/RefineCAM"):
        options["layer"] = layers_of(net)
    if name == "zennit/EpsilonGammaBox":
        options |= {"low": -3.0, "high": 3.0}
    if name.endswith("SESS"):
        options["num_scales"] = 1
    return options


def layers_of(net: nn.Module) -> list[str]:
    """The CAM layer, and a convolution before it."""
    return [next(name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)), describe(net).cam_layer]


def refusal(name: str, family: str) -> str | None:
    """Why a method does not apply to a family, None if it does."""
    return reason_against(METHODS[name], net_of(family))


def explained(name: str, family: str, some: slice = slice(None)) -> Tensor:
    """The package's maps, (B, 1, H, W)."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*max pooling")
        warnings.filterwarnings("ignore", message="Setting backward hooks")
        method = create_method(name, net_of(family), **options_of(name, net_of(family)))
        return method(images_of(family)[some], TARGETS[some], IDS[some])


def judge(name: str, family: str) -> str:
    """Return a cell of the page: right, or the reason why a method is refused. Raises AssertionError where it is wrong."""
    if reason := refusal(name, family):
        return reason
    try:
        net, maps = net_of(family), explained(name, family)
    except ValueError as error:  # what can be seen only when it runs
        return str(error)
    alone = torch.cat([explained(name, family, slice(1, 2)), explained(name, family, slice(0, 1))]).flip(0)
    rough = PLAIN.get(name, (name,))[0].startswith(("gradcam", "zennit"))  # float32, and relevance divided by values near 0
    where, tolerance = f"{name} on {family}", 2e-4 if rough else 1e-8
    assert maps.isfinite().all(), where
    assert near(alone, maps, tolerance), f"{where}: a batch is not its images one by one"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = oracle(name, net, images_of(family), options_of(name, net))
    wanted = wanted.detach().to(maps)
    wanted = wanted.sum(1, keepdim=True) if wanted.ndim == 4 else wanted[:, None]
    assert near(maps, wanted, max(tolerance, 1e-6)), f"{where}: {float((maps - wanted).abs().max())} of {float(wanted.abs().max())}"
    return RIGHT


def near(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    """Whether maps agree up to a fraction of each one's largest value."""
    return bool(((found - wanted).abs() <= tolerance * wanted.abs().amax((1, 2, 3), keepdim=True) + 1e-12).all())


# What the maps must be.


def oracle(name: str, net: nn.Module, images: Tensor, options: dict[str, Any]) -> Tensor:
    """What a method must give: (B, C, H, W) or (B, H, W)."""
    key = PLAIN.get(name, (name,))[0]
    entry = METHODS[name]
    settings = {**entry.settings(), **options}
    home, _, local = key.partition("/")
    if local:
        return {"captum": of_captum, "torchcam": of_torchcam, "gradcam": of_gradcam, "zennit": of_zennit, "saliency": of_saliency}[home](
            local, key, net, images, settings
        )
    stem = name.removesuffix(" (paper)")
    for suffix in ("-SG", "-SG-SQ", "-SG-VG"):
        if stem.endswith(suffix):
            return of_smoothgrad(stem.removesuffix(suffix), suffix, net, images, settings, entry.noise)
    return of_one(name, net, images, TARGETS, settings, entry.noise, IDS)


def gradient(net: nn.Module, images: Tensor, targets: Tensor, at: Tensor | None = None) -> Tensor:
    images = images.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(sum(net(images)[i, t] for i, t in enumerate(targets.tolist())), images)
    return found


@contextmanager
def relu_as(rule: Callable[[Tensor, float], Tensor]) -> Iterator[None]:
    """Every ReLU by another rule, with its cap."""

    def relu(x: Tensor, inplace: bool = False) -> Tensor:
        return rule(x, float("inf"))

    def hardtanh(x: Tensor, low: float = -1.0, high: float = 1.0, inplace: bool = False) -> Tensor:
        return rule(x, high) if low == 0 else torch.clamp(x, low, high)

    with patch.object(F, "relu", relu), patch.object(F, "hardtanh", hardtanh), patch.object(torch, "relu", relu):
        yield


def guided(x: Tensor, cap: float) -> Tensor:
    """Its gradient passes where x is in (0, cap), and only what is positive of it."""
    y = x.clamp(0, cap) if cap < float("inf") else x * (x > 0)
    if y.requires_grad:
        y.register_hook(lambda g: g.clamp(min=0))
    return y


def deconvolved(x: Tensor, cap: float) -> Tensor:
    """Its gradient passes where it is positive, whatever x."""
    y = x + (x.clamp(0, cap) - x).detach()
    if y.requires_grad:
        y.register_hook(lambda g: g.clamp(min=0))
    return y


def smoothed(x: Tensor, cap: float) -> Tensor:
    """Its gradient is that of a softplus of beta 10."""
    y = x * torch.sigmoid(10 * x).detach()
    return y + (x.clamp(min=0) - y).detach()


def uncapped(rule: Callable[[Tensor, float], Tensor], x: Tensor, cap: float) -> Tensor:
    """A rule of ReLUs that leaves ReLU6 alone, as captum and zennit do."""
    return rule(x, cap) if cap == float("inf") else x.clamp(0, cap)


def of_one(name: str, net: nn.Module, images: Tensor, targets: Tensor, settings: dict, noise: str, ids: list[str]) -> Tensor:
    """The package's own methods by their formulas."""
    draws, stem = Draws(0, noise or name, images, ids), name.removesuffix(" (paper)")
    if stem in ("Gradient", "IxG", "Saliency"):
        found = gradient(net, images, targets)
        if name == "Saliency (paper)":
            return found.abs().amax(1)
        return {"Gradient": found, "IxG": found * images, "Saliency": found.abs()}[stem]
    if stem in ("IG", "IG-U"):
        start = path_start(settings["baseline"], net, draws)
        tool = captum.attr.IntegratedGradients(net)
        return tool.attribute(images, baselines=start.expand_as(images), target=targets, n_steps=settings["steps"])
    if name == "GradientSHAP":
        starts, places = 2 * draws.uniform(settings["samples"], key="baselines") - 1, draws.uniform(settings["samples"], key="positions")
        total = torch.zeros_like(images)
        for k in range(settings["samples"]):
            way = images - starts[:, k]
            total += way * gradient(net, starts[:, k] + places[:, k, :1, :1, :1] * way, targets)
        return total / settings["samples"]
    if name in ("Deconvolution", "Guided Backprop"):
        with relu_as(deconvolved if name == "Deconvolution" else guided):
            return gradient(net, images, targets)
    if stem == "Guided Grad-CAM":
        plain = relu_as(lambda x, cap: x.clamp(0, cap))
        with plain, torchcam.methods.GradCAM(net, describe(net).cam_layer, reshape_transform=ordered(net)) as cam:
            (found,) = cam(targets.tolist(), net(images.clone().requires_grad_()), normalized=False)
        how = {"mode": "nearest"} if name == stem else {"mode": "bilinear", "align_corners": False}
        large = F.interpolate(found.detach()[:, None], size=images.shape[-2:], **how)
        return large * of_one("Guided Backprop", net, images, targets, settings, noise, ids)
    if stem in ("Grad-CAM", "Grad-CAM++", "XGrad-CAM", "Layer-CAM") and name != "Grad-CAM++ (paper)":
        if name == "Grad-CAM" and isinstance(net, timm.models.VisionTransformer):
            return attention_cam(net, images, targets)
        kind = {"Grad-CAM": "GradCAM", "Grad-CAM++": "GradCAMpp", "XGrad-CAM": "XGradCAM", "Layer-CAM": "LayerCAM"}[name]
        with relu_as(lambda x, cap: x.clamp(0, cap)):  # a ReLU that works in place would change what torchcam reads
            return of_torchcam(kind, "", net, images, {})
    if name == "Grad-CAM++ (paper)":
        values, slopes = at_layer(net, images, targets)
        weights = slopes.square() / (2 * slopes.square() + slopes**3 * summed(values)) * slopes.relu()
        return enlarged((summed(torch.where(slopes > 0, weights, 0)) * values).sum(1).relu(), images)
    if stem == "SG-CAM++":
        return smooth_cam(name, net, images, targets, settings, draws)
    if stem == "CheferLRP":
        start = min(1, len(net.blocks) - 1) if settings["start_block"] is None else settings["start_block"]
        return drawn_as_blocks(net, chefer(net, images, targets, start)[:, net.num_prefix_tokens :], images)
    if stem == "Rollout":
        return rolled_out(net, images, min(1, len(net.blocks) - 1) if settings["start_block"] is None else settings["start_block"])
    if stem in ("RISE", "RISE-U"):
        hidden = path_start(settings["baseline"], net, draws)
        make = random_masks(0, settings["samples"], settings["cells"], settings["probability"], images)
        masks, total = make(0, settings["samples"]), torch.zeros_like(images[:, 0])
        with torch.no_grad():
            for mask in masks:
                chances = net(mask * images + (1 - mask) * hidden).softmax(1).gather(1, targets[:, None])
                total += chances[:, :, None] * mask
        return total / len(masks) / settings["probability"]
    raise AssertionError(f"{name} is compared with nothing")


def of_smoothgrad(base: str, suffix: str, net: nn.Module, images: Tensor, settings: dict, noise: str) -> Tensor:
    """Copy by copy."""
    spread = (images.amax((1, 2, 3)) - images.amin((1, 2, 3)))[:, None, None, None] if settings["relative"] else 1
    drawn = Draws(0, noise, images, IDS).normal(settings["samples"])
    inner = {**METHODS[base].settings(), **{key: value for key, value in settings.items() if key in ("steps", "baseline")}}
    if base == "GradientSHAP":
        inner["samples"] = settings["baseline_samples"]
    if isinstance(inner.get("baseline"), str) and base.startswith("IG"):
        inner["baseline"] = path_start(inner["baseline"], net, Draws(0, noise, images, IDS))
    copies = []
    for k in range(settings["samples"]):
        noisy = images + settings["sigma"] * spread * drawn[:, k]
        found = of_one(base, net, noisy, TARGETS, inner, noise, [f"{i} {k}" for i in IDS])
        if found is None:
            return None
        copies.append(found)
    values = torch.stack(copies)
    square = values.square().mean(0)
    return {"-SG": values.mean(0), "-SG-SQ": square, "-SG-VG": square - values.mean(0).square()}[suffix]


def at_layer(net: nn.Module, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The CAM layer's values and their gradient, (B, K, h, w)."""
    kept: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        kept.append(output)
        return output.clone()  # what follows may work in place

    handle = net.get_submodule(describe(net).cam_layer).register_forward_hook(keep)
    scores = net(images.detach().clone().requires_grad_())
    handle.remove()
    (found,) = torch.autograd.grad(scores.gather(1, targets[:, None]).sum(), kept[0])
    return ordered(net)(kept[0].detach()), ordered(net)(found)


def summed(values: Tensor) -> Tensor:
    return values.sum((2, 3), keepdim=True)


def enlarged(maps: Tensor, images: Tensor) -> Tensor:
    return F.interpolate(maps[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)[:, 0]


def smooth_cam(name: str, net: nn.Module, images: Tensor, targets: Tensor, settings: dict, draws: Draws) -> Tensor:
    """SG-CAM++ by torchcam's formula and by that of its paper."""
    drawn, (clean, _) = draws.normal(settings["samples"]), at_layer(net, images, targets)
    each = [at_layer(net, images + settings["sigma"] * drawn[:, k], targets) for k in range(settings["samples"])]
    first, second, third = (torch.stack([slopes**power for _, slopes in each]).mean(0) for power in (1, 2, 3))
    if name == "SG-CAM++":
        values, slopes = each[-1]
        alpha = second / (2 * second + summed(third * clean) + 1e-8)
        return enlarged((summed(alpha * slopes.relu()) * values).sum(1).relu(), images)
    below = 2 * second + third * summed(clean)
    alpha = first / torch.where(below == 0, 1, below) * (below != 0)
    return enlarged((summed(alpha * first.relu()) * clean).sum(1).relu(), images)


def ordered(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Brings the CAM layer's values to (B, K, h, w)."""
    return (lambda values: values.permute(0, 3, 1, 2)) if describe(net).cam_channels == "last" else (lambda values: values)


def attention_of(net: nn.Module, images: Tensor) -> list[Tensor]:
    """Attention of each block, (B, heads, N, N), from its queries and keys."""
    found: list[Tensor] = []

    def read(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        q, k, _ = module.qkv(inputs[0]).unflatten(2, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
        found.append((module.q_norm(q) @ module.k_norm(k).mT * module.scale).softmax(-1))

    handles = [block.attn.register_forward_pre_hook(read) for block in net.blocks]
    net(images)
    for handle in handles:
        handle.remove()
    return found


def drawn_as_blocks(net: nn.Module, tokens: Tensor, images: Tensor) -> Tensor:
    side = images.shape[-1] // net.patch_embed.patch_size[0]
    pixels = net.patch_embed.patch_size[0]
    return tokens.view(-1, side, side).repeat_interleave(pixels, 1).repeat_interleave(pixels, 2)


def rolled_out(net: nn.Module, images: Tensor, start: int) -> Tensor:
    """The product of attention with shortcuts, rows normalised."""
    with torch.no_grad():
        maps = attention_of(net, images)
    product = torch.eye(maps[0].shape[-1], dtype=images.dtype)
    for attention in maps[start:]:
        shortcut = attention.mean(1) + torch.eye(attention.shape[-1])
        product = shortcut / shortcut.sum(2, keepdim=True) @ product
    return drawn_as_blocks(net, product[:, 0, net.num_prefix_tokens :], images)


def attention_cam(net: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    """Grad-CAM of the last block's attention, read where it is dropped out."""
    block, kept = net.blocks[-1], []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    fused, block.attn.fused_attn = block.attn.fused_attn, False
    handle = block.attn.attn_drop.register_forward_hook(keep)
    net(images.clone().requires_grad_()).gather(1, targets[:, None]).sum().backward()
    handle.remove()
    net.zero_grad()
    block.attn.fused_attn = fused
    some = slice(net.num_prefix_tokens, None)
    values, slope = kept[0].detach()[:, :, 0, some], kept[0].grad[:, :, 0, some]
    return drawn_as_blocks(net, (values * slope.mean(2, keepdim=True)).mean(1).relu(), images)


def of_torchcam(local: str, key: str, net: nn.Module, images: Tensor, settings: dict) -> Tensor:
    """torchcam's class on the net."""
    layer = settings.get("layer") or describe(net).cam_layer
    options = {name: value for name, value in settings.items() if name in ("num_samples", "std")}
    how: dict[str, Any] = {"reshape_transform": ordered(net)}
    if local == "LeGrad":
        layer, how = list(net.encoder.layers), {}
    if local == "RefineCAM":
        how = {"reshape_transform": lambda values: ordered(net)(values) if values.shape[1] == values.shape[2] else values}
    if local == "CAM":
        options["fc_layer"] = next(name for name, module in net.named_modules() if isinstance(module, nn.Linear))

    def called(images: Tensor, targets: Tensor) -> Tensor:
        with getattr(torchcam.methods, local)(net, layer, **options, **how) as cam:
            (found,) = cam(targets.tolist(), net(images.clone().requires_grad_()), normalized=False)
        return F.interpolate(found.detach()[:, None], size=images.shape[-2:], mode="bilinear", align_corners=False)

    return one_by_one(called, key, images) if local in ADAPTERS["torchcam"].RANDOM else called(images, TARGETS)  # type: ignore[attr-defined]


def one_by_one(called: Callable[[Tensor, Tensor], Tensor], key: str, images: Tensor) -> Tensor:
    """Each image with the generators that the package gives a library."""
    maps = []
    for k, image_id in enumerate(IDS):
        with seeded(0, key, image_id):
            maps.append(called(images[k : k + 1], TARGETS[k : k + 1]))
    return torch.cat(maps)


def of_gradcam(local: str, key: str, net: nn.Module, images: Tensor, settings: dict) -> Tensor:
    """pytorch-grad-cam's class on the net."""
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    names = settings.get("layer") or describe(net).cam_layer
    layers = [] if local == "FullGrad" else [net.get_submodule(name) for name in ([names] if isinstance(names, str) else names)]
    made = {"num_scales": settings["num_scales"]} if local == "SESS" else {}
    last = ordered(net)
    how = (lambda values: last(values) if values.shape[1] == values.shape[2] else values) if local == "RefineCAM" else last

    def called(images: Tensor, targets: Tensor) -> Tensor:
        cam = getattr(library("gradcam"), local)(net, layers, reshape_transform=how if layers else None, **made)
        kinds = [ClassifierOutputTarget(t) for t in targets.tolist()]
        given = images.clone().requires_grad_()
        found = cam(given, None, target_idx=int(targets)) if local == "FinerCAM" else cam(given, kinds)
        for each in getattr(cam, "base_cam_per_layer", [getattr(cam, "base_cam", cam)]):
            each.activations_and_grads.release()
        net.zero_grad()
        return torch.as_tensor(found)

    return one_by_one(called, key, images) if local in ("RandomCAM", "FinerCAM") else called(images, TARGETS)


def of_captum(local: str, key: str, net: nn.Module, images: Tensor, settings: dict) -> Tensor:
    """captum's class on the net; its rules for modules by their formulas, for any net."""
    if local in ("DeepLift", "DeepLiftShap"):
        starts = torch.zeros_like(images[:1])
        if local == "DeepLiftShap":
            shape = (settings["baseline_samples"], *images.shape[1:])
            starts = (2 * torch.rand(shape, generator=generator(0, "baselines", shape)) - 1).to(images)
        parts = [rescaled(net, images, start) for start in starts]
        return torch.stack(parts).mean(0)
    if local in ("GuidedBackprop", "Deconvolution"):
        # Without ReLU6, which captum leaves alone.
        with relu_as(partial(uncapped, guided if local == "GuidedBackprop" else deconvolved)):
            return gradient(net, images, TARGETS)
    asked = {name: settings[name] for name in ("n_samples", "n_steps") if name in settings}
    if settings.get("grid"):
        side = images.shape[-1] // settings["grid"]
        if local == "Occlusion":
            asked |= {"sliding_window_shapes": (3, side, side), "strides": (3, side, side)}
        else:
            asked["feature_mask"] = patch_numbers(images, settings["grid"])[None, None]
    if local == "GradientShap":
        shape = (settings["baseline_samples"], *images.shape[1:])
        asked["baselines"] = (2 * torch.rand(shape, generator=generator(0, "baselines", shape)) - 1).to(images)
    layer = (net.get_submodule(describe(net).cam_layer),) if local.startswith("Layer") else ()

    def called(images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad() if local in ADAPTERS["captum"].PERTURBING else nullcontext():  # type: ignore[attr-defined]
            found = getattr(captum.attr, local)(net, *layer).attribute(images.clone().requires_grad_(), target=targets, **asked).detach()
        return F.interpolate(found, size=images.shape[-2:], mode="bilinear", align_corners=False) if layer else found

    return one_by_one(called, key, images) if local in ADAPTERS["captum"].RANDOM else called(images, TARGETS)  # type: ignore[attr-defined]


class Rescale(torch.autograd.Function):
    """A function of single values on images and baselines, whose gradient is the ratio of what its outputs and inputs differ by."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        y = function(x)
        with torch.enable_grad():
            z = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(function(z).sum(), z)
        (a, b), (c, d) = x.chunk(2), y.chunk(2)
        ratio = torch.cat([(c - d) / torch.where((a - b).abs() < 1e-10, 1, a - b)] * 2)
        ctx.save_for_backward(torch.where(torch.cat([(a - b).abs() < 1e-10] * 2), slope, ratio))
        return y

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * gradients, None


def rescaled(net: nn.Module, images: Tensor, start: Tensor) -> Tensor:
    """DeepLIFT's rescale rule, without captum; nets with max pooling, of which it has a rule of its own, by captum itself."""
    if any(isinstance(module, nn.MaxPool2d) for module in net.modules()):
        if isinstance(net, tv.DenseNet):  # whose last ReLU is no module
            net = nn.Sequential(net.features, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.classifier)
        return captum.attr.DeepLift(copy.deepcopy(net)).attribute(images.clone(), start.expand_as(images), target=TARGETS).detach()
    both = torch.cat([images, start.expand_as(images)]).requires_grad_()
    with relu_as(lambda x, cap: Rescale.apply(x, lambda v: v.clamp(0, cap))):
        scores = net(both)
    (found,) = torch.autograd.grad(scores.gather(1, TARGETS.repeat(2)[:, None]).sum(), both)
    return found[: len(images)] * (images - start)


def of_zennit(local: str, key: str, net: nn.Module, images: Tensor, settings: dict) -> Tensor:
    """zennit's composite with its own canonizer, for the nets that it has one for; for the others its rules, written a second time."""
    from zennit import composites
    from zennit.attribution import Gradient
    from zennit.torchvision import ResNetCanonizer

    if local in ("DeconvNet", "GuidedBackprop", "BetaSmooth"):  # of ReLUs alone, without a cap
        hot = F.one_hot(TARGETS, CLASSES)
        with relu_as(partial(uncapped, {"DeconvNet": deconvolved, "GuidedBackprop": guided, "BetaSmooth": smoothed}[local])):
            inner = images.clone().requires_grad_()
            output = net(inner)
            (found,) = torch.autograd.grad(output, inner, output.detach() * hot if local == "BetaSmooth" else hot.to(output))
        return found
    box = {name: settings[name] for name in ("low", "high") if name in settings}
    if describe(net).name != "mini_resnet8" or box:  # the only one of torchvision's basic blocks
        return composite(local, net, images, TARGETS, **box)
    with Gradient(net, getattr(composites, local)(canonizers=[ResNetCanonizer()])) as attributor:
        found = attributor(images.clone().requires_grad_(), lambda output: output.detach() * F.one_hot(TARGETS, CLASSES))[1]
    assert near(composite(local, net, images, TARGETS), found, 1e-4), "the second implementation is not zennit"
    return found


def of_saliency(local: str, key: str, net: nn.Module, images: Tensor, settings: dict) -> Tensor:
    """The saliency package's class on the net."""
    options = {name: value for name, value in settings.items() if name in ("x_steps", "steps")}

    def called(values: Any, call_model_args: int, expected_keys: list[str]) -> dict:
        found = gradient(net, torch.from_numpy(values).permute(0, 3, 1, 2).double(), torch.tensor([call_model_args]))
        return {expected_keys[0]: found.permute(0, 2, 3, 1).numpy()}

    tool = getattr(library("saliency"), local)()
    maps = [tool.GetMask(image.permute(1, 2, 0).numpy(), called, int(t), **options) for image, t in zip(images, TARGETS, strict=True)]
    return torch.stack([torch.from_numpy(found).permute(2, 0, 1) for found in maps])


# The page.

INTRODUCTION = f"""# Methods by family of nets

Which method can be used on which net. Written by `benchmarks/families.py`, which builds a small net of each family with random weights (of
timm, or where noted of torchvision) and tries every method.

| mark | meaning |
|---|---|
| {RIGHT} | right: on this net the map equals that in the second column, and a batch gives what its images give one by one |
| *number* | refused, with the reason below |

*library*: the method's own, called directly, without this package; *formula*: written out in that file; *rules*: those of relevance,
written a second time in `benchmarks/relevance_rules.py`, which equal zennit's where zennit can be called on the net itself.

The controls `Random`, `Edges` and `Center` take any net. `list_methods(model).excluded` gives the reasons for yours.
"""


def compared_with(name: str) -> str:
    """Return what the maps of a method were compared with."""
    key = PLAIN.get(name, (name,))[0]
    home, _, local = key.partition("/")
    if local.startswith("DeepLift"):
        return "formula; on nets with max pooling the library"
    if local in ("GuidedBackprop", "Deconvolution", "DeconvNet", "BetaSmooth"):
        return "formula"
    if home == "zennit":
        return "rules" if local == "EpsilonGammaBox" else "rules; on ResNet (torchvision) the library too"
    if local:
        return "library"
    if METHODS[name].refused or name in ("BagNet", "B-cos"):
        return "-"
    if name.startswith("CheferLRP"):
        return "rules"
    stem = name.removesuffix(" (paper)").partition("-SG")[0]
    ours = name in ("Grad-CAM++ (paper)",) or stem in ("SG-CAM++", "Rollout", "RISE", "RISE-U")
    return "library" if not ours and stem in ("IG", "IG-U", "Grad-CAM", "Grad-CAM++", "XGrad-CAM", "Layer-CAM") else "formula"


def written(cells: dict[tuple[str, str], str]) -> str:
    """Return the page of the cells, by method and family: marks, or reasons, which get numbers."""
    reasons = list(dict.fromkeys(cell for cell in cells.values() if cell != RIGHT))
    shown = {key: cell if cell == RIGHT else str(reasons.index(cell) + 1) for key, cell in cells.items()}
    lines = [f"| method | compared with | {' | '.join(FAMILIES)} |", "|---|---|" + "---|" * len(FAMILIES)]
    lines += [f"| `{name}` | {compared_with(name)} | {' | '.join(shown[name, family] for family in FAMILIES)} |" for name in ROWS]
    listed = [f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)]
    nets = ", ".join(f"{family}: `{key}`" for family, (key, *_) in FAMILIES.items())
    return "\n".join([INTRODUCTION, *lines, "", "Reasons:", "", *listed, "", f"The nets' classes are those of {nets}.", ""])


def read_page(text: str) -> dict[tuple[str, str], str]:
    """Return the page's cells by method and family, numbers replaced by their reasons."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(("| method", "| `"))]
    reasons = dict(line.split(". ", 1) for line in text.splitlines() if line[:1].isdigit())
    families = rows[0][2:]
    return {(name.strip("`"), f): reasons.get(c, c) for name, _, *cells in rows[1:] for f, c in zip(families, cells, strict=True)}


if __name__ == "__main__":
    PAGE.write_text(written({(name, family): judge(name, family) for name in ROWS for family in FAMILIES}))
