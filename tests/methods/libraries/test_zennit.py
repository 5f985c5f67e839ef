"""Rules of zennit, against zennit called directly."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from idsds.methods import create_method
from tests.methods.libraries.nets import TARGETS
from tests.methods.nets import images_of, mini


@pytest.mark.parametrize("name", ["EpsilonPlus", "EpsilonPlusFlat", "EpsilonAlpha2Beta1"])
def test_zennit_with_its_own_canonizer_for_resnets_gives_the_same(name: str) -> None:
    pytest.importorskip("zennit")
    from zennit import composites
    from zennit.attribution import Gradient
    from zennit.torchvision import ResNetCanonizer

    model, images = mini("mini_resnet8"), images_of(2, 32, 32)
    found = create_method(f"zennit/{name}", model)(images, TARGETS)
    with Gradient(model, getattr(composites, name)(canonizers=[ResNetCanonizer()])) as attributor:
        _, wanted = attributor(images.clone(), lambda output: output.detach() * nn.functional.one_hot(TARGETS, 10))
    assert torch.allclose(found, wanted.sum(1, keepdim=True).detach(), rtol=1e-6, atol=1e-9 * float(wanted.detach().abs().max()))


def test_lrp_shares_out_the_logit_of_a_net_without_biases() -> None:
    pytest.importorskip("zennit")
    model, images = mini("mini_x_resnet8"), images_of(2, 32, 32)
    logits = model(images).gather(1, TARGETS[:, None])[:, 0]
    assert torch.allclose(create_method("LRP", model)(images, TARGETS).sum((1, 2, 3)), logits.detach(), rtol=1e-3)
