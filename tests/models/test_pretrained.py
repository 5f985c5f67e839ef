"""Nets of torchvision and their published weights."""

import pytest
import torch
import torchvision

from idsds.models import create_model
from tests.models.golden import filled


@pytest.mark.parametrize("num_classes", [1000, 5])
@pytest.mark.parametrize("name", ["resnet18", "densenet121", "efficientnet_b0"])
def test_published_weights_of_torchvision(name, num_classes, monkeypatch):
    published = filled(torchvision.models.get_model(name).state_dict())
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", lambda url, **_: published)
    state = create_model(name, num_classes=num_classes, pretrained=True).state_dict()
    head = [key for key in state if key.startswith(("fc.", "classifier."))]
    for key in published:
        if key in head and num_classes != 1000:
            assert state[key].shape[0] == num_classes
        else:
            assert torch.equal(state[key], published[key]), key


@pytest.mark.parametrize("name", sorted({"resnet50", "resnet101", "resnet152", "wide_resnet50_2", "vgg13", "vgg16", "vgg19", "vgg16_bn"}))
def test_the_others_are_torchvisions_own_nets(name):
    with torch.device("meta"):
        ours, theirs = create_model(name), torchvision.models.get_model(name)
    assert type(ours) is type(theirs)
    assert repr(ours) == repr(theirs)
