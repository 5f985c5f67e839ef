"""Peak memory of an evaluation against the number of images and of methods.

    python benchmarks/memory.py [--few 256] [--many 4096] [--model mini_resnet8]

Each figure is the peak resident memory of a process of its own that evaluates so many images of the training split of mnist5k. Goals: the
peaks for few and for many images within 5 % of each other, and those for two and for eight methods.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

GOAL = 1.05
FEW = ["IxG", "Random"]
MORE = [*FEW, "Gradient", "IxG abs", "Grad-CAM", "Layer-CAM", "Edges", "Center"]
CODE = """
import resource, sys
import torch, idsds
from idsds.models.weights import save_checkpoint
folder, model, images, *methods = sys.argv[1:]
torch.manual_seed(0)
save_checkpoint(idsds.create_model(model), folder + "/weights.safetensors")
records = idsds.evaluate([model], methods, "mnist5k", "single_deletion", int(images), split="train",
                         checkpoints={model: folder + "/weights.safetensors"}, output=folder + "/run", progress=False)
assert len(records) == int(images) * len(methods)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(peak / (2**20 if sys.platform == "darwin" else 2**10))
"""


def peak(model: str, images: int, methods: list[str]) -> float:
    """Peak resident memory in MB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-W", "ignore", "-c", CODE, folder, model, str(images), *methods]
        environment = {**os.environ, "IDSDS_RECORD_CACHE": "0"}  # every evaluation is to do its work
        root = Path(__file__).resolve().parents[1]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=root, env=environment)
    return float(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--few", type=int, default=256)
    parser.add_argument("--many", type=int, default=4096)
    parser.add_argument("--model", default="mini_resnet8")
    arguments = parser.parse_args()
    base = peak(arguments.model, arguments.few, FEW)
    for what, images, methods in (("images", arguments.many, FEW), ("methods", arguments.few, MORE)):
        more = peak(arguments.model, images, methods)
        print(f"memory  {arguments.few} images, {len(FEW)} methods: {base:.0f} MB; {images} images, {len(methods)} methods: {more:.0f} MB")
        print(f"memory  {what}: ratio {more / base:.3f} (goal <= {GOAL})", flush=True)


if __name__ == "__main__":
    main()
