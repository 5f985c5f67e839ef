"""Train every mini_* net on mnist5k: how long it takes, and the accuracy on the test split before and after in-domain fine-tuning.

python benchmarks/mini_models.py                       # all of them, what is cached is not trained again
python benchmarks/mini_models.py mini_vit mini_bcos
"""

from __future__ import annotations

import argparse

from torch.utils.data import DataLoader

from idsds.common.files import read_json
from idsds.datasets import collate
from idsds.models import list_models
from idsds.training.checkpoints import obtain, plan_training
from idsds.training.predict import accuracy
from idsds.training.recipes import Deletion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=[name for name in list_models() if name.startswith("mini_")])
    print("| model | parameters | training, s | accuracy | fine-tuning, s | accuracy after it | with one patch deleted |")
    print("|---|---|---|---|---|---|---|")
    for name in parser.parse_args().models:
        tuned = plan_training(name, "mnist5k")
        test = DataLoader(tuned.split("test"), 250, collate_fn=collate)
        after = obtain(tuned, progress=False)
        before = obtain(tuned.start, progress=False)
        seconds = [read_json(stage.path.with_suffix(".json"))["seconds"] for stage in (tuned.start, tuned)]
        accuracies = [accuracy(before, test)[0], accuracy(after, test)[0], accuracy(after, test, Deletion())[0]]
        parameters = sum(parameter.numel() for parameter in after.parameters())
        training, tuning = seconds
        first, intact, deleted = accuracies
        print(f"| {name} | {parameters:,} | {training:.0f} | {first:.3f} | {tuning:.0f} | {intact:.3f} | {deleted:.3f} |", flush=True)


if __name__ == "__main__":
    main()
