"""What reading images costs a run: JPEGs of ImageNet's size, decoded once, read ahead while others are computed.

    python benchmarks/images.py [--images 192] [--methods IxG] [--workers 1]

Three times are taken in one run: decoding alone (every image read, nothing computed), computing alone (the same images in memory), and the
whole evaluation from files to records, with and without processes that read ahead. Goal: with them at most 1.1 of the longer of the first
two, not their sum. torch takes one thread, so that on two cores a process can read beside it. Where other work takes the cores, the clock
tells nothing; this process's CPU time does, below which no run can be on idle ones.

Files read are counted for two models and two seeds: each once.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import TensorDataset

import idsds
from idsds.common.normalisation import IMAGENET
from idsds.datasets import create_dataset
from idsds.datasets.base import ImageDataset

GOAL, SIZE = 1.1, (500, 375)  # of ImageNet's median image
COUNT = [0]  # images in the folder


def folder_of(images: int, folder: Path) -> ImageDataset:
    """Files of smooth noise, of about 100 kB as ImageNet's."""
    rng = np.random.default_rng(0)
    for number in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (94, 125, 3), np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
        file = folder / "image_folder" / "test" / f"class {number % 10}" / f"{number:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        coarse.save(file, quality=95)
    shutil.copytree(folder / "image_folder" / "test", folder / "image_folder" / "train")
    os.environ["IDSDS_DATA"] = str(folder)
    return create_dataset("image_folder", "test", IMAGENET)


def seconds(function: Callable[[], object]) -> tuple[float, float]:
    """Seconds on the clock, and of this process's CPU time."""
    start = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def small_net(width: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10)).eval()


def evaluate(data: object, methods: list[str], workers: int, models: int = 1, seeds: int = 1, width: int = 8) -> None:
    nets = {f"net {number}": small_net(width) for number in range(models)}
    with tempfile.TemporaryDirectory() as folder:
        idsds.evaluate(
            nets, methods, data, "single_deletion", images=COUNT[0] if isinstance(data, str) else len(data), seed=list(range(seeds)),
            output=folder, workers=workers, progress=False, device="cpu", normalisation=IMAGENET,
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=192)
    parser.add_argument("--methods", nargs="*", default=["IxG"])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--width", type=int, default=8, help="of the net, which determines how long computing takes")
    given = parser.parse_args()
    os.environ["IDSDS_RECORD_CACHE"] = "0"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        data = folder_of(given.images, Path(folder))
        COUNT[0] = len(data)
        memory = TensorDataset(torch.stack([data[index][0] for index in range(len(data))]), torch.tensor(data.targets))
        evaluate(memory, given.methods, 0, width=given.width)  # to warm up
        decode, decode_cpu = seconds(lambda: [data.pixels(index) for index in range(len(data))])
        compute, compute_cpu = seconds(lambda: evaluate(memory, given.methods, 0, width=given.width))
        (here, _), (ahead, ahead_cpu) = (
            seconds(lambda n=n: evaluate("image_folder", given.methods, n, width=given.width)) for n in (0, given.workers)
        )
        size = sum(file.stat().st_size for file in Path(folder).rglob("test/*/*.jpg")) / len(data) / 1e3
        print(f"{len(data)} JPEGs of {SIZE[0]} x {SIZE[1]} pixels, {size:.0f} kB each; {', '.join(given.methods)}; {os.cpu_count()} cores")
        print(f"decode alone {decode:.1f} s, compute alone {compute:.1f} s")
        print(f"run, read in this process {here:.1f} s; read ahead by {given.workers} process(es) {ahead:.1f} s")
        whole, longer = decode + compute, max(decode, compute)
        print(f"read ahead: {ahead / longer:.2f} of the longer (goal <= {GOAL}), {ahead / whole:.2f} of the sum")
        print(f"CPU time: decode {decode_cpu:.1f} s, compute {compute_cpu:.1f} s, read ahead {ahead_cpu:.1f} s in this process: "
              f"{ahead_cpu / max(decode_cpu, compute_cpu):.2f} of the longer")  # fmt: skip
        reads: list[int] = []
        counted, read = type(data).pixels, lambda self, index, *more: (reads.append(index), counted(self, index, *more))[1]
        ImageDataset.pixels = read
        evaluate("image_folder", given.methods[:1], 0, models=2, seeds=2)
        print(f"two models and two seeds: {len(reads)} files read for {len(data)} images")


if __name__ == "__main__":
    main()
