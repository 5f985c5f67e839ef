"""In-domain fine-tuning without labels."""

import copy

import pytest
import torch
import torch.nn.functional as F

from idsds.datasets import create_dataset
from idsds.datasets.base import first
from idsds.models import create_model
from idsds.training.checkpoints import plan_training
from idsds.training.loop import fit
from idsds.training.recipes import DISTILL, PAPER, Deletion, Recipe
from idsds.training.steps import loss_of


def test_the_loss_is_the_divergence_of_the_probabilities():
    logits, teacher = torch.randn(3, 5, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64).softmax(1)
    by_hand = sum(float((p * (p / q).log()).sum()) for p, q in zip(teacher, logits.softmax(1), strict=True)) / 3
    assert loss_of(logits, teacher, "distill").item() == pytest.approx(by_hand, rel=1e-12)


@pytest.fixture(scope="module")
def digits():
    return first(create_dataset("mnist5k", "train"), 192), first(create_dataset("mnist5k", "val"), 64)


def test_no_label_is_used_and_the_net_with_a_hole_comes_closer_to_what_it_said(digits):
    train, val = digits
    torch.manual_seed(0)
    net = create_model("mini_resnet8")
    fit(net, train, val, Recipe(epochs=2, batch_size=32), progress=False)
    before = copy.deepcopy(net)
    recipe, deletion = Recipe(epochs=3, batch_size=32, lr=1e-3, loss="distill"), Deletion(grid=4)
    fit(net, train, val, recipe, deletion=deletion, progress=False)
    other = copy.deepcopy(before)
    shuffled = [copy.copy(part) for part in digits]
    for part in shuffled:
        part.targets = [(target + 3) % 10 for target in part.targets]
    fit(other, *shuffled, recipe, deletion=deletion, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))

    images = torch.stack([val[index][0] for index in range(len(val))])
    holed = images.clone()
    holed[:, :, 8:16, 8:16] = 0
    with torch.no_grad():
        said = before(images).softmax(1)
        divergence = [float(F.kl_div(F.log_softmax(model(holed), 1), said, reduction="batchmean")) for model in (before, net)]
        agree = (net(images).argmax(1) == said.argmax(1)).float().mean()
    assert divergence[1] < divergence[0]
    assert agree > 0.9


def test_checkpoints_of_labelled_recipes_keep_their_addresses():
    assert "loss" not in PAPER.address
    assert DISTILL.address["loss"] == "distill"
    labelled = plan_training("squeezenet1_1", "photos20", weights="pretrained", changes={"loss": "labels"})
    distilled = plan_training("squeezenet1_1", "photos20", weights="pretrained")
    assert distilled.recipe == DISTILL, "the photos are too few to learn their labels"
    assert labelled.key != distilled.key
