"""The recipe of the paper."""

import json
from pathlib import Path

import pytest
import torch

from idsds.training.recipes import PAPER
from idsds.training.steps import make_optimizer, make_scheduler
from tests.training.nets import Tiny


def test_the_papers_recipe():
    recipe = json.loads((Path(__file__).resolve().parents[1] / "data" / "recipe.json").read_text())
    optimizer = make_optimizer(Tiny(), PAPER)
    (group,) = optimizer.param_groups
    assert type(optimizer) is torch.optim.SGD
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (recipe["momentum"], recipe["weight_decay"], recipe["nesterov"])
    assert (PAPER.epochs, PAPER.batch_size, PAPER.clip) == (recipe["epochs"], recipe["batch_size"], 0)
    scheduler, rates = make_scheduler(optimizer, PAPER, steps=2), []
    for _ in range(PAPER.epochs):
        rates.append(group["lr"])
        optimizer.step()
        scheduler.step()
    wanted = [rate for decade in recipe["schedule"]["lr_by_epoch"].values() for rate in [decade] * 10]
    assert rates == pytest.approx(wanted, rel=1e-12)
