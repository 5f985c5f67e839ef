"""CheferLRP: relevance propagation through a vision transformer, combined with the gradient of its attention.

Relevance R starts as 1 at the target logit and is propagated backwards layer by layer (Chefer, Gur and Wolf, "Transformer
Interpretability Beyond Attention Visualization", CVPR 2021). Through a layer that computes z from x, it propagates as follows, with W+
and W- the positive and negative parts of W:

* linear layer, z = W x (+ b):   R_x = x+ W+^T s + x- W-^T s,  with s = R_z / (W+ x+ + W- x-), in proportion to positive contributions
* product, z = a b:              R_a = a (s b^T) / 2, R_b = b (a^T s) / 2,  with s = R_z / z
* sum, z = a + b:                R_a = a R_z / z and R_b = b R_z / z, both rescaled so that they carry |sum R_a| : |sum R_b| of sum R_z
* LayerNorm, GELU, softmax:      R_x = R_z; likewise LayerScale, z = g x, which the paper's nets do not have
* a value that is used twice:    the sum over its uses.

Each block's map is the mean over heads of relu(g R_A), with R_A the relevance of the attention A and g the target logit's gradient there.
The blocks' maps are combined by rollout, with shortcuts but without normalising rows.

As in the paper's code, 1e-9 is added to denominators. The rule for sums divides by values near 0, which amplifies rounding errors from
block to block: with the weights of our parity check, a change of 1e-7 in the weights changes float32 maps by half of their maximum, and
the reference's float32 map differs as much from the float64 map. The default here is therefore float64, so that an image's map does not
depend on its batch; ``double=False`` uses the reference's precision and is about twice as fast on a CPU.

For this method only, the reference uses a net whose last LayerNorm has an epsilon of 1e-5 instead of 1e-6, which changes its logits by
2e-6; here the evaluated net itself is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from idsds.common.batching import in_batches
from idsds.methods.base import LOGIT_ONLY, Passes, register_method
from idsds.methods.transformer import attention_maps, drawn, first_block, no_relevance, rolled_out

EPSILON = 1e-9


def share(relevance: Tensor, z: Tensor) -> Tensor:
    """Return relevance / z, or 0 where z is 0."""
    return torch.where(z == 0, 0, relevance / torch.where(z == -EPSILON, EPSILON, z + EPSILON))


def linear_rule(relevance: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Propagate through a linear layer, (..., out), (..., in) and (out, in) -> (..., in)."""
    positive, negative = weight.clamp(min=0), weight.clamp(max=0)
    raised = F.linear(x.clamp(min=0), positive) + F.linear(x.clamp(max=0), negative)  # (..., out)
    s = share(relevance, raised)
    return x.clamp(min=0) * (s @ positive) + x.clamp(max=0) * (s @ negative)


def product_rule(relevance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Propagate through z = a @ b, (..., n, m), (..., n, k) and (..., k, m) -> (..., n, k) and (..., k, m)."""
    s = share(relevance, a @ b)
    return a * (s @ b.mT) / 2, b * (a.mT @ s) / 2


def sum_rule(relevance: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Propagate through z = a + b, all (B, ...); sums run over an image, never over a batch."""
    s = share(relevance, a + b)
    a, b = a * s, b * s
    over = tuple(range(1, a.ndim))
    whole, sum_a, sum_b = (value.sum(dim=over, keepdim=True) for value in (relevance, a, b))
    size = sum_a.abs() + sum_b.abs()
    return a * share(share(sum_a.abs(), size) * whole, sum_a), b * share(share(sum_b.abs(), size) * whole, sum_b)


@contextmanager
def layer_inputs(modules: list[nn.Module]) -> Iterator[dict[nn.Module, Tensor]]:
    """Collect the inputs of ``modules``."""
    inputs: dict[nn.Module, Tensor] = {}

    def read(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs[module] = given[0].detach()

    with ExitStack() as stack:
        for module in modules:
            stack.enter_context(module.register_forward_pre_hook(read))
        yield inputs


@contextmanager
def in_double(model: nn.Module) -> Iterator[None]:
    """Convert the model's floating-point tensors to float64 inside the block; the originals are restored afterwards."""
    with ExitStack() as stack:
        for tensor in filter(Tensor.is_floating_point, (*model.parameters(), *model.buffers())):
            stack.callback(setattr, tensor, "data", tensor.data)
            tensor.data = tensor.data.double()
        yield


def block_rule(block: Block, relevance: Tensor, attention: Tensor, inputs: dict[nn.Module, Tensor]) -> tuple[Tensor, Callable[[], Tensor]]:
    """Propagate through one block.

    Args:
        relevance: relevance of its output, (B, P + N, D).
        attention: (B, heads, P + N, P + N).
        inputs: the inputs of its ``norm1``, ``norm2``, ``attn.qkv``, ``attn.proj``, ``mlp.fc1`` and ``mlp.fc2``.

    Returns:
        The attention's relevance, (B, heads, P + N, P + N), and a function that returns that of the block's input, (B, P + N, D).
    """
    attn, mlp = block.attn, block.mlp
    x, middle = inputs[block.norm1], inputs[block.norm2]
    hidden = block.ls2(mlp.fc2(inputs[mlp.fc2]))
    kept, through = sum_rule(relevance, middle, hidden)
    through = linear_rule(through, inputs[mlp.fc2], mlp.fc2.weight)
    through = linear_rule(through, inputs[mlp.fc1], mlp.fc1.weight)
    kept, through = sum_rule(kept + through, x, block.ls1(attn.proj(inputs[attn.proj])))
    through = linear_rule(through, inputs[attn.proj], attn.proj.weight)

    def heads(values: Tensor) -> Tensor:  # (B, P + N, heads * d) -> (B, heads, P + N, d)
        return values.unflatten(2, (attn.num_heads, -1)).transpose(1, 2)

    q, k, v = (heads(values) for values in attn.qkv(inputs[attn.qkv]).chunk(3, dim=2))
    of_attention, of_v = product_rule(heads(through), attention, v)

    def onward() -> Tensor:
        # The softmax and the attention logits' scale pass relevance on unchanged.
        of_q, of_k = product_rule(of_attention, q, k.mT)
        joined = [values.transpose(1, 2).flatten(2) for values in (of_q, of_k.mT, of_v)]
        return kept + linear_rule(torch.cat(joined, dim=2), inputs[attn.qkv], attn.qkv.weight)

    return of_attention, onward


def propagated(model: VisionTransformer, images: Tensor, targets: Tensor, start: int) -> list[tuple[Tensor, Tensor]]:
    """Return the attention's relevance and the target logit's gradient there, for the blocks from ``start`` on."""
    blocks = list(model.blocks)[start:]
    modules = [
        module for block in blocks for module in (block.norm1, block.norm2, block.attn.qkv, block.attn.proj, block.mlp.fc1, block.mlp.fc2)
    ]
    with torch.enable_grad(), attention_maps(model, start) as maps, layer_inputs([*modules, model.norm, model.head]) as inputs:
        scores = model(images)
        gradients = torch.autograd.grad(scores.gather(1, targets[:, None]).sum(), maps)
    with torch.no_grad():
        one_hot = F.one_hot(targets.long(), scores.shape[1]).to(images.dtype)
        relevance = torch.zeros_like(inputs[model.norm])  # (B, P + N, D)
        relevance[:, 0] = linear_rule(one_hot, inputs[model.head], model.head.weight)
        found = []
        for index in reversed(range(len(blocks))):
            of_attention, onward = block_rule(blocks[index], relevance, maps[index].detach(), inputs)
            found.append((of_attention, gradients[index]))
            if index:
                relevance = onward()
    return found[::-1]


@register_method(
    "CheferLRP",
    family="transformer",
    variants={"CheferLRP (paper)": {"start_block": 0}},
    passes=Passes(1, 1),
    inapplicable=no_relevance,
    explains_not=LOGIT_ONLY,
    source="Chefer et al., CVPR 2021",
)
def chefer_lrp(
    model: VisionTransformer,
    images: Tensor,
    targets: Tensor,
    *,
    start_block: int | None = None,
    double: bool = True,
    batch: int,
) -> Tensor:
    """Roll out the mean over heads of relu(gradient * relevance) of the attention, in float64 (see this module's docstring).

    Args:
        start_block: index of the first block to use; None for 1, as in the reference, or 0 for a single block. The paper uses all.
        double: whether to compute in float64 (never on Apple GPUs, which lack it).
    """
    start = first_block(model, start_block)

    def attribute(images: Tensor, targets: Tensor) -> Tensor:
        found = propagated(model, images, targets, start)
        matrices = [(gradient * relevance).relu().mean(dim=1) for relevance, gradient in found]
        return drawn(rolled_out(matrices, normalised=False, prefix=model.num_prefix_tokens), model, images)

    with torch.autocast(images.device.type, enabled=False):  # relevance does not survive 16-bit precision
        if not double or images.device.type == "mps":
            return in_batches(attribute, images, targets, size=batch)
        with in_double(model):
            return in_batches(lambda images, targets: attribute(images.double(), targets).to(images.dtype), images, targets, size=batch)
