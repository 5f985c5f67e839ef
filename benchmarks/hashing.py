"""What hashing and checking take of an evaluation of ResNet-18: fractions of the seconds of one run.

python benchmarks/hashing.py [--images 48] [--cpu]

Seconds are of the wall's clock, or with --cpu of the CPU, which other work on the machine changes little; those do not hold the time that
is spent waiting for the disk.

"files" are all hashes of weights, blocks and records and what is compared when they are read; "commit" writes the run's files and its
manifest; "addresses" is what it takes to say by what each number is determined.
"""

import argparse
import contextlib
import functools
import os
import tempfile
import time
import warnings
from pathlib import Path
from unittest.mock import patch

import torch
from torch.utils.data import TensorDataset

import idsds
import idsds.evaluation.evaluate
from idsds.evaluation import cache, job, plan, records
from idsds.models import create_model, weights

PARTS = {
    "files": [(weights, "check_content"), (job, "file_digest"), (cache, "write_hashed"), (cache, "read_hashed"), (records, "_checked")],
    "commit": [(idsds.evaluation.evaluate, "commit")],
    "addresses": [(plan.Plan, "address"), (job.Job, "images")],
}
_inside: list[str] = []
_clock = {"now": time.perf_counter}


def timed(part, function, seconds):
    """The function, whose seconds are added to its part, but for those within another part."""

    @functools.wraps(function)
    def call(*arguments, **options):
        _inside.append(part)
        begun = _clock["now"]()
        try:
            return function(*arguments, **options)
        finally:
            took = _clock["now"]() - begun
            _inside.pop()
            seconds[part] += took
            if _inside:
                seconds[_inside[-1]] -= took

    return call


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--cpu", action="store_true")
    asked = parser.parse_args()
    images = asked.images
    if asked.cpu:
        _clock["now"] = time.process_time
    seconds = dict.fromkeys(PARTS, 0.0)
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stack.enter_context(patch.dict(os.environ, {"IDSDS_CACHE": f"{place}/cache", "IDSDS_RECORD_CACHE": "1"}))
        file = weights.save_checkpoint(create_model("resnet18"), Path(place) / "resnet18.safetensors")
        for part, functions in PARTS.items():
            for where, name in functions:
                stack.enter_context(patch.object(where, name, timed(part, getattr(where, name), seconds)))
        data = TensorDataset(torch.randn(images, 3, 224, 224), torch.arange(images))
        arguments = {"methods": ["IxG", "Grad-CAM", "Random"], "dataset": data, "checkpoints": {"resnet18": file}, "progress": False}
        begun = _clock["now"]()
        idsds.evaluate(["resnet18"], images=images, output=Path(place) / "run", **arguments)
        took = _clock["now"]() - begun
    print(f"{images} images: {took:.1f} s")
    for part, value in seconds.items():
        print(f"{part:10} {value:6.2f} s   {100 * value / took:5.2f} %")


if __name__ == "__main__":
    main()
