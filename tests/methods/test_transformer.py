"""Attention methods against slow formulas, one image and one layer at a time, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from idsds.methods import create_method, list_methods
from idsds.methods.relevance import in_double
from idsds.methods.transformer import attention_maps
from tests.methods.nets import images_of, seeded

IMAGES, TARGETS = images_of(3, 12, 20), torch.tensor([0, 3, 1])
EPSILON = 1e-9


#: A net with registers and LayerScale, as DINOv2 has them.
REGISTERS = {"reg_tokens": 2, "init_values": 0.3}


def vit(**options: object) -> VisionTransformer:
    """3 x 5 tokens of 4 pixels, not square."""
    options = {"global_pool": "token", **options}
    return seeded(lambda: VisionTransformer(img_size=(12, 20), patch_size=4, num_classes=4, embed_dim=12, depth=3, num_heads=2, **options))


def attention_of(model: VisionTransformer, image: Tensor) -> list[Tensor]:
    """Attention of each block, (heads, 16, 16), from its query and key weights."""
    found = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        q, k, _ = module.qkv(inputs[0])[0].unflatten(1, (3, 2, 6)).permute(1, 2, 0, 3)
        found.append((q @ k.mT / 6**0.5).softmax(dim=-1))

    handles = [block.attn.register_forward_pre_hook(hook) for block in model.blocks]
    with torch.no_grad():
        model(image[None])
    for handle in handles:
        handle.remove()
    return found


def as_blocks(tokens: Tensor) -> Tensor:
    """15 values -> (12, 20)."""
    return torch.kron(tokens.view(3, 5), torch.ones(4, 4, dtype=tokens.dtype))


@pytest.mark.parametrize("options", [{}, REGISTERS], ids=["plain", "registers"])
@pytest.mark.parametrize(("name", "start"), [("Rollout", 1), ("Rollout (paper)", 0)])
def test_rollout_is_a_product_of_matrices(name: str, start: int, options: dict) -> None:
    model = vit(**options)
    prefix = model.num_prefix_tokens
    found = create_method(name, model)(IMAGES, TARGETS)
    for image, map_ in zip(IMAGES, found[:, 0], strict=True):
        product = torch.eye(15 + prefix, dtype=torch.float64)
        for attention in attention_of(model, image)[start:]:
            with_shortcut = attention.mean(dim=0) + torch.eye(15 + prefix)
            product = with_shortcut / with_shortcut.sum(dim=1, keepdim=True) @ product
        assert torch.allclose(map_, as_blocks(product[0, prefix:]), rtol=1e-9, atol=0)


@pytest.mark.parametrize("options", [{}, REGISTERS], ids=["plain", "registers"])
@pytest.mark.parametrize("targets", [[0, 1, 2], [3, 2, 1]])
def test_grad_cam_of_the_last_attention(targets: list[int], options: dict) -> None:
    model, targets = vit(**options), torch.tensor(targets)
    prefix = model.num_prefix_tokens
    found = create_method("Grad-CAM", model)(IMAGES, targets)
    attention = torch.stack([attention_of(model, image)[-1] for image in IMAGES]).requires_grad_()
    last, inputs = model.blocks[-1], []
    handle = last.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))
    model(IMAGES)
    handle.remove()
    v = last.attn.qkv(last.norm1(inputs[0])).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4)[2]
    x = inputs[0] + last.ls1(last.attn.proj((attention @ v).transpose(1, 2).flatten(2)))
    logits = model.forward_head(model.norm(x + last.ls2(last.mlp(last.norm2(x)))))
    (gradient,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), attention)
    weights = gradient[:, :, 0, prefix:].mean(dim=-1, keepdim=True)
    tokens = (weights * attention[:, :, 0, prefix:]).mean(dim=1).relu().detach()
    assert tokens.any()
    assert torch.allclose(found[:, 0], torch.stack([as_blocks(t) for t in tokens]), rtol=1e-9, atol=1e-15)


def relevance_of_one(model: VisionTransformer, image: Tensor, target: int, start: int) -> Tensor:
    """CheferLRP of one image, every rule as x * d z / d x of relevance / z by autograd."""

    def over(relevance: Tensor, z: Tensor) -> Tensor:
        return torch.where(z == 0, 0, relevance / (z + EPSILON))

    def handed_back(relevance: Tensor, function, *inputs: Tensor) -> list[Tensor]:
        inputs = [value.detach().requires_grad_() for value in inputs]
        z = function(*inputs)
        return [x.detach() * g for x, g in zip(inputs, torch.autograd.grad(z, inputs, over(relevance, z.detach())), strict=True)]

    def linear(relevance: Tensor, x: Tensor, layer: nn.Linear) -> Tensor:
        w = layer.weight.detach()
        return sum(
            handed_back(relevance, lambda p, n: F.linear(p, w.clamp(min=0)) + F.linear(n, w.clamp(max=0)), x.clamp(min=0), x.clamp(max=0))
        )

    def add(relevance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        parts = handed_back(relevance, torch.add, a, b)
        size = sum(part.sum().abs() for part in parts)
        return tuple(part * over(over(part.sum().abs(), size) * relevance.sum(), part.sum()) for part in parts)

    x, stages = model.norm_pre(model._pos_embed(model.patch_embed(image[None]))), []
    attentions = []
    for block in model.blocks:
        normed = block.norm1(x)
        q, k, v = block.attn.qkv(normed).unflatten(2, (3, 2, 6)).permute(2, 0, 3, 1, 4)
        attention = (q @ k.mT / 6**0.5).softmax(dim=-1)
        attentions.append(attention)
        mixed = (attention @ v).transpose(1, 2).flatten(2)
        middle = x + block.ls1(block.attn.proj(mixed))
        hidden = block.mlp.act(block.mlp.fc1(block.norm2(middle)))
        stages.append((x, normed, q, k, v, attention, mixed, middle, block.norm2(middle), hidden, block.ls2(block.mlp.fc2(hidden))))
        x = middle + stages[-1][-1]
    top = model.norm(x)[:, 0]
    logits = model.head(top)
    gradients = torch.autograd.grad(logits[0, target], attentions)
    relevance = torch.zeros_like(x)
    relevance[:, 0] = linear(F.one_hot(torch.tensor([target]), 4).double(), top.detach(), model.head)
    row = None
    for block, values, gradient in list(zip(model.blocks, stages, gradients, strict=True))[: start - 1 if start else None : -1]:
        x, normed, q, k, v, attention, mixed, middle, normed2, hidden, out = (value.detach() for value in values)
        kept, through = add(relevance, middle, out)
        through = linear(linear(through, hidden, block.mlp.fc2), normed2, block.mlp.fc1)
        kept, through = add(kept + through, x, block.ls1(block.attn.proj(mixed)).detach())
        through = linear(through, mixed, block.attn.proj).unflatten(2, (2, 6)).transpose(1, 2)
        of_attention, of_v = (part / 2 for part in handed_back(through, torch.matmul, attention, v))
        of_q, of_k = (part / 2 for part in handed_back(of_attention, lambda q, k: q @ k.mT, q, k))
        joined = torch.stack([of_q, of_k, of_v], dim=0).permute(1, 3, 0, 2, 4).flatten(2)
        relevance = kept + linear(joined, normed, block.attn.qkv)
        matrix = (gradient * of_attention).clamp(min=0).mean(dim=1)[0] + torch.eye(15 + model.num_prefix_tokens)
        row = matrix[:1] if row is None else row @ matrix
    return as_blocks(row[0, model.num_prefix_tokens :].detach())


@pytest.mark.parametrize("options", [{}, REGISTERS], ids=["plain", "registers"])
@pytest.mark.parametrize(("name", "start"), [("CheferLRP", 1), ("CheferLRP (paper)", 0)])
def test_relevance_by_autograd(name: str, start: int, options: dict) -> None:
    model = vit(qkv_bias=True, **options)
    found = create_method(name, model)(IMAGES, TARGETS)
    for image, target, map_ in zip(IMAGES, TARGETS.tolist(), found[:, 0], strict=True):
        wanted = relevance_of_one(model, image, target, start)
        # The rules divide by values near 0, which multiplies the rounding of float64.
        assert (map_ - wanted).abs().max() < 1e-6 * wanted.abs().max()


def test_relevance_is_computed_in_double_and_the_weights_come_back() -> None:
    model = vit().float()
    before = {name: (tensor, tensor.data_ptr()) for name, tensor in model.state_dict(keep_vars=True).items()}
    found = create_method("CheferLRP", model)(IMAGES.float(), TARGETS)
    assert found.dtype == torch.float32
    assert {name: (tensor, tensor.data_ptr()) for name, tensor in model.state_dict(keep_vars=True).items()}.keys() == before.keys()
    assert all(tensor is model.state_dict(keep_vars=True)[name] and tensor.data_ptr() == where for name, (tensor, where) in before.items())
    # One image at a time gives the same to float32's last digits, which float32 arithmetic would not.
    alone = torch.cat([create_method("CheferLRP", model)(IMAGES[i : i + 1].float(), TARGETS[i : i + 1]) for i in range(3)])
    assert torch.allclose(found, alone, rtol=1e-5, atol=0)
    with pytest.raises(RuntimeError, match="inside"), in_double(model):
        raise RuntimeError("inside")
    assert all(tensor.dtype == torch.float32 for tensor in model.parameters())


def test_fused_attention_is_put_back_also_after_an_error() -> None:
    model = vit()
    model.blocks[1].attn.fused_attn = False
    with attention_maps(model):
        assert not any(block.attn.fused_attn for block in model.blocks)
    with pytest.raises(RuntimeError, match="inside"), attention_maps(model):
        raise RuntimeError("inside")
    assert [block.attn.fused_attn for block in model.blocks] == [True, False, True]
    assert not any(block.attn.attn_drop._forward_hooks for block in model.blocks)


def test_other_transformers_are_refused_with_a_reason() -> None:
    pooled = vit(global_pool="avg", class_token=False)
    assert {"Rollout", "CheferLRP"} <= set(list_methods(pooled).excluded)
    assert "normalised queries" in list_methods(vit(qk_norm=True)).excluded["CheferLRP"]
    assert "Rollout" in list_methods(vit(qk_norm=True))
    assert "on attention" in list_methods(vit()).excluded["Layer-CAM"]
    with pytest.raises(ValueError, match=r"start_block must be in \[0, 2\], not 3"):
        create_method("Rollout", vit(), start_block=3)(IMAGES, TARGETS)
