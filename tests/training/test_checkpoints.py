import pytest

from idsds.training.checkpoints import plan_training, published
from idsds.training.recipes import DISTILL, PAPER, Deletion


def test_the_blur_is_part_of_the_address():
    keys = {plan_training("mini_resnet8", "mnist5k", Deletion(baseline=name)).key for name in ("blur", "blur 25 4.5", "blur 25 5")}
    assert len(keys) == 3
    with pytest.raises(ValueError, match="odd kernel of at least 3"):
        Deletion(baseline="blur 24 4.5")


def test_checkpoints_of_labelled_recipes_keep_their_addresses():
    assert "loss" not in PAPER.address
    assert DISTILL.address["loss"] == "distill"
    labelled = plan_training("squeezenet1_1", "photos20", weights="pretrained", changes={"loss": "labels"})
    distilled = plan_training("squeezenet1_1", "photos20", weights="pretrained")
    assert distilled.recipe == DISTILL, "the photos are too few to learn their labels"
    assert labelled.key != distilled.key


def test_published_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="know 1000 classes, but 'mnist5k' has 10"):
        published("resnet50", "mnist5k")
    with pytest.raises(ValueError, match="no weights of 'bagnet33' are published"):
        published("bagnet33", "photos20")
    assert published("resnet50", "photos20").missing == []  # a plan downloads nothing
