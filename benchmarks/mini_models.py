"""Train every mini_* net: how long it takes, and accuracy and top-5 accuracy on the test split before and after it is
fine-tuned in-domain.

python benchmarks/mini_models.py                       # all of them, what is cached is not trained again
python benchmarks/mini_models.py mini_vit mini_bcos
python benchmarks/mini_models.py --dataset sprites --no-tuning
"""

from __future__ import annotations

import argparse
from typing import Any

from torch.utils.data import DataLoader

from idsds.common.files import read_json
from idsds.datasets import collate
from idsds.models import list_models
from idsds.training.checkpoints import Stage, obtain, plan_training
from idsds.training.predict import accuracy
from idsds.training.recipes import Deletion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=[name for name in list_models() if name.startswith("mini_")])
    parser.add_argument("--dataset", default="mnist5k")
    parser.add_argument("--no-tuning", action="store_true", help="train only")
    options = parser.parse_args()
    columns = ["model", "parameters", "training, s", "accuracy (top-5)"]
    columns += [] if options.no_tuning else ["fine-tuning, s", "accuracy after it", "with one patch deleted"]
    print("|", " | ".join(columns), "|")
    print("|" + "---|" * len(columns))
    for name in options.models:
        tuned = plan_training(name, options.dataset)
        test = DataLoader(tuned.split("test"), 250, collate_fn=collate)
        net = obtain(tuned.start, progress=False)
        parameters = sum(parameter.numel() for parameter in net.parameters())
        cells = [name, f"{parameters:,}", seconds(tuned.start), both(net, test)]
        if not options.no_tuning:
            after = obtain(tuned, progress=False)
            cells += [seconds(tuned), both(after, test), both(after, test, Deletion())]
        print("|", " | ".join(cells), "|", flush=True)


def both(*arguments: Any) -> str:
    """Return top-1 and top-5 accuracy."""
    top1, _, top5 = accuracy(*arguments)
    return f"{top1:.3f} ({top5:.3f})"


def seconds(stage: Stage) -> str:
    """Return how long a stage took."""
    return f"{read_json(stage.path.with_suffix('.json'))['seconds']:.0f}"


if __name__ == "__main__":
    main()
