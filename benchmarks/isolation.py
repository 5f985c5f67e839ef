"""What isolation costs: a net of the user's with and without it, as a ratio of times.

    python benchmarks/isolation.py [--size 224] [--repeats 5] [--device cpu]

- passes: forward passes of a torchvision ResNet-18 whose input is copied, over those of the bare net. Goal: 1.02.
- method: a method of the user's (input times gradient) through the engine's copies, snapshot and comparison of all weights, over the bare
  function on the same batch. Goal: 1.02.

Both take turns; each number is the ratio of medians, and the batch is the engine's own.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor

from idsds.common.batching import default_batch
from idsds.methods import as_method
from idsds.models.base import frozen
from idsds.models.isolation import on_loan

GOAL = 1.02


def seconds(function: Callable[[], object], device: str) -> float:
    begun = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begun


def ratio(mine: Callable[[], object], bare: Callable[[], object], repeats: int, device: str) -> float:
    """The median of the first over that of the second; they take turns."""
    for function in (mine, bare):
        seconds(function, device)
    pairs = [(seconds(bare, device), seconds(mine, device)) for _ in range(repeats)]
    return statistics.median(m for _, m in pairs) / statistics.median(b for b, _ in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device, net = arguments.device, torchvision.models.resnet18().eval()
    with on_loan(net, device, torch.channels_last):
        images = torch.randn(1, 3, arguments.size, arguments.size, device=device)
        images = images.expand(default_batch(images), -1, -1, -1).contiguous(memory_format=torch.channels_last)
        targets = torch.zeros(len(images), dtype=torch.long, device=device)

        def explain(images: Tensor, targets: Tensor) -> Tensor:
            at = images.clone().requires_grad_()
            (gradient,) = torch.autograd.grad(net(at).gather(1, targets[:, None]).sum(), at)
            return gradient * at

        @torch.no_grad()
        def isolated() -> None:
            with frozen(net):
                net(images)

        @torch.no_grad()
        def bare() -> None:
            net(images)

        method = as_method("own", explain, net)
        for name, mine, plain in (
            ("passes", isolated, bare),
            ("method", lambda: method(images, targets), lambda: explain(images, targets).sum(dim=1, keepdim=True)),
        ):
            print(
                f"{name}: {ratio(mine, plain, arguments.repeats, device):.3f} (goal {GOAL}), {len(images)} images on {device}", flush=True
            )


if __name__ == "__main__":
    main()
