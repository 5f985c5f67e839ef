"""Our maps against the golden maps of the reference: largest difference of the 4 x 4 patch sums, over the largest patch sum.

    IDSDS_SHARED=../shared python -m tests.methods.parity_table [--images 2] [--only resnet18 IG] [--double] [--contiguous]

Images and nets lie in memory as the engine lays them out, channels last, in float32; ``--double`` computes in float64, which tells whose
rounding a difference is: ours, if it goes away. CAMs are compared after each map's min-max scaling before the resize, which is where the
reference does it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import time
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor, nn

from idsds.methods import create_method
from idsds.methods.rise import rise_masks
from idsds.models import create_model

TARGETS = torch.tensor([3, 7])
# Names of the reference's command line that differ from the poster's labels.
OURS = {"Grad-CAMpp": "Grad-CAM++", "XG-CAM": "XGrad-CAM", "SG-CAMpp": "SG-CAM++"}


def shared() -> Path:
    """The folder of golden data."""
    return Path(os.environ.get("IDSDS_SHARED", Path(__file__).resolve().parents[2] / ".." / "shared"))


def fill_weights() -> ModuleType:
    """The script that makes the golden data's weights."""
    spec = importlib.util.spec_from_file_location("fill_weights", shared() / "parity" / "fill_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filled(name: str) -> nn.Module:
    """A model with the golden data's weights."""
    model = create_model(name)
    model.load_state_dict(fill_weights().fill(model.state_dict(), name))
    return model


def uniform(seed: int, count: int) -> Tensor:
    """The golden data's images, (count, 3, 224, 224) in [-1, 1]."""
    return torch.rand(count, 3, 224, 224, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def settings(name: str, golden: dict[str, np.ndarray], images: int) -> dict[str, object]:
    """What the golden map was made with in place of random numbers."""
    options: dict[str, object] = {}
    if name.endswith("-U"):
        options["baseline"] = uniform(1, 1)
    if "-SG" in name:
        noise = torch.randn(8, 3, 224, 224, generator=torch.Generator().manual_seed(6))
        options["noise"] = noise.view(2, 4, 3, 224, 224)[:images]
    if name == "SG-CAMpp":
        noise = torch.randn(4, 1, 3, 224, 224, generator=torch.Generator().manual_seed(5))
        options["noise"] = noise.transpose(0, 1).expand(images, -1, -1, -1, -1)
    if name.startswith("RISE"):
        grids, shifts = torch.from_numpy(golden["rise/grids"]), torch.from_numpy(golden["rise/shifts_xy"])
        options["masks"] = rise_masks(grids, shifts.long(), 224, 224)
    return options


def patch_sums(maps: Tensor) -> Tensor:
    """(B, H, W) -> (B, 4, 4)."""
    return maps.double().unflatten(2, (4, -1)).unflatten(1, (4, -1)).sum(dim=(2, 4))


def min_max(maps: Tensor, epsilon: float) -> Tensor:
    """Each map in [0, 1]; torchcam adds 1e-8 to the range, so that a map of zeros stays one, and the reference's ViT code adds nothing."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    return (maps - low) / (high - low + epsilon)


RESIZE = F.interpolate(torch.eye(7, dtype=torch.float64)[None], size=224, mode="linear")[0].T  # (224, 7)


def cells_of(maps: Tensor) -> Tensor:
    """The 7 x 7 maps that were resized to 224 x 224: bilinear resizing is linear along each axis, its pseudo-inverse takes it back."""
    inverse = torch.linalg.pinv(RESIZE)  # (7, 224)
    return inverse @ maps.double() @ inverse.T  # (B, 7, 7)


def resized_min_max(maps: Tensor) -> Tensor:
    """Maps resized from 7 x 7, as if they had been scaled to [0, 1] before that, as the reference does it."""
    return RESIZE @ min_max(cells_of(maps), 1e-8) @ RESIZE.T


def rank_agreement(ours: Tensor, theirs: Tensor) -> float:
    """Rank correlation of two rows of patch sums; 1 where both are constant: the reference drops such an image, our score is undefined."""
    return 1.0 if ours.unique().numel() == theirs.unique().numel() == 1 else float(spearmanr(ours, theirs).statistic)


def compare(
    model: nn.Module,
    key: str,
    golden: dict[str, np.ndarray],
    images: int,
    *,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.channels_last,
) -> tuple[float, float, float]:
    """Relative difference of patch sums, the smallest rank correlation of them, and the seconds per image."""
    name = key.split("/")[1]
    model = model.to(dtype=dtype, memory_format=layout)
    method = create_method(OURS.get(name, name), model, **settings(name, golden, images))
    pictures = uniform(0, 2)[:images].to(dtype).contiguous(memory_format=layout)
    start = time.perf_counter()
    maps = method(pictures, TARGETS[:images])[:, 0]
    seconds = (time.perf_counter() - start) / images
    if "CAM" in name:
        maps = min_max(maps, 0) if "vit" in key else resized_min_max(maps)
    ours, theirs = patch_sums(maps), torch.from_numpy(golden[f"{key}/grid4"])[:images]
    ranks = np.min([rank_agreement(a, b) for a, b in zip(ours.flatten(1), theirs.flatten(1), strict=True)])
    return float((ours - theirs).abs().max() / theirs.abs().max()), float(ranks), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=2, choices=(1, 2))
    parser.add_argument("--only", nargs="*", default=[], help="parts of model/method names, all of which must occur")
    parser.add_argument("--double", action="store_true", help="compute in float64")
    parser.add_argument("--contiguous", action="store_true", help="images and nets with channels first")
    arguments = parser.parse_args()
    dtype = torch.float64 if arguments.double else torch.float32
    layout = torch.contiguous_format if arguments.contiguous else torch.channels_last
    golden = dict(np.load(shared() / "parity" / "attributions.npz"))
    keys = [key.removesuffix("/grid4") for key in golden if key.endswith("/grid4")]
    print(f"{'model':22} {'method':12} {'relative difference':>20} {'rank correlation':>17} {'s per image':>12}")
    models: dict[str, nn.Module] = {}
    for key in keys:
        if not all(part in key.split("/") for part in arguments.only):
            continue
        name, method = key.split("/")
        if name not in models:
            models = {name: filled(name)}
        difference, ranks, seconds = compare(models[name], key, golden, arguments.images, dtype=dtype, layout=layout)
        print(f"{name:22} {OURS.get(method, method):12} {difference:20.1e} {ranks:17.4f} {seconds:12.2f}", flush=True)


if __name__ == "__main__":
    main()
