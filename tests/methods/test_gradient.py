"""The gradient family against closed forms and captum."""

from __future__ import annotations

import captum.attr
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from idsds.common.registry import UnknownNameError
from idsds.methods import create_method
from tests.methods.nets import ConvNet, Linear, images_of, seeded

IMAGES, TARGETS, IDS = images_of(3, 6, 4), torch.tensor([0, 2, 1]), ["a", "b", "c"]
NOISE = torch.randn(3, 5, 3, 6, 4, generator=torch.Generator().manual_seed(7), dtype=torch.float64)

# float64, but captum rounds the 50 weights of IG to float32: their sum, 1, is off by up to some 1e-8.
ATOL = 1e-7


def maps(name: str, model: nn.Module, **options: object) -> Tensor:
    return create_method(name, model, seed=3, **options)(IMAGES, TARGETS, IDS)[:, 0]


class TestLinearModel:
    """logits = W x + b: the gradient is the row w of the target wherever one looks."""

    model = seeded(Linear)
    w = model.fc.weight.detach()[TARGETS].view(3, 3, 6, 4)

    def check(self, found: Tensor, wanted: Tensor) -> None:
        assert torch.allclose(found, wanted.sum(dim=1), rtol=0, atol=ATOL)

    def test_gradient(self) -> None:
        self.check(maps("Gradient", self.model), self.w)
        self.check(maps("Saliency", self.model), self.w.abs())
        assert torch.allclose(maps("Saliency (paper)", self.model), self.w.abs().amax(dim=1))
        self.check(maps("IxG", self.model), self.w * IMAGES)
        assert torch.allclose(maps("Gradient abs", self.model), self.w.sum(dim=1).abs())

    def test_integrated_gradients(self) -> None:
        baseline = images_of(1, 6, 4, seed=5)
        self.check(maps("IG", self.model), self.w * IMAGES)
        self.check(maps("IG", self.model, baseline=baseline), self.w * (IMAGES - baseline))
        # The fixed baseline of IG-U is one image in [-1, 1] for all.
        start = IMAGES - maps_per_channel_start(self.model, self.w)
        assert (start - start[:1]).abs().max() < 1e-4
        assert -1.0001 < start.min() < -0.9
        assert 0.9 < start.max() < 1.0001

    def test_smoothgrad(self) -> None:
        noisy = IMAGES[:, None] + 0.5 * NOISE
        options = {"samples": 5, "sigma": 0.5, "noise": NOISE}
        for base, values in {"Gradient": self.w[:, None].expand_as(noisy), "IxG": self.w[:, None] * noisy}.items():
            self.check(maps(f"{base}-SG", self.model, **options), values.mean(dim=1))
            self.check(maps(f"{base}-SG-SQ", self.model, **options), values.square().mean(dim=1))
            self.check(maps(f"{base}-SG-VG", self.model, **options), values.var(dim=1, correction=0))
        self.check(maps("IG-SG", self.model, **options), (self.w[:, None] * noisy).mean(dim=1))

    def test_relative_sigma_counts_in_ranges_of_the_image(self) -> None:
        spread = IMAGES.amax(dim=(1, 2, 3)) - IMAGES.amin(dim=(1, 2, 3))
        noisy = IMAGES + 0.15 * spread[:, None, None, None] * NOISE.mean(dim=1)
        self.check(maps("IxG-SG (paper)", self.model, samples=5, noise=NOISE), self.w * noisy)

    def test_gradient_shap(self) -> None:
        baselines = images_of(1, 6, 4, seed=9)
        self.check(maps("GradientSHAP", self.model, baselines=baselines), self.w * (IMAGES - baselines))


def maps_per_channel_start(model: nn.Module, w: Tensor) -> Tensor:
    """x - baseline of IG-U, by one channel at a time: a row of W that is zero elsewhere gives that channel alone."""
    parts = []
    for channel in range(3):
        single = seeded(Linear)
        mask = torch.zeros(3, 6, 4, dtype=torch.float64)
        mask[channel] = 1
        single.fc.weight.data.copy_(model.fc.weight * mask.flatten())
        parts.append(maps("IG-U", single) / w[:, channel])
    return torch.stack(parts, dim=1)


def test_integrated_gradients_is_complete() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(40, 3)).double()
    found = maps("IG", model).sum(dim=(1, 2))
    with torch.no_grad():
        wanted = (model(IMAGES) - model(torch.zeros_like(IMAGES))).gather(1, TARGETS[:, None])[:, 0]
    assert torch.allclose(found, wanted, rtol=0, atol=ATOL)  # 50 points are exact for a smooth net


def test_without_bias_a_relu_net_has_integrated_gradients_equal_to_input_times_gradient() -> None:
    model = seeded(ConvNet, bias=False)
    assert torch.allclose(maps("IG", model), maps("IxG", model), rtol=0, atol=ATOL)
    for suffix in ("-SG", "-SG-SQ", "-SG-VG"):
        assert torch.allclose(maps(f"IG{suffix}", model), maps(f"IxG{suffix}", model), rtol=0, atol=ATOL)
    with_bias = seeded(ConvNet, bias=True)
    assert not torch.allclose(maps("IG", with_bias), maps("IxG", with_bias), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("suffix", "kind"), [("-SG", "smoothgrad"), ("-SG-SQ", "smoothgrad_sq"), ("-SG-VG", "vargrad")])
@pytest.mark.parametrize(("base", "method"), [("IxG", captum.attr.InputXGradient), ("IG", captum.attr.IntegratedGradients)])
def test_smoothgrad_is_captums_noise_tunnel(monkeypatch: pytest.MonkeyPatch, base: str, method: type, suffix: str, kind: str) -> None:
    model = seeded(ConvNet)
    monkeypatch.setattr(torch, "normal", lambda mean, std, **_: mean + std * NOISE.flatten(0, 1))
    options = {"n_steps": 7} if base == "IG" else {}
    tunnel = captum.attr.NoiseTunnel(method(model))
    wanted = tunnel.attribute(IMAGES, target=TARGETS, nt_type=kind, nt_samples=5, stdevs=1.0, **options).sum(dim=1)
    options = {"steps": 7} if base == "IG" else {}
    found = maps(base + suffix, model, samples=5, noise=NOISE, **options)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=ATOL if base == "IG" else 1e-12)


def test_gradient_shap_is_captums(monkeypatch: pytest.MonkeyPatch) -> None:
    model, baseline = seeded(ConvNet), images_of(1, 6, 4, seed=9)
    positions = torch.rand(3, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    monkeypatch.setattr(np.random, "uniform", lambda *_: positions.flatten().numpy())
    wanted = captum.attr.GradientShap(model).attribute(IMAGES, baselines=baseline, target=TARGETS, n_samples=5).sum(dim=1)
    found = maps("GradientSHAP", model, samples=5, baselines=baseline, positions=positions)
    assert torch.allclose(found, wanted, rtol=1e-9, atol=1e-12)


def test_gradient_shap_draws_every_given_baseline() -> None:
    model = seeded(Linear)
    baselines = torch.stack([torch.full((3, 6, 4), value, dtype=torch.float64) for value in (0.0, 1.0)])
    found = maps("GradientSHAP", model, baselines=baselines, samples=400)
    w = TestLinearModel.w.sum(dim=1)
    # Each baseline has the chance 1/2: the mean of 400 draws lies within 5 standard errors of 1/2.
    share = 1 - (found - (TestLinearModel.w * (IMAGES - 1)).sum(dim=1)) / w
    assert ((share - 0.5).abs() < 5 * 0.5 / 400**0.5).all()


def test_gradient_shap_never_picks_beyond_the_last_baseline() -> None:
    method = create_method("GradientSHAP", seeded(Linear, dtype=torch.bfloat16), baselines=images_of(3, 6, 4), samples=200)
    # In bfloat16 a uniform number in [0, 1) may be rounded to 1.
    assert method(images_of(5, 6, 4, dtype=torch.bfloat16), torch.zeros(5, dtype=torch.long), list("abcde")).isfinite().all()


def test_bad_options_are_named() -> None:
    model = seeded(Linear)
    with pytest.raises(UnknownNameError, match="zeros"):
        maps("IG", model, baseline="zero")
    with pytest.raises(UnknownNameError, match="samples"):
        create_method("IxG-SG", model, sample=3)
    with pytest.raises(ValueError, match=r"\(3, 5, 3, 6, 4\), not \(3, 4, 3, 6, 4\)"):
        maps("IxG-SG", model, noise=NOISE)
    with pytest.raises(ValueError, match=r"positions .* \(2, 2\), wanted \(3, 5\)"):
        maps("GradientSHAP", model, positions=torch.zeros(2, 2))
    with pytest.raises(ValueError, match="baselines of shape"):
        maps("GradientSHAP", model, baselines=torch.zeros(2, 3, 5, 5))
