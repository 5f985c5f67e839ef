"""What runs on a net reaches nobody else, and the net comes back as it was."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import idsds
from idsds.methods import as_method, create_method
from idsds.methods.base import MethodError
from idsds.models.base import frozen
from idsds.models.isolation import on_loan

COUNT = 6


def own_data() -> TensorDataset:
    return TensorDataset(torch.rand(COUNT, 3, 16, 16, generator=torch.Generator().manual_seed(3)), torch.arange(COUNT) % 4)


def net() -> nn.Sequential:
    torch.manual_seed(5)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(96, 4)]
    return nn.Sequential(*layers)


def state(model: nn.Module) -> list[object]:
    """Everything that is seen of a net from outside."""
    tensors = [
        (name, id(t), t.data_ptr(), t.dtype, t.stride(), t.requires_grad, t.clone().tolist(), t.grad is None or t.grad.tolist())
        for name, t in model.state_dict(keep_vars=True).items()
    ]
    modules = [
        (name, id(m), m.training, dict(m._forward_hooks), dict(m._forward_pre_hooks), dict(m._backward_hooks), sorted(vars(m)))
        for name, m in model.named_modules()
    ]
    return [tensors, modules]


def scores(model: nn.Module, methods: dict[str, object], **settings: object) -> dict[str, list[float]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        records = idsds.evaluate(
            {"net": model}, methods, own_data(), protocol="single_deletion", images=COUNT, grid=2, progress=False, **settings
        )
    return {name: rows.sort_values("image_id").score.tolist() for name, rows in records.groupby("method")}


def writes_into_the_images(model: nn.Module):
    def explain(images: Tensor, targets: Tensor) -> Tensor:
        targets.zero_()
        return images.sub_(images.mean()).clamp_(-0.1, 0.1).abs_()

    return explain


def writes_into_the_weights(model: nn.Module):
    def explain(images: Tensor, targets: Tensor) -> Tensor:
        with torch.no_grad():
            model[0].weight.mul_(-1)
            model[1].running_mean.add_(3)
            model[6].bias.data += 5
        return images

    return explain


def rebuilds(model: nn.Module):
    def explain(images: Tensor, targets: Tensor) -> Tensor:
        model[2] = nn.GELU()
        model[6].weight = nn.Parameter(torch.zeros(4, 96))
        model.register_buffer("mark", torch.ones(1))
        model[0].forward = lambda x: torch.zeros(len(x), 6, 16, 16)
        return images

    return explain


def changes_modes(model: nn.Module):
    def explain(images: Tensor, targets: Tensor) -> Tensor:
        model.train().requires_grad_(False).double()
        model.to(memory_format=torch.contiguous_format)
        torch.set_grad_enabled(False)
        return images

    return explain


def leaves_hooks_and_gradients(model: nn.Module):
    def explain(images: Tensor, targets: Tensor) -> Tensor:
        model[0].register_forward_hook(lambda _module, _inputs, output: 0 * output)
        model.register_forward_pre_hook(lambda _module, inputs: (inputs[0] + 1,))
        model[6].register_full_backward_hook(lambda *_: None)
        model(images).sum().backward()
        return images

    return explain


def raises(model: nn.Module):
    def explain(images: Tensor, targets: Tensor) -> Tensor:
        writes_into_the_weights(model)(images, targets)
        leaves_hooks_and_gradients(model)(images, targets)
        raise KeyError("on purpose")

    return explain


KINDS = [writes_into_the_images, writes_into_the_weights, rebuilds, changes_modes, leaves_hooks_and_gradients, raises]


@pytest.mark.parametrize("kind", KINDS)
def test_a_method_changes_nothing_for_others_nor_for_the_net(kind) -> None:
    alone = scores(net(), {"IxG": None, "other": lambda images, targets: images**2})
    model = net().train()
    model[1].eval()
    model[6].weight.grad = torch.ones_like(model[6].weight)
    model[0].bias.requires_grad_(False)
    model[2].register_forward_hook(lambda *_: None)
    before, data = state(model), own_data().tensors[0]
    methods = {"mine": kind(model), "other": lambda images, targets: images**2, "IxG": None}
    if kind is raises:
        with pytest.raises(MethodError, match=r"method 'mine' on 'net' raised KeyError for the images \d, .*: 'on purpose'"):
            scores(model, methods)
    else:
        found = scores(model, methods, batch_size=2)
        assert {name: found[name] for name in alone} == {name: pytest.approx(values, abs=1e-6) for name, values in alone.items()}
    assert state(model) == before
    assert torch.is_grad_enabled()
    assert torch.equal(data, own_data().tensors[0])


def test_changed_weights_are_said() -> None:
    model = net()
    with pytest.warns(RuntimeWarning, match="method 'mine' changed 3 of 9 weights and buffers of the net that it explains"):
        as_method("mine", writes_into_the_weights(model), model)(*own_data().tensors)


def test_the_registrys_methods_are_safe_from_one_that_is_registered() -> None:
    @idsds.register_method("Writes", replace=True)
    def writes(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        model[6].weight.data.zero_()
        return images.zero_() + 1

    try:
        alone = scores(net(), {"IxG": None})
        assert scores(net(), {"Writes": None, "IxG": None})["IxG"] == pytest.approx(alone["IxG"], abs=1e-6)
    finally:
        idsds.methods.METHODS.remove("Writes")


def test_a_method_that_adds_its_hook_on_its_first_call_finds_it_on_the_next() -> None:
    model, kept = net(), {}

    def explain(images: Tensor, targets: Tensor) -> Tensor:
        if not kept:
            model[0].register_forward_hook(lambda _module, _inputs, output: kept.update(features=output.detach()))
        model(images)
        return kept["features"].sum(dim=1)

    reference = lambda images, targets: model[0](images).sum(dim=1)  # noqa: E731
    before = state(model)
    found = scores(model, {"lazy": explain, "right": reference}, batch_size=2)
    assert found["lazy"] == pytest.approx(found["right"], abs=1e-6)
    assert state(model) == before


def test_a_net_that_counts_its_calls_comes_back_with_its_count() -> None:
    class Counted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.calls = net().eval(), 0
            self.register_buffer("seen", torch.zeros(1))

        def forward(self, images: Tensor) -> Tensor:
            self.calls += 1
            self.seen += len(images)
            return self.net(images)

    model = Counted()
    scores(model, {"IxG": None})
    assert (model.calls, model.seen.item()) == (0, 0)


def test_inputs_are_copies_inside_a_frozen_net_of_the_users() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net().eval()

        def forward(self, images: Tensor) -> Tensor:
            return self.net(images.mul_(2))

    model, (images, targets) = Writes(), own_data().tensors
    before = images.clone()
    maps = create_method("IxG", model)(images, targets)
    assert torch.equal(images, before)
    assert torch.allclose(maps, create_method("IxG", model.net)(2 * images, targets), atol=1e-6)
    with frozen(model), frozen(model):
        model(images)
    assert torch.equal(images, before)
    assert not model._forward_pre_hooks


@pytest.mark.parametrize("fails", [False, True])
def test_a_loan_ends_with_the_net_as_it_was(fails: bool) -> None:
    model = net().half()
    before = state(model)
    with pytest.raises(ZeroDivisionError) if fails else warnings.catch_warnings(), on_loan(model, "cpu", torch.channels_last) as lent:
        assert lent is model
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        model[0].weight.data.zero_()
        model[3] = nn.Identity()
        if fails:
            1 / 0  # noqa: B018
    assert state(model) == before
