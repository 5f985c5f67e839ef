"""Which net a user's method explains: in whatever it is held, and in parts and wrappers of it."""

from __future__ import annotations

import functools

import captum.attr
import pytest
from torch import nn

from idsds.methods import create_method
from idsds.methods.binding import bound_elsewhere, has_rules, library_of, other_net
from tests.methods.nets import ConvNet, seeded


@pytest.fixture(scope="module")
def nets() -> list[nn.Module]:
    return [seeded(ConvNet, classes=classes) for classes in (3, 4)]


class Holder:
    def __init__(self, net: nn.Module) -> None:
        self.kept = {"nets": [net]}

    def __call__(self, images, targets):
        return self.kept["nets"][0](images)

    def method(self, images, targets):
        return self(images, targets)


def of_closure(net: nn.Module):
    return lambda images, targets: net(images)


def of_default(net: nn.Module):
    def explain(images, targets, net=net):
        return net(images)

    return explain


WAYS = {
    "closure": of_closure,
    "default": of_default,
    "partial": lambda net: functools.partial(lambda net, images, targets: net(images), net),
    "attribute": Holder,
    "bound method": lambda net: Holder(net).method,
    "wrapper": lambda net: functools.wraps(of_closure(net))(lambda images, targets: images),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_callable_that_holds_another_evaluated_net_explains_that_one(way: str, nets) -> None:
    own, other = nets
    assert bound_elsewhere(WAYS[way](own), own, [other]) is None
    assert bound_elsewhere(WAYS[way](other), own, [other]) == "it holds another evaluated net, a ConvNet, and not this one"
    assert bound_elsewhere(WAYS[way](other), own) is None, "a net that is not judged may serve any purpose"
    assert other_net(WAYS[way](other), own) is other
    assert other_net(WAYS[way](own), own) is None
    both = lambda images, targets: (WAYS[way](own), own(images), other(images))  # noqa: E731
    assert bound_elsewhere(both, own, [other]) is None


def test_an_object_of_a_library_explains_the_net_that_it_was_made_for(nets) -> None:
    own, other = nets
    for explain in (captum.attr.Saliency(other), captum.attr.Saliency(other.forward), captum.attr.Saliency(lambda x: other(x))):
        assert library_of(explain) == "captum"
        why = bound_elsewhere(lambda images, targets, explain=explain: explain.attribute(images, target=targets), own)
        assert why == "its captum object, Saliency, explains another net, a ConvNet"
    assert bound_elsewhere(captum.attr.Saliency(own), own) is None
    assert bound_elsewhere(captum.attr.LayerGradCam(own, own.conv2), own) is None
    assert bound_elsewhere(captum.attr.Saliency(nn.Sequential(own)), own) is None, "a wrapper of the net holds it"
    assert bound_elsewhere(create_method("IxG", own), own) is None
    assert bound_elsewhere(create_method("IxG", other), own) == "it was made for another net, a ConvNet"


def test_rules_end_at_the_logits(nets) -> None:
    net = nets[0]
    found = [has_rules(of_closure(getattr(captum.attr, name)(net))) for name in ("DeepLift", "DeepLiftShap", "LRP", "Saliency")]
    assert found == [True, True, True, False]
