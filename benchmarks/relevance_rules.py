"""Layer-wise relevance propagation written a second time, for benchmarks/families.py: zennit's composites and Chefer's rules for ViTs.

The package hooks modules of a net's graph (zennit), or goes through a ViT block by block. Here a net runs once with every function that has
a rule replaced by one whose *gradient* is the rule; the gradient of the image, or of an attention, is then its relevance.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

EPSILON = 1e-6
#: One z = op(input, weight, bias) of a rule.
Term = tuple[Tensor, Tensor | None, Tensor | None]
Op = Callable[..., Tensor]
#: What is multiplied by a sum of terms: the factor, where it counts (by the sign of the output, 0: everywhere), and the terms.
Group = tuple[float, int, Sequence[Term]]
Rule = Callable[[Tensor, Tensor, Tensor | None], Sequence[Group]]


def stable(z: Tensor) -> Tensor:
    return z + torch.where(z < 0, -EPSILON, EPSILON)


class Ruled(torch.autograd.Function):
    """y = op(x, weight, bias), whose gradient is the rule's relevance."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, op: Op, rule: Callable[..., Sequence[Group]]) -> Tensor:
        ctx.given = x.detach(), None if weight is None else weight.detach(), None if bias is None else bias.detach(), op, rule
        return op(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, op, rule = ctx.given
        total, output = torch.zeros_like(x), op(x, weight, bias)
        for factor, sign, terms in rule(x, weight, bias):
            inputs = [term[0].expand_as(x).clone().requires_grad_() for term in terms]
            with torch.enable_grad():
                values = [op(each, *term[1:]) for each, term in zip(inputs, terms, strict=True)]
            part = relevance / stable(sum(values).detach())  # type: ignore[union-attr]
            part = part * (output * sign > 0) if sign else part
            slopes = torch.autograd.grad(values, inputs, [part] * len(values))
            total += factor * sum(each.detach() * slope for each, slope in zip(inputs, slopes, strict=True))
        return total, None, None, None, None


def up(x: Tensor) -> Tensor:
    return x.clamp(min=0)


def down(x: Tensor) -> Tensor:
    return x.clamp(max=0)


def epsilon(x: Tensor, w: Tensor, b: Tensor | None) -> Sequence[Group]:
    return [(1.0, 0, [(x, w, b)])]


def alpha_beta(alpha: float, beta: float) -> Rule:
    def rule(x: Tensor, w: Tensor, b: Tensor | None) -> Sequence[Group]:
        high, low = (None if b is None else side(b) for side in (up, down))
        positive = [(up(x), up(w), high), (down(x), down(w), None)]
        negative = [(up(x), down(w), low), (down(x), up(w), None)]
        return [(alpha, 0, positive)] + ([(-beta, 0, negative)] if beta else [])

    return rule


def gamma(x: Tensor, w: Tensor, b: Tensor | None) -> Sequence[Group]:
    def raised(value: Tensor | None, side: Callable[[Tensor], Tensor]) -> Tensor | None:
        return None if value is None else value + 0.25 * side(value)

    positive = [(up(x), raised(w, up), raised(b, up)), (down(x), raised(w, down), None)]
    negative = [(up(x), raised(w, down), raised(b, down)), (down(x), raised(w, up), None)]
    return [(1.0, 1, positive), (1.0, -1, negative)]


class Flat(torch.autograd.Function):
    """y = op(x, weight, bias); the relevance of an output is divided equally among the inputs that it sees."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, op: Op) -> Tensor:
        ctx.given = torch.ones_like(x), torch.ones_like(weight), op
        return op(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, op = ctx.given
        x.requires_grad_()
        with torch.enable_grad():
            seen = op(x, weight, None)
        return (*torch.autograd.grad(seen, x, relevance / stable(seen.detach())), None, None, None)


class Box(torch.autograd.Function):
    """y = op(x, weight, bias), for pixels between ``low`` and ``high``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, op: Op, low: float, high: float) -> Tensor:
        ctx.given = x.detach(), weight.detach(), None if bias is None else bias.detach(), op, low, high
        return op(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor | None, ...]:
        x, w, b, op, low, high = ctx.given
        inputs = [each.requires_grad_() for each in (x.clone(), torch.full_like(x, low), torch.full_like(x, high))]
        weights = [(w, b), (up(w), None if b is None else up(b)), (down(w), None if b is None else down(b))]
        with torch.enable_grad():
            values = [op(each, *pair) for each, pair in zip(inputs, weights, strict=True)]
        part = relevance / stable((values[0] - values[1] - values[2]).detach())
        slopes = torch.autograd.grad(values, inputs, [part] * 3)
        first, second, third = (each.detach() * slope for each, slope in zip(inputs, slopes, strict=True))
        return first - second - third, None, None, None, None, None


class As(torch.autograd.Function):
    """A value, and x's gradient as if it were x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, None]:
        return relevance, None


class Shared(torch.autograd.Function):
    """a + b, whose relevance is shared in proportion to the two."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a + b

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        part = relevance / stable(a + b)
        return a * part, b * part


RELUS = (torch.relu, torch.relu_, F.relu, F.relu_, F.hardtanh, F.relu6, Tensor.relu, Tensor.relu_)
SUMS = (torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__iadd__)


class Rules(TorchFunctionMode):
    """Replaces the functions of torch that a composite has rules for."""

    def __init__(self, name: str, low: float = 0.0, high: float = 1.0) -> None:
        super().__init__()
        self.name, self.box, self.number = name, (low, high), count()
        self.passing = name != "ExcitationBackprop"  # what has no rule keeps its gradient
        plus = alpha_beta(1.0, 0.0)
        conv = {"EpsilonGammaBox": gamma}.get(name, alpha_beta(2.0, 1.0) if "Alpha2Beta1" in name else plus)
        self.rules = {F.conv2d: conv, F.linear: epsilon if self.passing else plus}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (F.conv2d, torch.conv2d, F.linear):
            return self.weighted(F.linear if func is F.linear else F.conv2d, *args, **kwargs)
        if self.passing and func in (F.batch_norm, *RELUS):
            with torch.no_grad():
                value = func(args[0].clone(), *args[1:], **kwargs)
            return As.apply(args[0], value)
        if func in SUMS and all(isinstance(each, Tensor) and each.requires_grad for each in args[:2]):
            return Shared.apply(*args[:2])
        return func(*args, **kwargs)

    def weighted(self, function: Op, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **options: Any) -> Tensor:
        def op(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return function(x, weight, bias, *rest, **options)

        first = next(self.number) == 0
        if first and self.name.endswith("Flat"):
            return Flat.apply(x, weight, bias, op)
        if first and self.name == "EpsilonGammaBox":
            return Box.apply(x, weight, bias, op, *self.box)
        return Ruled.apply(x, weight, bias, op, self.rules[function])


@contextmanager
def shared_by_pools() -> Iterator[None]:
    """Average pooling modules share relevance in proportion to what they average; functions keep their gradient."""
    with ExitStack() as stack:
        for kind in (nn.AvgPool2d, nn.AdaptiveAvgPool2d):
            plain = kind.forward

            def forward(module: nn.Module, x: Tensor, plain: Callable[..., Tensor] = plain) -> Tensor:
                with torch._C.DisableTorchFunction():
                    return Ruled.apply(x, None, None, lambda x, *_: plain(module, x), epsilon)

            stack.enter_context(patch.object(kind, "forward", forward))
        yield


def merged(net: nn.Module, images: Tensor) -> nn.Module:
    """A copy in which each BatchNorm that is given a convolution's output, and nothing else is, is part of the convolution's weights."""
    net, made, pairs, uses = copy.deepcopy(net), {}, [], {}

    def before(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        for value in inputs:
            if isinstance(value, Tensor):
                uses[id(value)] = uses.get(id(value), 0) + 1
                if isinstance(module, nn.BatchNorm2d) and id(value) in made:
                    pairs.append((made[id(value)][0], module, id(value)))

    def after(module: nn.Module, _inputs: object, output: Tensor) -> None:
        made[id(output)] = module, output  # kept, so that no other tensor gets its id

    leaves = [module for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    handles = [module.register_forward_hook(after) for module in leaves] + [module.register_forward_pre_hook(before) for module in norms]
    with torch.no_grad():
        net(images)
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        for conv, norm, _ in pairs:
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            conv.bias = nn.Parameter(norm.bias + ((0 if conv.bias is None else conv.bias) - norm.running_mean) * scale)
            conv.weight.mul_(scale[:, None, None, None])
            norm.weight.fill_(1), norm.bias.zero_(), norm.running_mean.zero_(), norm.running_var.fill_(1)  # as zennit does: eps stays
    return net


def composite(name: str, net: nn.Module, images: Tensor, targets: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """The relevance of the pixels by a composite of zennit, (B, 3, H, W)."""
    net, images = merged(net, images), images.clone().requires_grad_()
    with shared_by_pools(), Rules(name, low, high):
        output = net(images)
    start = output.detach() * F.one_hot(targets, output.shape[1])
    return torch.autograd.grad(output, images, start)[0]


# Chefer's rules.

TINY = 1e-9


def tiny(relevance: Tensor, z: Tensor) -> Tensor:
    return torch.where(z == 0, 0, relevance / (z + TINY))


class Positive(torch.autograd.Function):
    """W x + b, whose relevance is shared among the contributions W x that are positive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Linear) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight = layer.weight.detach()
        return layer(x)

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        each = up(x[..., None, :] * ctx.weight)  # (..., out, in)
        return (each * tiny(relevance, each.sum(-1))[..., None]).sum(-2), None


class Product(torch.autograd.Function):
    """a b, whose relevance is shared in halves, by each one's part in each product."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        part = a[..., :, :, None] * b[..., None, :, :] * tiny(relevance, a @ b)[..., :, None, :]  # (..., n, k, m)
        return part.sum(-1) / 2, part.sum(-3) / 2


class Balanced(Shared):
    """a + b, whose relevance is shared in proportion, and then rescaled so that the sums have the ratio of their sizes."""

    @staticmethod
    def backward(ctx: Any, relevance: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        parts = [value * tiny(relevance, a + b) for value in (a, b)]
        sums = [part.sum((1, 2), keepdim=True) for part in parts]
        whole, size = relevance.sum((1, 2), keepdim=True), sums[0].abs() + sums[1].abs()
        first, second = (part * tiny(tiny(total.abs(), size) * whole, total) for part, total in zip(parts, sums, strict=True))
        return first, second


def chefer(net: nn.Module, images: Tensor, targets: Tensor, start: int) -> Tensor:
    """The class token's row of the rollout of relevance times gradient, from block ``start`` on, (B, tokens)."""
    held: list[Tensor] = []
    handle = net.blocks[0].register_forward_pre_hook(lambda _module, inputs: held.append(inputs[0].detach()))
    with torch.no_grad():
        logits = net(images)
    handle.remove()
    maps: dict[bool, list[Tensor]] = {}
    seeds: dict[bool, Tensor] = {}
    for ruled in (True, False):  # by the rules, then by the gradient
        linear = Positive.apply if ruled else lambda x, layer: layer(x)
        times = Product.apply if ruled else torch.matmul
        plus = Balanced.apply if ruled else torch.add
        through = (lambda x, module: As.apply(x, module(x.detach()).detach())) if ruled else lambda x, module: module(x)
        x, maps[ruled] = held[0].clone().requires_grad_(), []
        for block in net.blocks:
            attn = block.attn
            q, k, v = linear(through(x, block.norm1), attn.qkv).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
            scores = times(q, k.transpose(-1, -2))
            weights = through(scores, lambda scores, scale=attn.scale: (scores * scale).softmax(-1))
            maps[ruled].append(weights)
            mixed = times(weights, v).transpose(1, 2).flatten(2)
            x = plus(x, through(linear(mixed, attn.proj), block.ls1))
            hidden = through(linear(through(x, block.norm2), block.mlp.fc1), block.mlp.act)
            x = plus(x, through(linear(hidden, block.mlp.fc2), block.ls2))
        output = linear(through(x, net.norm)[:, 0], net.head)
        torch.testing.assert_close(output.detach(), logits)
        seeds[ruled] = output
    hot = F.one_hot(targets, logits.shape[1]).to(logits)
    relevance, gradients = (torch.autograd.grad(seeds[ruled], maps[ruled][start:], hot) for ruled in (True, False))
    product = torch.eye(held[0].shape[1], dtype=logits.dtype)
    for r, g in zip(relevance, gradients, strict=True):
        product = (torch.eye(r.shape[-1], dtype=r.dtype) + up(r * g).mean(1)) @ product
    return product[:, 0]
