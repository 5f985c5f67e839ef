"""What a method costs beyond the passes that it cannot do without.

    python benchmarks/methods.py [--model resnet18] [--size 224] [--images 8] [--repeats 5] [--only IG RISE] [--windows 64] [--memory]

For every method: seconds per image, and the same divided by the time of its bare passes through the same model on the same number of images
(forward, or forward and ``torch.autograd.grad`` at the input, or at the CAM layer), in batches of the same size. Method and bare passes
take turns in one run, so that a machine's other work hits both; each figure is the median of the repeats. Goal: at most 1.15.

Many-pass methods are timed with few steps, samples or masks: the ratio does not depend on their number.

Last come BagNet's dense map against cutting out and classifying the window of every pixel (extrapolated from ``--windows`` of them, in
batches of 64; goal: at least 10 times faster), and, with ``--memory``, the growth of memory over 200 calls.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idsds.common.batching import default_batch, in_batches
from idsds.methods import METHODS, Method, create_method, list_methods
from idsds.methods.cam import cam_layer
from idsds.methods.transformer import is_transformer
from idsds.models import create_model, frozen

GOAL, BAGNET_GOAL = 1.15, 10
# Methods whose backward pass ends at an inner layer.
CAM_PASSES = ("Grad-CAM", "Grad-CAM++", "Grad-CAM++ (paper)", "XGrad-CAM", "Layer-CAM", "SG-CAM++", "SG-CAM++ (paper)")


def forward(model: nn.Module, images: Tensor, targets: Tensor, batch: int) -> None:
    """One bare forward pass per image."""
    with torch.inference_mode():
        in_batches(model, images, size=batch)


def to_input(model: nn.Module, images: Tensor, targets: Tensor, batch: int) -> None:
    """One bare forward and backward pass to the input per image."""

    def gradient(images: Tensor, targets: Tensor) -> Tensor:
        images = images.clone().requires_grad_()
        return torch.autograd.grad(model(images).gather(1, targets[:, None]).sum(), images)[0]

    in_batches(gradient, images, targets, size=batch)


def layer_of(model: nn.Module) -> str:
    """Where the backward pass of Grad-CAM ends: the CAM layer, or a ViT's last attention."""
    return f"blocks.{len(model.blocks) - 1}.attn.qkv" if is_transformer(model) else cam_layer(model)


def to_layer(model: nn.Module, images: Tensor, targets: Tensor, batch: int) -> None:
    """One bare forward pass, and a backward pass to an inner layer, per image."""
    outputs: list[Tensor] = []

    def cut(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        outputs.append(output.requires_grad_())
        return output.clone()

    def gradient(images: Tensor, targets: Tensor) -> Tensor:
        outputs.clear()
        return torch.autograd.grad(model(images).gather(1, targets[:, None]).sum(), outputs)[0]

    handle = model.get_submodule(layer_of(model)).register_forward_hook(cut)
    try:
        in_batches(gradient, images, targets, size=batch)
    finally:
        handle.remove()


def bare(method: Method, images: Tensor, targets: Tensor, batch: int) -> Callable[[], None]:
    """The passes that a method announces, and nothing else."""
    base, passes = method.entry.name, method.passes

    def run() -> None:
        with frozen(method.model):
            if base.startswith("Guided Grad-CAM"):
                to_input(method.model, images, targets, batch)
                to_layer(method.model, images, targets, batch)
                return
            backward = to_layer if base in CAM_PASSES else to_input
            for _ in range(passes.backward):
                backward(method.model, images, targets, batch)
            for _ in range(passes.forward - passes.backward):
                forward(method.model, images, targets, batch)

    return run


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def few(name: str, model: nn.Module, batch: int) -> Method:
    """The method with few steps, samples or masks."""
    known = METHODS[name].settings()
    options = {key: value for key, value in {"steps": 4, "samples": 8 if "cells" in known else 2}.items() if key in known}
    return create_method(name, model, batch=batch, **options)


def compare(name: str, model: nn.Module, images: Tensor, targets: Tensor, repeats: int) -> tuple[Method, float, float]:
    """A method, its seconds per image with its few passes, and their ratio to the bare ones (the median over the repeats)."""
    batch = min(len(images), default_batch(images))
    method = few(name, model, batch)
    ids = [str(index) for index in range(len(images))]
    alone = bare(method, images, targets, batch)
    method(images[:1], targets[:1], ids[:1])  # what is done but once, such as choosing convolution algorithms
    alone()
    pairs = [(seconds(lambda: method(images, targets, ids)), seconds(alone)) for _ in range(repeats)]
    return method, statistics.median(a for a, _ in pairs) / len(images), statistics.median(a / b for a, b in pairs)


def bagnet_speedup(size: int, windows: int) -> tuple[float, float, float]:
    """Seconds per image of the dense map and of all windows one by one (extrapolated), and the largest difference of the checked ones."""
    model = create_model("bagnet33")
    image, target = torch.rand(1, 3, size, size) * 2 - 1, torch.tensor([3])
    method = create_method("BagNet", model)
    dense: list[Tensor] = []
    dense_seconds = seconds(lambda: dense.append(method(image, target)))
    half = model.window // 2
    padded = F.pad(image, [half] * 4)
    corners = torch.randint(0, size, (windows, 2), generator=torch.Generator().manual_seed(0)).tolist()
    cut = torch.cat([padded[:, :, row : row + model.window, column : column + model.window] for row, column in corners])
    found: list[Tensor] = []
    with torch.inference_mode():
        model(cut[:1])
        window_seconds = seconds(lambda: found.append(in_batches(model, cut, size=64)[:, 3])) / windows * size**2
    wanted = torch.stack([dense[0][0, 0, row, column] for row, column in corners])
    return dense_seconds, window_seconds, float((found[0] - wanted).abs().max())


def memory(model: nn.Module, size: int) -> None:
    """Growth of the process's peak memory from call 20 to call 200 of a gradient, a CAM and a forward-only method."""
    images, targets = torch.rand(1, 3, size, size), torch.tensor([3])
    for name in ("IxG", "Grad-CAM", "RISE"):
        method = few(name, model, 1)
        peaks = []
        for call in range(200):
            method(images, targets, ["a"])
            if call in (19, 199):
                peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        print(f"memory  {name:12} call 20: {peaks[0]:.0f} MB, call 200: {peaks[1]:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--windows", type=int, default=64, help="0: without BagNet")
    parser.add_argument("--memory", action="store_true")
    arguments = parser.parse_args()
    model = create_model(arguments.model)
    images = torch.rand(arguments.images, 3, arguments.size, arguments.size) * 2 - 1
    targets = torch.arange(arguments.images)
    print(f"{arguments.model}, {arguments.images} images of {arguments.size} x {arguments.size}, {torch.get_num_threads()} threads")
    print(f"{'method':26} {'passes timed':>14} {'ms per image':>13} {'/ bare passes':>14}")
    ratios = {}
    for name in arguments.only or list_methods(model):
        method = few(name, model, 1)
        if not sum(method.passes):
            continue
        method, per_image, ratios[name] = compare(name, model, images, targets, arguments.repeats)
        passes = f"{method.passes.forward} + {method.passes.backward}"
        print(f"{name:26} {passes:>14} {1000 * per_image:13.1f} {ratios[name]:14.3f}", flush=True)
    over = [name for name, ratio in ratios.items() if ratio > GOAL]
    print(f"goal <= {GOAL}: {len(ratios) - len(over)} of {len(ratios)} methods" + (f"; above it: {', '.join(over)}" if over else ""))
    if arguments.windows:
        dense, single, difference = bagnet_speedup(arguments.size, arguments.windows)
        print(f"BagNet  dense map {dense:.1f} s, window by window {single:.0f} s (from {arguments.windows} windows, batches of 64):")
        print(f"        {single / dense:.1f} times faster (goal >= {BAGNET_GOAL}), largest difference {difference:.1e}")
    if arguments.memory:
        memory(model, arguments.size)


if __name__ == "__main__":
    main()
