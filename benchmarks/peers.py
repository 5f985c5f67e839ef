"""The engine against the reference's algorithm, Quantus and captum: ratios of times in one run, above 1 where ours is faster.

    python benchmarks/peers.py [--images 4] [--masks 100] [--repeats 3] [--only reference together quantus captum]

- reference: single deletion as the IDSDS study computes it, written anew: batches of eight (one for RISE), graph and gradients of the
  weights kept, channels first, the maps by captum and torchcam, every deletion anew for each method; resnet18 at 224 x 224.
- together: four methods in one call against the four runs of the reference, once for cheap methods and once with IG and RISE.
- quantus, captum: their metrics called directly, against our functions with the same maps, steps and samples; mini_resnet8 at 32 x 32,
  64 images. Quantus is the extra ``quantus``; without it its rows are left out.

Each pair takes turns; a ratio is that of the medians. Seconds are of the CPU, which other work on the machine changes little; run it with
OMP_NUM_THREADS=1, since two threads that wait for each other count as well.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import torch
import torchcam.methods as cams
from captum import attr, metrics
from engine import cpu_seconds, evaluate
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from idsds.methods import METHODS, create_method
from idsds.methods.cam import cam_layer
from idsds.models import create_model
from idsds.protocols.base import Batch
from idsds.protocols.incremental_deletion import incremental_deletion_curve
from idsds.protocols.infidelity import infidelity, max_sensitivity
from idsds.protocols.sanity import layers_from_the_top, sanity_check

GOAL, TOGETHER_GOAL = 1, 3
GRID, SAMPLES, STEPS = 4, 10, 32
ALONE = ["IxG", "Grad-CAM", "IG", "RISE"]
TOGETHER = [["Gradient", "IxG", "IxG-SG", "Grad-CAM"], ALONE]


def reference_maps(name: str, model: nn.Module, images: Tensor, targets: Tensor, masks: int) -> Tensor:
    """Maps (B, C, H, W) of a batch."""
    if name in ("Gradient", "IxG", "IxG-SG"):
        images = images.clone().requires_grad_()
        method = attr.Saliency(model) if name == "Gradient" else attr.InputXGradient(model)
        if name == "IxG-SG":
            return attr.NoiseTunnel(method).attribute(images, nt_samples=4, stdevs=1.0, target=targets).detach()
        return method.attribute(images, target=targets, **({"abs": False} if name == "Gradient" else {})).detach()
    if name == "IG":
        return attr.IntegratedGradients(model).attribute(images, target=targets, n_steps=50).detach()
    if name == "Grad-CAM":
        with cams.GradCAM(model, cam_layer(model)) as extractor:  # one image at a time
            pairs = zip(images.clone().requires_grad_().split(1), targets.tolist(), strict=True)
            found = [extractor([target], model(image))[0] for image, target in pairs]
        return nn.functional.interpolate(torch.cat(found)[:, None].detach(), size=images.shape[-2:], mode="bilinear")
    cells = (torch.rand(masks, 1, 8, 8) < 0.1).float()
    drawn = nn.functional.interpolate(cells, size=[side + side // 8 for side in images.shape[-2:]], mode="bilinear")
    drawn = drawn[..., : images.shape[-2], : images.shape[-1]]
    with torch.no_grad():
        weights = torch.cat([model(some * images).softmax(1)[:, targets[0]] for some in drawn.split(100)])
    return (weights[:, None, None, None] * drawn).sum(0, keepdim=True) / masks / 0.1


def reference(name: str, model: nn.Module, data: TensorDataset, masks: int) -> list[float]:
    """Scores of a method, batch after batch."""
    model.requires_grad_(True)
    scores, size = [], 1 if name == "RISE" else 8
    for start in range(0, len(data), size):
        images, targets = (tensor[start : start + size] for tensor in data.tensors)
        found = reference_maps(name, model, images, targets, masks)
        intact, side = model(images).gather(1, targets[:, None]), images.shape[-1] // GRID
        drops, sums = [], []
        for row in range(0, GRID * side, side):
            for column in range(0, GRID * side, side):
                deleted = images.clone()
                deleted[..., row : row + side, column : column + side] = 0
                drops.append((intact - model(deleted).gather(1, targets[:, None])).detach())
                sums.append(found[..., row : row + side, column : column + side].sum(dim=(1, 2, 3)))
        pairs = zip(torch.stack(sums, dim=1), torch.cat(drops, dim=1), strict=True)
        scores += [float(spearmanr(one.numpy(), other.numpy()).statistic) for one, other in pairs]
    return scores


def compared(what: str, ours: Callable[[], object], theirs: Callable[[], object], repeats: int, goal: float = GOAL) -> None:
    pairs = [(cpu_seconds(ours), cpu_seconds(theirs)) for _ in range(repeats)]
    mine, other = (statistics.median(each) for each in zip(*pairs, strict=True))
    print(f"{what:42} peer {other:8.3f} s / ours {mine:8.3f} s = {other / mine:6.2f} (goal >= {goal})", flush=True)


def ixg(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
    images = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        found = torch.autograd.grad(model(images).gather(1, targets[:, None]).sum(), images)[0]
    return (images * found).sum(dim=1, keepdim=True).detach()


def small_ones(model: nn.Module, images: Tensor, targets: Tensor) -> Iterator[tuple[str, str, Callable, Callable]]:
    """Peer, what is compared, ours, theirs."""
    maps, ids = ixg(model, images, targets), [str(i) for i in range(len(images))]
    method = create_method("IxG", model)

    def curve(units: str, steps: int) -> Callable:
        how = {"units": units, "grid": GRID} if units == "patches" else {"units": units}
        return lambda: incremental_deletion_curve(model, maps, images, targets, steps, "descending", **how)

    def sensitivity() -> Tensor:
        return max_sensitivity(
            lambda x: ixg(model, x, targets.repeat_interleave(len(x) // len(targets))), images, samples=SAMPLES, image_ids=ids
        )

    def noise(given: Tensor) -> tuple[Tensor, Tensor]:
        drawn = 0.1 * torch.randn_like(given)
        return drawn, given - drawn

    yield (
        "captum",
        "infidelity",
        lambda: infidelity(model, maps, images, targets, samples=SAMPLES, image_ids=ids),
        lambda: metrics.infidelity(model, noise, images, maps.expand_as(images) / 3, target=targets, n_perturb_samples=SAMPLES),
    )
    yield (
        "captum",
        "sensitivity_max",
        sensitivity,
        lambda: metrics.sensitivity_max(lambda x, target: (ixg(model, x[0], target),), images, n_perturb_samples=SAMPLES, target=targets),
    )
    if find_spec("quantus") is None:
        return
    import quantus

    def explain(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **_: object) -> np.ndarray:
        return ixg(model, torch.as_tensor(inputs, dtype=torch.float32), torch.as_tensor(targets)).numpy()

    def called(metric: Callable, given: Tensor | None = maps) -> Callable:
        arrays = {"x_batch": images.numpy(), "y_batch": targets.numpy(), "a_batch": None if given is None else given.numpy()}
        return lambda: metric(model=model, **arrays, explain_func=explain, device="cpu")

    quiet = {"disable_warnings": True, "display_progressbar": False}
    pixels, layers = images.shape[-2:].numel(), len(layers_from_the_top(model))
    yield "quantus", "PixelFlipping", curve("pixels", STEPS), called(quantus.PixelFlipping(features_in_step=pixels // STEPS, **quiet))
    regions = {"patch_size": images.shape[-1] // GRID, "regions_evaluation": GRID**2}
    yield "quantus", "RegionPerturbation", curve("patches", GRID**2), called(quantus.RegionPerturbation(**regions, **quiet))
    yield "quantus", "MaxSensitivity", sensitivity, called(quantus.MaxSensitivity(nr_samples=SAMPLES, lower_bound=0.02, **quiet))
    batch = Batch(images, targets, ids)
    yield (
        "quantus",
        f"MPRT, {layers} depths",
        lambda: sanity_check(model, [method], batch, {}, depths=layers, ssim=False),
        called(quantus.MPRT(**quiet), None),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--masks", type=int, default=100, help="of RISE, whose ratio does not depend on their number")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=["reference", "together", "quantus", "captum"])
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    METHODS.add("RISE", replace(METHODS["RISE"], options={**METHODS["RISE"].options, "samples": asked.masks}), replace=True)
    torch.manual_seed(0)
    # First, as in a script that calls captum alone: after an evaluation the C library keeps more freed memory, from which captum, which
    # takes all samples at once, profits most.
    small, images = create_model("mini_resnet8").eval(), torch.randn(64, 3, 32, 32)
    for peer, what, ours, theirs in small_ones(small, images, torch.arange(64) % 10):
        if peer in asked.only:
            compared(f"{peer}, {what}", ours, theirs, asked.repeats)
    model = create_model("resnet18").eval()
    data = TensorDataset(torch.randn(asked.images, 3, 224, 224), torch.arange(asked.images))
    evaluate(model, ["IxG"], data)  # what is done but once
    groups = [[name] for name in ALONE] if "reference" in asked.only else []
    for names in groups + (TOGETHER if "together" in asked.only else []):
        goal = GOAL if len(names) == 1 else TOGETHER_GOAL
        compared(
            f"reference, {', '.join(names)}",
            lambda names=names: evaluate(model, names, data),
            lambda names=names: [reference(name, model, data, asked.masks) for name in names],
            asked.repeats,
            goal,
        )


if __name__ == "__main__":
    main()
