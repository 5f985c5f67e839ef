"""Every method on every mini model that it goes with: batched is one by one, the passes are as announced, nothing is left behind."""

from __future__ import annotations

import gc
import re
from functools import lru_cache

import pytest
import torch
from torch import Tensor, nn

from idsds.common.registry import UnknownNameError
from idsds.methods import FAMILIES, METHODS, create_method, list_methods, register_method, shared_maps, shared_passes, split_name
from idsds.models import describe
from tests.methods.nets import MINI, ConvNet, images_of, mini, seeded
from tests.methods.test_transformer import vit

# Few steps and samples: what is tested does not depend on their number.
SMALL = {"steps": 2, "samples": 2, "baseline_samples": 2, "n_samples": 4, "num_samples": 2, "x_steps": 2, "grid": 2}


@lru_cache(maxsize=2)
def model_of(name: str) -> nn.Module:
    return mini(name)


def small(method: str, model: nn.Module, **options: object):
    known = METHODS[split_name(method)[0]].settings()
    return create_method(method, model, seed=1, **{key: value for key, value in SMALL.items() if key in known}, **options)


def size_of(model: nn.Module) -> tuple[int, int]:
    """Not square where the model takes it: a ViT's position embedding fixes its input."""
    return (32, 32) if describe(model).family == "vit" else (16, 24)


def groups_of(name: str) -> list[tuple[str, ...]]:
    """The methods that go with a model, in groups that fall out of one computation."""
    model, groups = model_of(name), {}
    for method in list_methods(model):
        groups.setdefault(small(method, model).computation, []).append(method)
    return [tuple(group) for group in groups.values()]


def hooks_of(model: nn.Module) -> int:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


GROUPS = [(model, group) for model in MINI for group in groups_of(model)]
PAIRS = [(model, method) for model, group in GROUPS for method in group]


def test_every_method_goes_with_some_mini_model() -> None:
    assert {method for _, method in PAIRS} == set(METHODS)


def test_list_methods_says_why_not() -> None:
    for name in MINI:
        model = model_of(name)
        applicable = list_methods(model)
        assert set(applicable) | set(applicable.excluded) == set(METHODS)
        for method, reason in applicable.excluded.items():
            with pytest.raises(ValueError, match=re.escape(f"does not apply to {name}: {reason}")):
                create_method(method, model)


def test_families() -> None:
    assert {entry.family for entry in METHODS.values()} <= set(FAMILIES)
    assert METHODS["RISE"].family == "perturbation"
    assert METHODS["CheferLRP"].family == "transformer"


def count_passes(model: nn.Module, counted: dict[str, int]) -> list[torch.utils.hooks.RemovableHandle]:
    """Count images through the model, and images whose logits were differentiated."""

    def backward(gradient: Tensor) -> None:
        counted["backward"] += len(gradient)

    def forward(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        counted["forward"] += len(output)
        counted["calls"] = counted.get("calls", 0) + 1
        if output.requires_grad:
            output.register_hook(backward)

    # The intrinsic explanation of B-cos enters behind the encoding of the image: its last layer stands for the model.
    return [getattr(model, "logit_layer", model).register_forward_hook(forward)]


@pytest.mark.parametrize(("model_name", "names"), GROUPS, ids=lambda value: value if isinstance(value, str) else value[0])
def test_batched_is_one_by_one_with_the_passes_announced(model_name: str, names: tuple[str, ...]) -> None:
    model = model_of(model_name)
    images, targets, ids = images_of(3, *size_of(model)), torch.tensor([1, 7, 1]), ["a", "b", "c"]
    fused = [getattr(module, "fused_attn", None) for module in model.modules()]
    before, counted = hooks_of(model), {"forward": 0, "backward": 0}
    methods = [small(name, model) for name in (*names, f"{names[0]} abs", f"{names[0]} relu")]
    (handle,) = count_passes(model, counted)
    try:
        batched = shared_maps(methods, images, targets, ids)
    finally:
        handle.remove()
    assert {method.passes for method in methods} == {methods[0].passes}
    if methods[0].passes is not None:
        assert (counted["forward"], counted["backward"]) == tuple(3 * n for n in methods[0].passes)
        assert counted.get("calls", 0) <= methods[0].passes.forward  # the images go together, never one by one

    ones = [small(name, model, batch=2) for name in names]
    single = {i: shared_maps(ones, images[i : i + 1], targets[i : i + 1], ids[i : i + 1]) for i in (2, 0, 1)}
    for name in names:
        found, alone = batched[name], torch.cat([single[i][name] for i in range(3)])
        assert found.shape == (3, 1, *images.shape[-2:])
        assert found.dtype == images.dtype
        assert found.isfinite().all()
        # float64: what is left is the order of sums. Relevance divides by values near 0, which raises that.
        tolerance = 1e-5 if name.startswith("CheferLRP") else 1e-8
        assert ((found - alone).abs() <= tolerance * found.abs().amax(dim=(1, 2, 3), keepdim=True)).all(), name
    assert torch.equal(batched[f"{names[0]} abs"], batched[names[0]].abs())
    assert torch.equal(batched[f"{names[0]} relu"], batched[names[0]].clamp(min=0))

    # The model is as it was.
    assert hooks_of(model) == before
    assert [getattr(module, "fused_attn", None) for module in model.modules()] == fused
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert not images.requires_grad


def test_methods_of_one_computation_share_it() -> None:
    model = model_of("mini_vgg11")
    images, targets = images_of(2, 32, 40), torch.tensor([1, 7])
    names = ["Grad-CAM", "Grad-CAM++", "XGrad-CAM", "Layer-CAM", "Gradient", "IxG", "IxG abs", "Saliency", "IxG-SG", "IxG-SG-SQ", "Random"]
    methods = [create_method(name, model) for name in names]
    counted = {"forward": 0, "backward": 0}
    (handle,) = count_passes(model, counted)
    try:
        maps = shared_maps(methods, images, targets)
    finally:
        handle.remove()
    assert list(maps) == names
    assert (counted["forward"], counted["backward"]) == (2 * 6, 2 * 6)  # one for the CAMs, one for the gradients, four samples
    assert shared_passes(methods) == (6, 6)


# Every computation that runs the model, on one model that it goes with: mini_vgg11 where it does.
COMPUTATIONS = {METHODS[group[0]].function: (model, group[0]) for model, group in sorted(GROUPS, key=lambda g: g[0] == "mini_vgg11")}
RUNNING = [(model, name) for model, name in COMPUTATIONS.values() if METHODS[name].family != "control"]


@pytest.mark.parametrize(("model_name", "name"), RUNNING)
def test_running_out_of_memory_halves_the_batch_and_changes_nothing(model_name: str, name: str) -> None:
    model = model_of(model_name)
    images, targets = images_of(5, 32, 32 if model_name == "mini_vit" else 40), torch.tensor([1, 7, 1, 0, 3])
    wanted = small(name, model)(images, targets)
    largest, limit = [], 4 if name == "DeepSHAP" else 2  # an image and its baseline, for two baselines

    def limited(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        # Captum's DeepLift hands over ((images,), (baselines,)).
        images = sum(len(part[0]) for part in inputs) if isinstance(inputs[0], tuple) else len(inputs[0])
        if images > limit:
            raise torch.OutOfMemoryError("simulated")
        largest.append(images)

    method = small(name, model, batch=8)
    # The intrinsic explanation of B-cos enters behind the encoding of the image: its last layer stands for the model.
    handle = getattr(model, "logit_layer", model).register_forward_pre_hook(limited)
    try:
        found = method(images, targets)
    finally:
        handle.remove()
    assert max(largest) == limit
    assert method.batch == limit
    tolerance = 1e-5 if name.startswith("CheferLRP") else 1e-9  # relevance divides by values near 0
    assert torch.allclose(found, wanted, rtol=tolerance, atol=tolerance * float(wanted.abs().max()))


def test_out_of_memory_with_one_image_is_raised() -> None:
    model = seeded(ConvNet)

    def never(_module: nn.Module, _inputs: object) -> None:
        raise torch.OutOfMemoryError("simulated")

    handle = model.register_forward_pre_hook(never)
    with pytest.raises(torch.OutOfMemoryError):
        create_method("Gradient", model)(images_of(3, 6, 8), torch.tensor([0, 1, 2]))
    handle.remove()
    assert all(parameter.requires_grad for parameter in model.parameters())


SMALLEST = {
    "ConvNet": (lambda: seeded(ConvNet), (6, 8), [name for name in list_methods(seeded(ConvNet)) if not name.endswith("(paper)")]),
    "ViT": (vit, (12, 20), ["Grad-CAM", "Rollout", "CheferLRP"]),
    "mini_bagnet": (lambda: model_of("mini_bagnet"), (10, 12), ["BagNet"]),
    "mini_bcos": (lambda: model_of("mini_bcos"), (16, 24), ["B-cos"]),
}


@pytest.mark.parametrize(("model_name", "name"), [(model, name) for model, (*_, names) in SMALLEST.items() for name in names])
def test_200_calls_leave_no_tensor_and_no_hook_behind(model_name: str, name: str) -> None:
    make, size, _ = SMALLEST[model_name]
    model, images, targets = make(), images_of(1, *size), torch.tensor([2])
    known = METHODS[name].settings()
    method = small(name, model, **({"layer": "features"} if "layer" in known and model_name == "ConvNet" else {}))

    def live() -> int:
        gc.collect()
        return sum(type(thing) is Tensor for thing in gc.get_objects())

    method(images, targets, ["a"])
    hooks, tensors = hooks_of(model), live()
    for _ in range(200):
        method(images, targets, ["a"])
    assert hooks_of(model) == hooks == 0
    assert live() <= tensors


@pytest.mark.parametrize("name", ["RISE", "Rollout", "BagNet"])
def test_forward_only_methods_keep_no_graph(name: str) -> None:
    models = [m for m, method in PAIRS if method == name]
    model, modes = model_of(models[0]), []
    handle = model.register_forward_pre_hook(lambda *_: modes.append(torch.is_inference_mode_enabled()))
    try:
        small(name, model)(images_of(2, 32, 32), torch.tensor([1, 2]))
    finally:
        handle.remove()
    assert modes
    assert all(modes)


@pytest.mark.parametrize(("model_name", "name"), RUNNING)
def test_the_callers_grad_mode_has_no_part_in_it(model_name: str, name: str) -> None:
    model = model_of(model_name)
    images, targets = images_of(2, *size_of(model)), torch.tensor([1, 7], dtype=torch.int32)
    wanted = small(name, model)(images.clone().requires_grad_(), targets.long(), ["a", "b"])
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found = small(name, model)(images.clone(), targets.clone(), ["a", "b"])
        assert torch.equal(found, wanted)
        assert not found.is_inference()
    assert not wanted.requires_grad


@pytest.mark.parametrize(("model_name", "name"), RUNNING)
def test_under_autocast_the_model_alone_runs_in_16_bits(model_name: str, name: str) -> None:
    model = model_of(model_name).float()
    try:
        images, targets = images_of(2, 32, 32, dtype=torch.float32), torch.tensor([1, 7])
        exact = small(name, model)(images, targets, ["a", "b"])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = small(name, model)(images, targets, ["a", "b"])
    finally:
        model.double()
    assert found.dtype == torch.float32
    distinct = [len(values.unique()) for values in (found, exact)]
    if name != "BagNet":  # whose map is what the model itself puts out
        assert distinct[0] > 0.5 * distinct[1]  # a map of 16 bits has few values
    if name.startswith("CheferLRP"):
        assert torch.equal(found, exact)


@pytest.mark.parametrize("name", ["IxG-SG", "SG-CAM++", "GradientSHAP", "IG-U (paper)", "Random"])
def test_randomness_is_keyed_by_seed_method_and_image(name: str) -> None:
    model = model_of("mini_vgg11")
    image, target = images_of(1, 32, 40), torch.tensor([1])
    first = small(name, model)(image, target, ["a"])
    torch.rand(7)  # the global generator has no part in it
    assert torch.equal(first, small(name, model)(image, target, ["a"]))
    assert not torch.allclose(first, small(name, model)(image, target, ["b"]))
    known = {k: v for k, v in SMALL.items() if k in METHODS[name].settings()}
    assert not torch.allclose(first, create_method(name, model, seed=2, **known)(image, target, ["a"]))


def test_a_registered_function_gets_image_ids_and_keeps_an_option_called_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    asked = []

    @register_method
    def mine(model: nn.Module, images: Tensor, targets: Tensor, *, image_ids: list[str], noise: float = 1.0) -> Tensor:
        asked.append(list(image_ids))
        return noise * images

    images, net = images_of(2, 6, 4), seeded(ConvNet)
    maps = create_method("mine", net, noise=2.0)(images, torch.tensor([0, 1]), ["a", "b"])
    assert torch.equal(maps, (2 * images).sum(dim=1, keepdim=True))
    assert asked == [["a", "b"]]
    with pytest.raises(UnknownNameError, match="noise"):
        create_method("IxG", net, noise=torch.zeros(2, 1, 3, 6, 4))
