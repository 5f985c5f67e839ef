"""A table of models: parameters, keys loaded from a file in the study's format, and the largest logit difference to the reference.

    python benchmarks/parity_models.py [model ...] > parity_models.md

Run from the repository root. The weights are deterministic (tests/models/golden.py). The reference's logits exist for six of the models. Of
the others, those of torchvision are its own classes, and Fixup's net is compared with the paper's equations in tests/models/test_fixup.py.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from idsds.models import create_model
from tests.models.golden import KEY_LISTS, LOGITS, golden_images, study_file, study_state, tolerance


def row(name: str, folder: Path) -> str:
    state = study_state(name)
    path = study_file(state, folder / f"{name}.pth.tar")
    model = create_model(name, checkpoint=path)  # strict: every key of the file found its place
    path.unlink()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    cells = [name, f"{parameters:,}", f"{len(state)} of {len(KEY_LISTS[name]['entries'])}"]
    if name in LOGITS:
        with torch.inference_mode():
            difference = (model(golden_images(name)) - LOGITS[name]).abs().max().item()
        cells += [f"{difference:.1e}", f"{tolerance(name):.1e}"]
    else:
        cells += ["no golden logits", ""]
    return f"| {' | '.join(cells)} |"


def main(names: list[str]) -> None:
    print("| model | parameters | keys loaded | largest logit difference | tolerance |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            print(row(name, Path(folder)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(KEY_LISTS))
