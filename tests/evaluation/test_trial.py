"""What the user's code may do wrong without an error: it is said, and where possible put right."""

from __future__ import annotations

import warnings

import captum.attr
import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import idsds
from idsds.evaluation.trial import one_by_one
from idsds.methods.base import MethodError, shared_maps
from idsds.protocols.base import on_model
from tests.evaluation.linear import Linear

PIXELS = torch.randn(8, 3, 8, 16, generator=torch.Generator().manual_seed(1))
torch.manual_seed(0)
NET = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))


LABELLED = torch.utils.data.TensorDataset(PIXELS, torch.arange(8) % 4)


def scores(methods: dict, net: nn.Module = NET, data: object = LABELLED, **more: object) -> pd.Series:
    records = idsds.evaluate({"net": net}, methods, data, **{"images": 8, "protocol": "single_deletion", "progress": False} | more)
    return records.set_index(["method", "image_id"]).score


def gradient(images: Tensor, targets: Tensor) -> Tensor:
    images.requires_grad_()
    return torch.autograd.grad(NET(images).gather(1, targets[:, None]).sum(), images)[0] * images.detach()


def of_all_targets(images: Tensor, targets: Tensor) -> Tensor:
    images.requires_grad_()
    return torch.autograd.grad(NET(images)[:, targets].sum(), images)[0] * images.detach()


def of_the_first(images: Tensor, targets: Tensor) -> Tensor:
    return gradient(images[:1], targets[:1]).expand_as(images)


@pytest.mark.parametrize("method", [of_all_targets, of_the_first])
def test_a_method_that_depends_on_the_batch_gets_one_image_at_a_time(method):
    with pytest.warns(UserWarning, match="method 'mine' is batch-dependent"):
        found = scores({"mine": method})
    assert np.allclose(found["mine"], scores({"IxG": None})["IxG"], atol=1e-6)


def test_a_registered_method_of_the_users_is_tried_too(monkeypatch):
    monkeypatch.setattr(idsds.methods.METHODS, "_entries", dict(idsds.methods.METHODS._entries), raising=False)
    idsds.register_method("of all targets", replace=True)(lambda model, images, targets: of_all_targets(images.clone(), targets))
    with pytest.warns(UserWarning, match="'of all targets abs' is batch-dependent"):
        found = scores({"of all targets abs": None})
    assert np.allclose(found["of all targets abs"], scores({"IxG abs": None})["IxG abs"], atol=1e-6)


def test_one_image_at_a_time_explains_other_nets_too(monkeypatch):
    """Randomised copies, other options and maps by channel are those of the method, not of the net that it was tried on."""
    monkeypatch.setattr(idsds.methods.METHODS, "_entries", dict(idsds.methods.METHODS._entries), raising=False)

    @idsds.register_method("mean loss", family="gradient", replace=True)
    def mean_loss(model, images, targets):
        images = images.clone().requires_grad_()
        loss = model(images).gather(1, targets[:, None]).sum() / len(images)
        return torch.autograd.grad(loss, images)[0]

    method = idsds.create_method("mean loss", NET)
    single = one_by_one(method)
    targets = torch.arange(4)
    assert torch.allclose(single(PIXELS[:4], targets), 4 * method(PIXELS[:4], targets), atol=1e-6)
    other = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))
    wanted = idsds.create_method("Gradient", other)(PIXELS[:4], targets)
    assert torch.allclose(on_model(single, other)(PIXELS[:4], targets), wanted, atol=1e-6)
    each = shared_maps([single], PIXELS[:4], targets, channels="each")["mean loss"]
    assert each.shape == PIXELS[:4].shape


def over_the_largest(images: Tensor, targets: Tensor) -> Tensor:
    maps = gradient(images, targets)
    return maps / maps.abs().max()


def test_every_image_of_the_trial_is_compared():
    """The map that has the largest value of the batch is the same alone and in the batch."""
    with pytest.warns(UserWarning, match="method 'mine' is batch-dependent"):
        scores({"mine": over_the_largest})
    flipped = torch.utils.data.TensorDataset(PIXELS[[1, 0, 2, 3, 4, 5, 6, 7]], torch.arange(8) % 4)
    with pytest.warns(UserWarning, match="method 'mine' is batch-dependent"):
        scores({"mine": over_the_largest}, data=flipped)


def test_a_map_that_lacks_the_batch_for_one_image_is_still_scored():
    found = scores({"mine": lambda images, targets: gradient(images, targets).sum(1).squeeze()})
    assert np.allclose(found["mine"], scores({"IxG": None})["IxG"], atol=1e-6)


def test_random_numbers_of_its_own_are_said_and_change_nothing_else():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    with pytest.warns(UserWarning, match="gives another map of the same image in every call"):
        scores({"mine": lambda images, targets: torch.rand(len(images), 8, 16)}, images=1, batch_size=8)
    torch.set_rng_state(state)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores({"mine": gradient, "IxG": None, "Random": None})


def test_a_function_that_a_method_replaces_for_all_is_noticed(monkeypatch):
    monkeypatch.setattr(nn.ReLU, "forward", nn.ReLU.forward)  # restored afterwards

    def replaces(images: Tensor, targets: Tensor) -> Tensor:
        nn.ReLU.forward = lambda self, values: values.tanh()
        return gradient(images, targets)

    with pytest.raises(MethodError, match="method 'mine' changes what 'net' computes"):
        scores({"mine": replaces, "IxG": None})


def test_guided_gradients_left_behind_are_noticed(monkeypatch):
    """The logits stay the same; only the gradients of later methods would change."""

    class Guided(torch.autograd.Function):
        @staticmethod
        def forward(ctx, values):
            ctx.save_for_backward(values)
            return values.relu()

        @staticmethod
        def backward(ctx, gradient):
            return gradient.relu() * (ctx.saved_tensors[0] > 0)

    monkeypatch.setattr(nn.ReLU, "forward", nn.ReLU.forward)

    def guided(images: Tensor, targets: Tensor) -> Tensor:
        nn.ReLU.forward = lambda self, values: Guided.apply(values)
        return gradient(images, targets)

    with pytest.raises(MethodError, match="method 'mine' changes what 'net' computes"):
        scores({"mine": guided, "IxG": None})


class _Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = NET

    def forward(self, images: Tensor) -> Tensor:
        return self.parts[3](self.parts[2](torch.relu(self.parts[0](images))))


@pytest.mark.parametrize("kind", ["DeepLift", "GuidedBackprop"])
def test_captums_objects_that_miss_functions_are_named(kind):
    net = _Functional()
    with pytest.warns(UserWarning, match=f"captum's {kind} hooks modules, and misses the function 'relu' that model 'net' calls"):
        scores({"mine": getattr(captum.attr, kind)(net)}, net)


def test_the_softmax_of_probabilities_is_refused():
    with pytest.raises(ValueError, match="quantity='probability' is the softmax of logits, but model 'net' returns probabilities"):
        scores({"IxG": None}, nn.Sequential(NET, nn.Softmax(1)), quantity="probability")


def _occlusion(images: Tensor, targets: Tensor) -> Tensor:
    maps = torch.zeros(len(images), *images.shape[2:])
    for row in range(0, 8, 2):
        for column in range(0, 16, 4):
            kept = torch.ones(8, 16)
            kept[row : row + 2, column : column + 4] = 0
            drops = (NET(images) - NET(images * kept)).gather(1, targets[:, None])  # multiplied, so that some zeros are -0
            maps += drops[:, :, None] * (1 - kept)
    return maps.detach()


def test_a_function_that_queries_the_judging_deletions_is_named_and_may_say_so():
    with pytest.warns(UserWarning, match="method 'mine' queries the very deletions that it is judged by"):
        assert scores({"mine": _occlusion}).tolist() == pytest.approx([1] * 8)

    def says(images: Tensor, targets: Tensor) -> Tensor:
        return _occlusion(images, targets)

    says.queries = {"grid": 4, "baseline": "zeros"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores({"mine": _occlusion}, grid=2)
        records = idsds.evaluate({"net": NET}, {"says": says, "IxG": None}, LABELLED, protocol="single_deletion", progress=False)
    assert records.groupby("method")["ceiling"].all().to_dict() == {"IxG": False, "says": True}


class _Autocast(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return NET(images)


def test_logits_of_half_precision_are_doubted():
    with pytest.warns(UserWarning, match="model 'net' returns bfloat16: small drops are lost in rounding"):
        scores({"Random": None}, _Autocast())


class _SameMemory(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        logits = NET(images)
        if not torch.is_grad_enabled():
            self.last = self.last.copy_(logits) if getattr(self, "last", logits[:0]).shape == logits.shape else logits
            return self.last
        return logits


def test_a_net_that_overwrites_its_last_result_is_refused():
    with pytest.raises(ValueError, match="model 'net' returns the same memory in every call"):
        scores({"IxG": None}, _SameMemory())


def test_percentages_are_probabilities():
    class Percent(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return 100 * NET(images).softmax(1)

    with pytest.warns(UserWarning, match="model 'net' returns probabilities, not logits"):
        scores({"IxG": None}, Percent())


class _Images(torch.utils.data.Dataset):
    def __init__(self, read: object) -> None:
        self.read = read

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.read(index), index % 4


def test_images_that_share_their_memory_are_told_apart():
    buffer = torch.empty(3, 8, 16)
    own, shared = (scores({"IxG": None}, Linear(), _Images(read)) for read in (PIXELS.__getitem__, lambda i: buffer.copy_(PIXELS[i])))
    assert own.tolist() == shared.tolist()


def test_random_augmentations_are_refused():
    with pytest.raises(ValueError, match="another one at every access: leave out random augmentations"):
        scores({"IxG": None}, Linear(), _Images(lambda index: torch.randn(3, 8, 16)))
