"""The vision transformers: attention, positions and tokens."""

import pytest
import timm
import torch

from idsds.methods import create_method
from idsds.models import MODELS, UNIT, create_model, describe
from tests.models.golden import filled


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


def images_for(model, batch=3, shape=None):
    size = describe(model).input_size
    images = torch.rand(batch, 3, *(shape or (size, size)), generator=torch.Generator().manual_seed(1))
    return images if describe(model).normalisation == UNIT else images * 2 - 1


def test_mini_vit_has_as_many_tokens_on_images_of_twice_the_size():
    net = create_model("mini_vit")
    images = images_for(net)
    with torch.inference_mode():
        *stem, _pool = net.patch_embed.proj
        small, large = (net.patch_embed(images.repeat_interleave(n, 2).repeat_interleave(n, 3)) for n in (1, 2))
        assert small.shape == large.shape == (3, 64, 48)
        torch.testing.assert_close(small, torch.nn.Sequential(*stem)(images).flatten(2).mT, rtol=0, atol=0)
        pooled = torch.nn.functional.avg_pool2d(torch.nn.Sequential(*stem)(images.repeat_interleave(2, 2).repeat_interleave(2, 3)), 2)
        torch.testing.assert_close(large, pooled.flatten(2).mT)
    maps = create_method("Rollout", net)(torch.rand(2, 3, 64, 64), torch.tensor([0, 1]))[:, 0]
    assert (maps[:, ::8, ::8].repeat_interleave(8, 1).repeat_interleave(8, 2) == maps).all()  # tokens of 8 x 8 pixels


def test_published_weights_of_the_vit_are_those_that_the_study_started_from(monkeypatch):
    asked = []
    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda model, pretrained_cfg, **_: asked.append(pretrained_cfg))
    with torch.device("meta"):
        model = create_model("vit_base_patch16_224", num_classes=5, pretrained=True)
    assert asked[0]["url"].endswith("/jx_vit_base_p16_224-80ecf9dd.pth")
    assert (asked[0]["mean"], asked[0]["std"]) == (describe(model).normalisation.mean, describe(model).normalisation.std)


def test_mini_vit_starts_with_positions_that_can_be_told_apart():
    """Neighbours are alike, and no two of the 64 positions are the same; with noise of 0.02 all are alike beside the tokens."""
    net = create_model("mini_vit").train()
    places = net.pos_embed[0, 1:].detach()
    distances = torch.cdist(places, places)
    row, column = torch.arange(64) // 8, torch.arange(64) % 8
    apart = (row[:, None] - row).abs() + (column[:, None] - column).abs()
    means = [distances[apart == steps].mean().item() for steps in range(4)]
    assert means == sorted(means)
    assert distances[apart > 0].min() > 0.5
    with torch.inference_mode():
        tokens = net.patch_embed(images_for(net))
    assert 0.2 < places.std() / tokens.std() < 5  # neither drowns the other
