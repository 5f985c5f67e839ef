from __future__ import annotations

import pytest
import torch

from idsds.models import create_model
from idsds.models.bagnet import BagNet


def test_the_small_bagnet_has_the_papers_proportion_and_sees_the_whole_image() -> None:
    model, images = create_model("mini_bagnet"), torch.rand(4, 3, 32, 32, requires_grad=True)
    assert model.window / 8 == pytest.approx(33 / 56, abs=0.05)
    (gradient,) = torch.autograd.grad(model(images).square().sum(), images)
    assert (gradient.abs().sum(dim=(0, 1)) > 0).all()
    published = BagNet(10, width=2)
    assert (published.window, published.stride, published.cover) == (33, 8, False)
