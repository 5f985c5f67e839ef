"""A net as a graph of modules: the same logits, a module for each call, the net itself as it was."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import idsds
from idsds.methods import graphs
from tests.methods.nets import MINI, ConvNet, images_of, mini, seeded


def is_relu(kind: type) -> bool:
    return issubclass(kind, nn.ReLU)


class Sum(nn.Module):
    def forward(self, stacked: Tensor) -> Tensor:
        return stacked.sum(dim=-1)


TRACEABLE = [name for name in MINI if name != "mini_bcos"]


@pytest.mark.parametrize("name", TRACEABLE)
def test_a_graph_gives_the_nets_logits_and_has_a_module_for_each_call(name: str) -> None:
    model = mini(name)
    before = {key: type(module) for key, module in model.named_modules()}
    graph = graphs.separate(model, is_relu, Sum)
    images = images_of(2, 32, 32)
    assert torch.allclose(graph(images), model(images), rtol=1e-12)
    called = [node.target for node in graph.graph.nodes if node.op == "call_module" and is_relu(type(graph.get_submodule(node.target)))]
    assert len(called) == len(set(called))
    assert not any(graph.get_submodule(target).inplace for target in called)
    assert {key: type(module) for key, module in model.named_modules()} == before
    assert {id(p) for p in graph.parameters()} <= {id(p) for p in model.parameters()}


@pytest.mark.parametrize("relu", ["module", "in place", "functional"])
def test_reused_functional_and_in_place_relus_become_modules(relu: str) -> None:
    model = seeded(ConvNet, relu=relu)
    graph = graphs.separate(model, is_relu)
    assert sum(isinstance(module, nn.ReLU) for key, module in graph.named_modules() if key.startswith("separate")) == 2
    assert torch.equal(graph(images_of(2, 6, 8)), model(images_of(2, 6, 8)))


class ReadAgain(nn.Module):
    """Reads a tensor after it was rectified in place."""

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * x
        F.relu(x, inplace=True)
        return x.flatten(1) + F.relu_(x.flatten(1) - 1)


def test_what_a_relu_in_place_leaves_behind_is_read_by_what_follows() -> None:
    x = torch.linspace(-2, 2, 24).view(2, 3, 2, 2)
    assert torch.equal(graphs.separate(ReadAgain(), is_relu)(x), ReadAgain()(x))


class Data(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_a_net_that_cannot_be_traced_says_why() -> None:
    with pytest.raises(graphs.NotTraceableError, match=r"cannot write this net as a graph.*control flow"):
        graphs.separate(Data(), is_relu)


def test_a_graph_is_made_anew_when_the_net_has_another_layer() -> None:
    model = seeded(ConvNet)
    first = graphs.separate(model, is_relu)
    assert graphs.separate(model, is_relu) is first
    model.fc = seeded(nn.Linear, 8, 4, seed=3)
    images = images_of(2, 6, 8)
    assert torch.equal(graphs.separate(model, is_relu)(images), model(images))
    with torch.no_grad():
        model.fc.weight.mul_(2)  # weights are shared
    assert torch.equal(graphs.separate(model, is_relu)(images), model(images))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mini_resnet8", None),
        ("mini_densenet", None),
        ("mini_efficientnet", "products of activations"),
        ("mini_vit", "layer_norm"),
    ],
)
def test_what_rules_for_relus_and_pooling_leave_out(name: str, reason: str | None) -> None:
    found = graphs.unruled(mini(name), _relu_pool_or_gate)
    assert found is None if reason is None else reason in found


def _relu_pool_or_gate(kind: type) -> bool:
    return kind in (nn.ReLU, nn.MaxPool2d, nn.SiLU, nn.Sigmoid)


def test_hooks_on_the_net_see_the_graph() -> None:
    model, seen = seeded(ConvNet), []
    graph = graphs.separate(model, is_relu)
    handle = model.register_forward_hook(lambda _module, _inputs, output: seen.append(len(output)))
    graph(images_of(2, 6, 8))
    handle.remove()
    graph(images_of(2, 6, 8))
    assert seen == [2]


@pytest.mark.parametrize("name", ["timm/regnetx_002", "timm/densenet121", "timm/resnetv2_18"])
def test_batch_norms_with_an_activation_are_two_modules(name: str) -> None:
    """DeepLIFT and LRP then have rules for these nets, and DeepLIFT's attributions sum to the change of the logit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = idsds.create_model(name, num_classes=3)
        images = torch.randn(2, 3, 32, 32)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    graph = graphs.trace(net)
    torch.testing.assert_close(graph(images), net(images))
    called = {type(graph.get_submodule(node.target)).__name__ for node in graph.graph.nodes if node.op == "call_module"}
    assert {"BatchNorm2d", "ReLU"} <= called
    assert "BatchNormAct2d" not in called
    targets = torch.tensor([0, 2])
    with torch.no_grad():
        moved = (net(images) - net(torch.zeros_like(images))).gather(1, targets[:, None])[:, 0]
    if name == "timm/regnetx_002":  # the others have max pooling, for which captum's rule is not exact
        maps = idsds.create_method("DeepLIFT", net)(images, targets)
        torch.testing.assert_close(maps.sum(dim=(1, 2, 3)), moved, rtol=1e-3, atol=1e-4)
    relevance = idsds.create_method("LRP", net)(images, targets)
    assert relevance.isfinite().all()
    assert relevance.flatten(1).any(dim=1).all()
    after = net.state_dict()
    assert all(torch.equal(value, after[key]) for key, value in before.items())
