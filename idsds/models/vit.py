"""Vision transformers (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021), built by timm.

``model.blocks[i].attn.fused_attn`` says whether a block computes its attention in one fused kernel, which hides the attention map; a
method that reads the maps sets it to False while it runs. The logits are the same either way.
"""

from __future__ import annotations

import timm
import torch
from timm.layers import PatchEmbed, build_sincos2d_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, _assert, nn

from idsds.common.normalisation import HALF
from idsds.models.base import register_model

SOURCE = "Dosovitskiy et al., ICLR 2021"
# timm's tag for the file jx_vit_base_p16_224-80ecf9dd.pth, which the study's code uses.
PUBLISHED = "orig_in21k_ft_in1k"


@register_model(family="vit", normalisation=HALF, source=SOURCE)
def vit_base_patch16_224(num_classes: int, pretrained: bool = False) -> nn.Module:
    """Build 12 blocks of 12 heads on 14 x 14 patches, for inputs of 224 x 224 pixels.

    ``pretrained`` downloads the original paper's weights (ImageNet-21k, then ImageNet), from which the study starts too, rather than
    timm's current, more strongly augmented default.
    """
    return timm.create_model(f"vit_base_patch16_224.{PUBLISHED}", pretrained=pretrained, num_classes=num_classes)


class _Tokens(PatchEmbed):
    """Make as many tokens for images of 64 x 64 pixels as for 32 x 32, averaged by the last layer of ``proj``."""

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        return self.grid_size

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        for fits in (height == width, (height - 32) * (height - 64) == 0):  # without `or`, so that the net can be traced
            _assert(fits, f"Input height and width must both be 32 or both be 64, not {height} x {width}.")
        return self.proj(images).flatten(2).mT


@register_model(
    family="vit",
    num_classes=10,
    input_size=32,
    source=f"{SOURCE}; Xiao et al., NeurIPS 2021 (stem)",
    training={"epochs": 8, "batch_size": 32},
)
def mini_vit(num_classes: int) -> nn.Module:
    """Build 3 blocks of 4 heads on 8 x 8 tokens, for inputs of 32 x 32 or 64 x 64 pixels (tokens of 4 or 8 pixels per side).

    A transformer cannot learn from a few thousand images which tokens are neighbours, so this one starts with that knowledge: a
    convolutional stem makes the tokens (Xiao et al., "Early Convolutions Help Transformers See Better"), and the position embedding
    starts as sinusoids instead of noise with deviation 0.02, which does not distinguish tokens. Weights are initialised as by Glorot and
    Bengio (AISTATS 2010); timm's 0.02 suits 768 channels.
    """
    side, width = 8, 48
    net = VisionTransformer(
        img_size=32,
        patch_size=32 // side,
        num_classes=num_classes,
        embed_dim=width,
        depth=3,
        num_heads=4,
        mlp_ratio=2,
        weight_init="moco",
        embed_layer=_Tokens,
    )
    net.patch_embed.proj = nn.Sequential(
        nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width // 2),
        nn.ReLU(),
        nn.Conv2d(width // 2, width, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
        nn.AdaptiveAvgPool2d(side),  # the identity for 32 x 32 pixels
    )
    with torch.no_grad():
        net.pos_embed[0, 1:] = build_sincos2d_pos_embed([side, side], width, temperature=100)
    return net
