"""The intrinsic explanations: they add up to the logit, and BagNet's dense map is that of its windows."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from idsds.methods import create_method, list_methods
from idsds.methods.intrinsic import dense_batch
from idsds.models import create_model
from tests.methods.nets import ConvNet, images_of, mini, seeded

TARGETS = torch.tensor([1, 7])


def test_bagnet_is_the_logit_of_each_window() -> None:
    model, images = mini("mini_bagnet"), images_of(2, 24, 30)
    found = create_method("BagNet", model)(images, TARGETS)[:, 0]
    half = model.window // 2
    padded = F.pad(images, [half] * 4)
    for row, column in [(0, 0), (0, 29), (23, 0), (11, 17), (12, 16), (5, 28)]:
        window = padded[:, :, row : row + model.window, column : column + model.window]
        with torch.no_grad():
            wanted = model(window).gather(1, TARGETS[:, None])[:, 0]
        assert torch.allclose(found[:, row, column], wanted, rtol=0, atol=1e-9)


def test_dense_maps_are_bounded_by_their_own_memory() -> None:
    with torch.device("meta"):
        published = create_model("bagnet33")
    # 4 tensors of 2048 channels of 4 bytes are 33 kB per pixel, where an ordinary pass is reckoned at 2: one image where there were 8.
    assert [dense_batch(published, batch) for batch in (1, 8, 16, 17, 160)] == [1, 1, 1, 2, 10]
    assert dense_batch(mini("mini_bagnet"), 64) == 42


def test_bagnet_adds_up_to_the_logit() -> None:
    model, images = mini("mini_bagnet"), images_of(2, 24, 30)
    found = create_method("BagNet", model)(images, TARGETS)[:, 0]
    half = model.window // 2
    # The net strides over windows, the last of which reach beyond the image.
    stride = math.prod(module.stride[0] for name, module in model.named_modules() if name.endswith("conv2") and "." in name)
    with torch.no_grad():
        wanted = model(images).gather(1, TARGETS[:, None])[:, 0]
    below, right = (-(side - model.window) % stride for side in (24, 30))
    averaged = found[:, half : 24 + below - half : stride, half : 30 + right - half : stride].mean(dim=(1, 2))
    assert torch.allclose(averaged, wanted, rtol=0, atol=1e-9)


def test_bcos_adds_up_to_the_logit_less_its_constant() -> None:
    model, images = mini("mini_bcos"), images_of(2, 32, 40)
    found = create_method("B-cos", model)(images, TARGETS)
    with torch.no_grad():
        wanted = model(images).gather(1, TARGETS[:, None])[:, 0] - model.logit_bias
    assert wanted.abs().min() > 0
    assert torch.allclose(found.sum(dim=(1, 2, 3)), wanted, rtol=1e-9, atol=1e-12)


def test_gradient_methods_work_on_bcos() -> None:
    model, images = mini("mini_bcos"), images_of(2, 32, 40)
    found = create_method("IG", model, steps=30)(images, TARGETS)
    with torch.no_grad():
        wanted = (model(images) - model(torch.zeros_like(images))).gather(1, TARGETS[:, None])[:, 0]
    assert torch.allclose(found.sum(dim=(1, 2, 3)), wanted, rtol=2e-2)  # completeness, up to the 30 steps


def test_they_are_for_their_own_models_only() -> None:
    excluded = list_methods(seeded(ConvNet)).excluded
    assert excluded["BagNet"] == "it is the intrinsic explanation of BagNet models"
    assert excluded["B-cos"] == "it is the intrinsic explanation of B-cos models"
    with pytest.raises(ValueError, match="BagNet does not apply to ConvNet"):
        create_method("BagNet", seeded(ConvNet))
