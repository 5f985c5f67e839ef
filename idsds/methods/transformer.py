"""Attention-based maps of vision transformers: Grad-CAM on attention, Rollout, and relevance propagation (CheferLRP), for timm's ViTs.

Each yields a value per token, (B, N) with N = h w patch tokens, upsampled to the image by nearest neighbour as in the reference (if the
border of a grid patch cuts through a token, its pixels count towards both sides). The attention maps A, (B, heads, P + N, P + N), are
read after the softmax, with timm's fused attention disabled meanwhile. P = 1 for the class token, and more in nets with register tokens,
which take part in the attention but belong to no pixels.

Sources: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020 (Rollout); Chefer, Gur and Wolf, "Transformer
Interpretability Beyond Attention Visualization", CVPR 2021 (CheferLRP, and Grad-CAM as its comparison).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from idsds.common.batching import in_batches
from idsds.methods.base import Passes, register_method


def is_transformer(model: nn.Module) -> bool:
    """Return whether a model's attention can be read: a timm ViT with plain blocks that classifies by its class token alone."""
    if not isinstance(model, VisionTransformer) or not len(model.blocks):
        return False
    blocks = all(isinstance(block, Block) and isinstance(block.attn, Attention) for block in model.blocks)
    return blocks and model.has_class_token and model.num_prefix_tokens <= 1 + model.num_reg_tokens and model.global_pool == "token"


def no_attention(model: nn.Module) -> str | None:
    """Return why methods that read attention do not apply to a model; None if they do."""
    if is_transformer(model):
        return None
    return "it reads the attention of a timm VisionTransformer with plain blocks and a class token"


def no_relevance(model: nn.Module) -> str | None:
    """Return why relevance propagation does not apply to a model; None if it does."""
    if reason := no_attention(model):
        return reason
    for block in model.blocks:
        extra = (block.attn.norm, block.attn.q_norm, block.attn.k_norm, block.mlp.norm)
        if not all(isinstance(module, nn.Identity) for module in extra) or block.attn.gate is not None:
            return "it has no rule for a gate or for normalised queries and keys"
    return None


@contextmanager
def attention_maps(model: VisionTransformer, first: int = 0) -> Iterator[list[Tensor]]:
    """Collect the attention of the blocks from ``first`` on; the autograd graph, if enabled, starts at the first of them."""
    maps: list[Tensor] = []

    def read(_module: nn.Module, _inputs: object, attention: Tensor) -> Tensor:
        if torch.is_grad_enabled() and not attention.requires_grad:
            attention = attention.detach().requires_grad_()
        maps.append(attention)
        return attention

    with ExitStack() as stack:
        for block in model.blocks:
            stack.callback(setattr, block.attn, "fused_attn", block.attn.fused_attn)
            block.attn.fused_attn = False
        for block in model.blocks[first:]:
            stack.enter_context(block.attn.attn_drop.register_forward_hook(read))
        yield maps


def drawn(tokens: Tensor, model: VisionTransformer, images: Tensor) -> Tensor:
    """Upsample a value per token to a map, (B, N) -> (B, H, W)."""
    size = model.patch_embed.dynamic_feat_size(images.shape[-2:])
    return F.interpolate(tokens.unflatten(1, size)[:, None], size=images.shape[-2:], mode="nearest")[:, 0]


def rolled_out(matrices: Sequence[Tensor], normalised: bool, prefix: int = 1) -> Tensor:
    """Return how much each token contributes to the class token through all blocks and their shortcuts.

    Args:
        matrices: (B, P + N, P + N) per block, first block first; entry (i, j) is how much token i takes from token j.
        normalised: whether to normalise the rows of matrix + identity to sum to 1.
        prefix: P, the number of tokens before the patch tokens, class token first.

    Returns:
        (B, N), the class token's row of the product of all (matrix + identity), with the last block on the left.
    """
    row: Tensor | None = None
    for matrix in reversed(matrices):
        matrix = matrix + torch.eye(matrix.shape[-1], device=matrix.device, dtype=matrix.dtype)
        if normalised:
            matrix = matrix / matrix.sum(dim=-1, keepdim=True)
        # Only one row of the product is needed: multiply a vector, not a matrix, by each block's matrix.
        with torch.autocast(matrix.device.type, enabled=False):  # even if the model runs in 16 bits
            row = matrix[:, :1] if row is None else row @ matrix  # (B, 1, P + N)
    if row is None:
        raise ValueError("rollout needs at least one block; start_block is beyond the last")
    return row[:, 0, prefix:]


def first_block(model: VisionTransformer, start_block: int | None) -> int:
    """Return the index of the first block to use, see :func:`rollout`. Raises ValueError for a block that the model does not have."""
    start = min(1, len(model.blocks) - 1) if start_block is None else start_block
    if not 0 <= start < len(model.blocks):
        raise ValueError(f"start_block must be in [0, {len(model.blocks) - 1}], not {start}")
    return start


def transformer_grad_cam(model: VisionTransformer, images: Tensor, targets: Tensor) -> Tensor:
    """Return relu(mean over heads of A * mean(g)) of the last block, for the class token's attention to the patches, (B, H, W).

    g is the gradient of the target logit at A, averaged over the tokens. The reference stretches the map to [0, 1], which does not change
    ranks; a zero map becomes NaN there and stays zero here, and its rank correlation is undefined either way.
    """
    with torch.enable_grad(), attention_maps(model, len(model.blocks) - 1) as maps:
        gradients = torch.autograd.grad(model(images).gather(1, targets[:, None]).sum(), maps)  # (B, heads, P + N, P + N)
    whole = (maps[0].detach(), gradients[0])
    attention, gradient = (values[:, :, 0, model.num_prefix_tokens :].to(images.dtype) for values in whole)  # (B, heads, N)
    return drawn((attention * gradient.mean(dim=2, keepdim=True)).mean(dim=1).relu(), model, images)


@register_method(
    "Rollout",
    family="transformer",
    variants={"Rollout (paper)": {"start_block": 0}},
    passes=Passes(1),
    inapplicable=no_attention,
    source="Abnar and Zuidema, ACL 2020",
)
@torch.inference_mode()
def rollout(model: VisionTransformer, images: Tensor, targets: Tensor, *, start_block: int | None = None, batch: int) -> Tensor:
    """Return attention rollout: the product over blocks of attention averaged over heads. The map is the same for every class.

    Args:
        start_block: index of the first block to use; None for 1, as in the reference, or 0 for a single block. The paper uses all.
    """
    start = first_block(model, start_block)

    def attribute(images: Tensor) -> Tensor:
        with attention_maps(model, start) as maps:
            model(images)
        matrices = [attention.to(images.dtype).mean(dim=1) for attention in maps]
        return drawn(rolled_out(matrices, normalised=True, prefix=model.num_prefix_tokens), model, images)

    return in_batches(attribute, images, size=batch)
