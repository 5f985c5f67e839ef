"""The vision transformer (Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021), as timm builds it.

``model.blocks[i].attn.fused_attn`` says whether a block computes its attention in one fused kernel, which hides the attention map; a method
that reads the maps sets it to False for as long as it runs. Both ways give the same logits.
"""

from __future__ import annotations

import timm
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from idsds.models.base import HALF, register_model

SOURCE = "Dosovitskiy et al., ICLR 2021"


@register_model(family="vit", normalisation=HALF, source=SOURCE)
def vit_base_patch16_224(num_classes: int, pretrained: bool = False) -> nn.Module:
    """12 blocks of 12 heads on 14 x 14 patches; input of 224 x 224 pixels only. ``pretrained`` downloads timm's default weights."""
    return timm.create_model("vit_base_patch16_224", pretrained=pretrained, num_classes=num_classes)


@register_model(family="vit", num_classes=10, input_size=32, source=f"{SOURCE}; Xiao et al., NeurIPS 2021 (stem)", training={"epochs": 6})
def mini_vit(num_classes: int) -> nn.Module:
    """3 blocks of 4 heads on 8 x 8 tokens; input of 32 x 32 pixels only.

    A few thousand images are not enough to learn from bare patches what a neighbour is (88 % on mnist5k), so that the tokens come from two
    convolutions of stride 2, the stem of Xiao et al., "Early Convolutions Help Transformers See Better".
    """
    net = VisionTransformer(img_size=32, patch_size=4, num_classes=num_classes, embed_dim=64, depth=3, num_heads=4, mlp_ratio=2)
    net.patch_embed.proj = nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
    )
    return net
