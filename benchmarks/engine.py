"""What the engine costs beyond its passes, and what it saves.

    python benchmarks/engine.py [--model resnet18] [--size 224] [--images 4] [--steps 50]
                                [--only efficiency small cost speed linear settings]

Ratios of times measured in one run, the first two of CPU time (OMP_NUM_THREADS=1: threads that wait for each other count as well):

- efficiency: time of the bare passes that the records need (17 forward passes for the deletions, and each distinct computation's own) over
  the time of the whole evaluation, from pixels to files of records, with 12 methods; the two take turns, both channels-last. Goal: 0.98.
- small: the same for mini_resnet8 and for a net of one convolution, on 32 x 32 pixels. Goals: 0.9 and 0.7.
- cost: what a record costs beyond its passes, on a net of one linear layer, from the difference between a longer and a shorter run. Goal:
  0.05 ms.
- speed: time of a plain evaluation (one image at a time, one patch at a time, the deletions again for each method, every transform computed
  anew, gradients of all parameters, the steps and samples of an image in one pass) over that of the engine, for the same methods. Goal: 3.
- linear: time per image for twice and four times as many images over that for few, on a net of 32 x 32 pixels.
- settings: time, and what changes in the scores, for channels first, bfloat16 and torch.compile.

The records of the plain evaluation and of the engine are compared as well.
"""

from __future__ import annotations

import argparse
import copy
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import torchcam.methods as cams
from methods import bare, forward, seconds
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import idsds
from idsds.common.batching import default_batch
from idsds.methods import METHODS, create_method
from idsds.methods.cam import cam_layer
from idsds.models import create_model, frozen

os.environ["IDSDS_RECORD_CACHE"] = "0"  # every evaluation is to do its work
EFFICIENCY_GOAL, SPEED_GOAL, COST_GOAL = 0.98, 3, 0.05
SMALL_GOALS = {"mini_resnet8": 0.9, "tiny net": 0.7}
NAMES = ["Gradient", "IxG", "IxG abs", "IxG relu", "IxG-SG", "IG", "IG abs", "Grad-CAM", "XGrad-CAM", "Layer-CAM", "Grad-CAM abs", "Random"]
GRID = 4


warnings.filterwarnings("ignore", message=".*in-domain.*")


def evaluate(model: nn.Module, names: list[str], data: TensorDataset, **settings: Any) -> pd.DataFrame:
    """The engine, writing its records to a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return idsds.evaluate({"net": model}, names, data, images=len(data), output=folder, progress=False, **settings)


def needed(model: nn.Module, names: list[str], images: Tensor, targets: Tensor) -> Callable[[], None]:
    """The bare passes that the records of these methods need, each once, in the engine's layout of memory."""
    model, images = copy.deepcopy(model).to(memory_format=torch.channels_last), images.contiguous(memory_format=torch.channels_last)
    batch = min(len(images), default_batch(images))
    distinct = {method.computation: method for method in (create_method(name, model) for name in names)}
    passes = [bare(method, images, targets, batch) for method in distinct.values() if sum(method.passes)]
    repeated, classes = images.repeat_interleave(GRID**2, dim=0), targets.repeat_interleave(GRID**2)

    def run() -> None:
        with frozen(model):
            forward(model, images, targets, batch)
            forward(model, repeated, classes, default_batch(images))
        for computation in passes:
            computation()

    return run


def plain_map(name: str, model: nn.Module, image: Tensor, target: int, steps: int) -> Tensor:
    """The map (H, W) of one image, written down without regard to what others have computed."""

    def gradient(at: Tensor) -> Tensor:
        at = at.clone().requires_grad_()
        model.zero_grad()
        model(at)[:, target].sum().backward()
        return at.grad

    base, transform = name.removesuffix(" abs").removesuffix(" relu"), name.rsplit(" ", 1)[-1]
    if base == "Gradient":
        found = gradient(image)
    elif base == "IxG":
        found = image * gradient(image)
    elif base == "IxG-SG":
        noisy = image + torch.randn(4, *image.shape[1:])
        found = (noisy * gradient(noisy)).mean(0, keepdim=True)
    elif base == "IG":
        levels = (torch.arange(steps).view(-1, 1, 1, 1) + 0.5) / steps
        found = image * gradient(image * levels).mean(0, keepdim=True)  # all steps in one pass
    elif base == "Random":
        found = torch.randn_like(image)
    else:
        kind = {"Grad-CAM": cams.GradCAM, "XGrad-CAM": cams.XGradCAM, "Layer-CAM": cams.LayerCAM}[base]
        with kind(model, cam_layer(model)) as extractor:
            at = image.clone().requires_grad_()
            cam = extractor([target], model(at), normalized=False)[0]
        found = nn.functional.interpolate(cam[None].detach(), size=image.shape[-2:], mode="bilinear", align_corners=False)
    summed = found.sum(dim=1)[0]
    return {"abs": summed.abs(), "relu": summed.relu()}.get(transform, summed)


def plain(model: nn.Module, names: list[str], data: TensorDataset, steps: int) -> pd.DataFrame:
    """One image at a time, the deletions again for each method."""
    rows = []
    for name in names:
        for index in range(len(data)):
            image, target = data[index][0][None], int(data[index][1])
            height, width = image.shape[-2] // GRID, image.shape[-1] // GRID
            intact = model(image)[0, target]
            drops, sums = [], []
            found = plain_map(name, model, image, target, steps)
            for row in range(GRID):
                for column in range(GRID):
                    cell = slice(row * height, (row + 1) * height), slice(column * width, (column + 1) * width)
                    deleted = image.clone()
                    deleted[:, :, cell[0], cell[1]] = 0
                    drops.append(float(intact - model(deleted)[0, target]))
                    sums.append(float(found[cell].sum()))
            rows.append({"method": name, "image_id": str(index), "score": spearmanr(sums, drops).statistic})
    return pd.DataFrame(rows)


def compare(one: pd.DataFrame, other: pd.DataFrame, names: list[str]) -> float:
    """The largest difference between scores."""
    keys = ["method", "image_id"]
    joined = one[one["method"].isin(names)].merge(other, on=keys, suffixes=("", "_other"))
    return float((joined["score"] - joined["score_other"]).abs().max())


def cpu_seconds(function: Callable[[], object]) -> float:
    """Seconds of the CPU, which other work on the machine changes little; with a GPU, on the clock."""
    if torch.cuda.is_available():
        return seconds(function)
    begun = time.process_time()
    function()
    return time.process_time() - begun


def efficiency(name: str, model: nn.Module, data: TensorDataset, repeats: int, goal: float) -> None:
    names = [name for name in NAMES if "CAM" not in name or not isinstance(model, nn.Sequential)]  # a plain stack has no CAM layer
    alone = needed(model, names, *data.tensors)
    ratios = []
    for _ in range(repeats):
        passes, all_of_it = cpu_seconds(alone), cpu_seconds(lambda: evaluate(model, names, data))
        ratios.append(passes / all_of_it)
        print(f"efficiency  bare passes {passes:.1f} s / evaluation {all_of_it:.1f} s = {ratios[-1]:.2f}", flush=True)
    print(f"efficiency  {name}: {np.median(ratios):.2f} (goal >= {goal}), {len(names)} methods, {len(data)} images", flush=True)


def tiny_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


def small(repeats: int, count: int = 512) -> None:
    data = TensorDataset(torch.randn(count, 3, 32, 32), torch.arange(count) % 10)
    for name, model in {"mini_resnet8": create_model("mini_resnet8"), "tiny net": tiny_net()}.items():
        efficiency(name, model, data, repeats, SMALL_GOALS[name])


def cost(few: int = 2048) -> None:
    """Time of 3 x ``few`` images less that of ``few``, so that what is done but once does not count."""
    names = ["Gradient", "IxG", "IxG abs", "IxG relu", "Gradient abs", "IxG-SG", "IxG-SG abs", "IG", "IG abs", "Random", "Edges", "Center"]
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10))
    own = []
    for count in (few, few, 3 * few):  # the first is to warm up
        data = TensorDataset(torch.randn(count, 3, 8, 8), torch.arange(count) % 10)
        passes = seconds(needed(model, names, *data.tensors))
        own.append(seconds(lambda data=data: evaluate(model, names, data)) - passes)
    each = 1000 * (own[2] - own[1]) / (2 * few * len(names))
    print(
        f"cost        {each:.3f} ms for a record beyond its passes (goal < {COST_GOAL}), {len(names)} methods, {2 * few} images", flush=True
    )


def speed(model: nn.Module, data: TensorDataset, steps: int) -> None:
    found: list[pd.DataFrame] = []
    ours = seconds(lambda: found.append(evaluate(model, NAMES, data)))
    theirs = seconds(lambda: found.append(plain(model, NAMES, data, steps)))
    print(f"speed       plain {theirs:.1f} s / engine {ours:.1f} s = {theirs / ours:.1f} (goal >= {SPEED_GOAL})")
    exact = ["Gradient", "IxG", "IxG abs", "IxG relu", "Layer-CAM"]
    print(f"speed       largest difference of the scores of {', '.join(exact)}: {compare(*found, exact):.1e}", flush=True)


def linear(few: int = 64) -> None:
    torch.manual_seed(0)
    model, images = create_model("mini_resnet8"), torch.randn(4 * few, 3, 32, 32)
    per_image = []
    for count in (few, few, 2 * few, 4 * few):  # the first is to warm up
        data = TensorDataset(images[:count], torch.arange(count) % 10)
        per_image.append(seconds(lambda data=data: evaluate(model, ["IxG", "Grad-CAM"], data)) / count)
    ratios = ", ".join(f"{count}: {cost / per_image[1]:.2f}" for count, cost in zip((few, 2 * few, 4 * few), per_image[1:], strict=True))
    print(f"linear      time per image for so many images, relative to {few}: {ratios}", flush=True)


def settings(model: nn.Module, data: TensorDataset) -> None:
    names = ["IxG", "Grad-CAM"]
    usual: dict[str, Any] = {}
    for what, change in {
        "as it is": {},
        "channels first": {"channels_last": False},
        "bf16-mixed": {"precision": "bf16-mixed"},
        "torch.compile": {"compiled": True},
    }.items():
        if change.get("compiled"):
            evaluate(model, names, data, **change)  # compiling itself is not what is asked
        start = time.perf_counter()
        records = evaluate(model, names, data, **change)
        taken = time.perf_counter() - start
        usual = usual or {"records": records, "seconds": taken}
        gap = (records["score"] - usual["records"]["score"]).abs()
        mean = abs(records["score"].mean() - usual["records"]["score"].mean())
        print(
            f"settings    {what:15} time x {taken / usual['seconds']:.2f}, scores change by up to {gap.max():.1e}, the mean by {mean:.1e}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--steps", type=int, default=50, help="of integrated gradients")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=["efficiency", "small", "cost", "speed", "linear", "settings"])
    arguments = parser.parse_args()
    METHODS.add("IG", replace(METHODS["IG"], options={**METHODS["IG"].options, "steps": arguments.steps}), replace=True)
    torch.manual_seed(0)
    model = create_model(arguments.model)
    data = TensorDataset(torch.randn(arguments.images, 3, arguments.size, arguments.size), torch.arange(arguments.images))
    print(f"{arguments.model}, {len(data)} images of {arguments.size} x {arguments.size}, IG with {arguments.steps} steps")
    print(f"{torch.get_num_threads()} threads", flush=True)
    evaluate(model, ["IxG"], TensorDataset(*(tensor[:1] for tensor in data.tensors)))  # what is done but once
    if "efficiency" in arguments.only:
        efficiency(arguments.model, model, data, arguments.repeats, EFFICIENCY_GOAL)
    if "small" in arguments.only:
        small(arguments.repeats)
    if "cost" in arguments.only:
        cost()
    if "speed" in arguments.only:
        speed(model, data, arguments.steps)
    if "linear" in arguments.only:
        linear()
    if "settings" in arguments.only:
        settings(model, data)


if __name__ == "__main__":
    main()
