"""What importing costs beyond torch and torchvision: medians of fresh processes, in turn.

python benchmarks/imports.py [--runs 5]
"""

import argparse
import statistics
import subprocess
import sys
import time

BASE = "import torch, torchvision"
CASES = {
    "torch and torchvision": BASE,
    "import idsds": f"{BASE}, idsds",
    "all public names": f"{BASE}, idsds; [getattr(idsds, name) for name in idsds.__all__]",
    "a study": f"{BASE}; from idsds.studies.rank_methods import RankMethods",
}


def seconds(code: str) -> float:
    begun = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    times = {name: [] for name in CASES}
    for _ in range(runs + 1):  # the first fills the disk's cache
        for name, code in CASES.items():
            times[name].append(seconds(code))
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:24} {median:6.2f} s   beyond torch and torchvision {median - medians['torch and torchvision']:+6.2f} s")


if __name__ == "__main__":
    main()
