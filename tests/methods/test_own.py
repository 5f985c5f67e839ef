"""Methods of the user's own: functions, classes, captum attributions, torchcam extractors; and what is said of bad ones."""

from __future__ import annotations

from contextlib import nullcontext

import captum.attr
import numpy as np
import pytest
import torch
import torchcam.methods
from torch import Tensor, nn

from idsds.common.registry import UnknownNameError
from idsds.methods import METHODS, Method, as_method, create_method, list_methods, register_method, shared_maps, shared_passes
from idsds.methods.base import MethodError
from idsds.methods.own import StoredMaps
from idsds.models.base import frozen
from idsds.models.isolation import on_loan
from tests.methods.nets import ConvNet, images_of, seeded

IMAGES, TARGETS, IDS = images_of(5, 8, 12), torch.tensor([0, 3, 1, 1, 2]), ["a", "b", "c", "d", "e"]


@pytest.fixture
def model() -> nn.Module:
    return seeded(ConvNet)


@pytest.fixture
def clean_registry():
    before = list(METHODS)
    yield
    for name in set(METHODS) - set(before):
        METHODS.remove(name)


def ours(name: str, model: nn.Module, **options: object) -> Tensor:
    return create_method(name, model, **options)(IMAGES, TARGETS, IDS)


@pytest.mark.usefixtures("clean_registry")
class TestRegistered:
    def test_plain_function(self, model: nn.Module) -> None:
        @register_method
        def Product(model: nn.Module, images: Tensor, targets: Tensor, *, power: int = 1) -> Tensor:
            return images**power

        assert "Product" in list_methods(model)
        method = create_method("Product", model, power=2)
        assert method.entry.family == "own"
        assert method.passes is None
        assert torch.equal(method(IMAGES, TARGETS)[:, 0], IMAGES.square().sum(dim=1))
        assert torch.equal(ours("Product abs", model), ours("Product", model).abs())
        with pytest.raises(ValueError, match="already registered"):
            register_method("Product")(lambda model, images, targets: images)
        with pytest.raises(UnknownNameError, match="Did you mean 'power'"):
            create_method("Product", model, pover=2)

    def test_class_is_made_once(self, model: nn.Module) -> None:
        made = []

        @register_method("Noisy", family="gradient", variants={"Noisy x2": {"scale": 2.0}})
        class Noisy:
            def __init__(self, model: nn.Module, *, scale: float = 1.0) -> None:
                made.append(model)
                self.scale = scale

            def __call__(self, images: Tensor, targets: Tensor, *, draws, batch: int) -> Tensor:
                assert batch >= 1
                return self.scale * draws.normal(1)[:, 0]

        method = create_method("Noisy", model)
        first = method(IMAGES, TARGETS, IDS)
        assert torch.equal(first[3:4], method(IMAGES[3:4], TARGETS[3:4], IDS[3:4]))
        assert made == [model]
        assert create_method("Noisy x2", model).options == {"scale": 2.0}

    def test_all_names_of_a_function_give_what_they_give_alone(self, model: nn.Module) -> None:
        @register_method("One", "Two", variants={"Three": {"scale": 1.0}})
        def drawn(model: nn.Module, images: Tensor, targets: Tensor, *, scale: float = 1.0, draws) -> Tensor:
            return scale * draws.normal(1)[:, 0]

        register_method("Four")(drawn)
        names = ["Two", "One", "Three", "Four"]
        together = shared_maps([create_method(name, model) for name in names], IMAGES, TARGETS, IDS)
        assert list(together) == names
        for name in names:
            assert torch.equal(together[name], ours(name, model))

    def test_a_dict_without_the_method_is_named(self, model: nn.Module) -> None:
        register_method("Some", "Other")(lambda model, images, targets: {"Some": images})
        assert ours("Some", model).shape == (5, 1, 8, 12)
        with pytest.raises(UnknownNameError, match=r"output of the function of method 'Other' 'Other'.*Allowed: Some"):
            ours("Other", model)

    def test_nan_is_named_after_the_method_that_was_asked_for(self, model: nn.Module) -> None:
        register_method("Plain", variants={"Variant": {"k": 2}}, output="Plain")(
            lambda model, images, targets, *, k=1: {"Plain": images * torch.nan, "Silent": images * torch.nan}
        )
        with pytest.warns(RuntimeWarning) as warned:
            ours("Variant relu", model)
        assert [str(w.message) for w in warned] == ["method 'Variant relu' gave a NaN or an infinity for 5 of 5 images: a, b, c, d, e"]

    def test_names_and_families_are_checked(self) -> None:
        with pytest.raises(UnknownNameError, match="Did you mean 'gradient'"):
            register_method("Mine", family="gradients")
        with pytest.raises(ValueError, match="asks for the absolute values"):
            register_method("Mine abs")(lambda model, images, targets: images)


def test_callable(model: nn.Module) -> None:
    method = as_method("mine", lambda images, targets: images[:, 0] * targets[:, None, None], model)
    assert (method.name, method.entry.family, method.passes) == ("mine", "own", None)
    assert torch.equal(method(IMAGES, TARGETS)[:, 0], IMAGES[:, 0] * TARGETS[:, None, None])
    both = [method, create_method("IxG", model)]
    assert list(shared_maps(both, IMAGES, TARGETS)) == ["mine", "IxG"]
    assert shared_passes(both) == (1, 1)


def test_a_ready_method_keeps_its_options_under_the_name_it_is_given(model: nn.Module) -> None:
    few, many = (create_method("IG abs", model, steps=steps) for steps in (1, 20))
    methods = [as_method("few", few, model), as_method("many", many, model)]
    found = shared_maps(methods, IMAGES, TARGETS)
    assert list(found) == ["few", "many"]
    assert torch.equal(found["few"], few(IMAGES, TARGETS))
    assert not torch.allclose(found["few"], found["many"])
    assert few.name == "IG abs"
    with pytest.raises(ValueError, match="two methods with different settings are called 'IG abs'"):
        shared_maps([few, many], IMAGES, TARGETS)


@pytest.mark.parametrize(
    ("attribution", "name"),
    [(captum.attr.Saliency, "Saliency"), (captum.attr.InputXGradient, "IxG"), (captum.attr.IntegratedGradients, "IG")],
)
def test_captum(model: nn.Module, attribution: type, name: str) -> None:
    found = as_method("theirs", attribution(model), model)(IMAGES, TARGETS, IDS)
    rtol = 1e-5 if name == "IG" else 1e-9  # captum rounds the places on the path to float32
    assert torch.allclose(found, ours(name, model), rtol=rtol, atol=1e-9)


def test_captums_layer_attribution_is_resized(model: nn.Module) -> None:
    found = as_method("theirs", captum.attr.LayerGradCam(model, model.features), model)(IMAGES, TARGETS, IDS)
    # Captum's is not rectified.
    assert found.shape == (5, 1, 8, 12)
    rectified = captum.attr.LayerGradCam(model, model.features).attribute(IMAGES, target=TARGETS, relu_attributions=True)
    assert rectified.any()
    assert torch.allclose(torch.nn.functional.interpolate(rectified, (8, 12), mode="bilinear"), ours("Grad-CAM", model, layer="features"))


@pytest.mark.parametrize(("extractor", "name"), [("GradCAM", "Grad-CAM"), ("XGradCAM", "XGrad-CAM"), ("LayerCAM", "Layer-CAM")])
def test_torchcam(model: nn.Module, extractor: str, name: str) -> None:
    with getattr(torchcam.methods, extractor)(model, "features") as thing:
        method = as_method("theirs", thing, model)
        found = method(IMAGES, TARGETS, IDS)
        assert thing.hook_a == [None]  # nothing is kept
        assert thing._hooks_enabled
        assert torch.allclose(found, ours(name, model, layer="features"), rtol=1e-9, atol=1e-12)
        with torch.inference_mode():
            model(IMAGES)  # its hooks do not stand in the way of other passes
    with pytest.raises(ValueError, match="without hooks"):
        as_method("theirs", thing, model)
    with torchcam.methods.ScoreCAM(model, "features", batch_size=4) as thing:
        assert as_method("Score-CAM", thing, model)(IMAGES, TARGETS).shape == (5, 1, 8, 12)


def test_what_is_no_method_is_refused_before_any_work(model: nn.Module) -> None:
    with pytest.raises(TypeError, match=r"'x' is 'Grad-CAM', which is no folder; wanted a captum Attribution"):
        as_method("x", "Grad-CAM", model)
    with pytest.raises(TypeError, match=r"is the class Saliency; pass an instance"):
        as_method("x", captum.attr.Saliency, model)
    with pytest.raises(TypeError, match="is a ConvNet"):
        as_method("x", model, model)
    with pytest.raises(ValueError, match="another net"):
        as_method("x", Method("IxG", seeded(ConvNet)), model)
    with pytest.raises(ValueError, match="another net"), torchcam.methods.GradCAM(seeded(ConvNet), "features") as thing:
        as_method("x", thing, model)


def test_own_methods_are_halved_when_memory_runs_out(model: nn.Module) -> None:
    seen = []

    def hungry(images: Tensor, targets: Tensor) -> Tensor:
        seen.append(len(images))
        if len(images) > 2:
            raise torch.OutOfMemoryError("simulated")
        return images

    method = as_method("mine", hungry, model)
    method.batch = 5
    assert torch.equal(method(IMAGES, TARGETS)[:, 0], IMAGES.sum(dim=1))
    assert seen == [5, 3, 2, 2, 1]


STATES = {
    "the package's": lambda model: create_method("Guided Backprop", model),
    "captum's": lambda model: as_method("x", captum.attr.DeepLift(model), model),
    "torchcam's": lambda model: as_method("x", torchcam.methods.GradCAM(model, "2"), model),
    "a callable": lambda model: as_method("x", lambda images, targets: model(images).sum() * images, model),
    "one that raises": lambda model: as_method("x", lambda images, targets: 1 / 0, model),
}


@pytest.mark.parametrize("kind", STATES)
@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_a_net_of_ones_own_is_left_as_it_was(kind: str) -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4)]
    model = seeded(lambda: nn.Sequential(*layers)).train()
    model[1].eval()  # a frozen layer, as in fine-tuning
    model[0].weight.requires_grad_(False)
    model[6].weight.grad = torch.ones_like(model[6].weight)
    method = STATES[kind](model)
    model[2].register_forward_hook(lambda *_: None)

    def state() -> list[object]:
        tensors = [
            (name, t.clone(), t.requires_grad, t.grad is None or t.grad.clone()) for name, t in model.state_dict(keep_vars=True).items()
        ]
        hooks = [(*m._forward_hooks, *m._forward_pre_hooks, *m._backward_hooks, *m._backward_pre_hooks) for m in model.modules()]
        return [str(tensors), [module.training for module in model.modules()], hooks, [id(p) for p in model.parameters()]]

    before = state()
    with pytest.raises(MethodError, match="division by zero") if kind == "one that raises" else nullcontext():
        method(IMAGES, TARGETS)
    assert state() == before


def cams(model: nn.Module, **options: object):
    return pytest.importorskip("pytorch_grad_cam").GradCAM(model, [model.features], **options)


class TestAsOutside:
    """A method that is correct runs here as it does alone."""

    def test_pytorch_grad_cam(self, model: nn.Module) -> None:
        model = model.float()
        images, thing = IMAGES.float(), cams(model)
        target = pytest.importorskip("pytorch_grad_cam.utils.model_targets").ClassifierOutputTarget
        alone = torch.from_numpy(thing(images, [target(t) for t in TARGETS.tolist()]))
        model.zero_grad(set_to_none=True)
        found = as_method("theirs", thing, model)(images, TARGETS, IDS)
        assert torch.equal(found[:, 0], alone)
        assert all(parameter.grad is None for parameter in model.parameters())
        smooth = as_method("theirs", (thing, {"eigen_smooth": True}), model)(images, TARGETS, IDS)
        assert not torch.equal(smooth, found)
        with pytest.raises(UnknownNameError, match="argument of method 'theirs'"):
            as_method("theirs", (thing, {"eigen_smoth": True}), model)

    def test_pytorch_grad_cam_keeps_nothing_of_other_passes(self, model: nn.Module) -> None:
        thing = cams(model := model.float())
        with on_loan(model, "cpu", torch.contiguous_format):
            method = as_method("theirs", thing, model)
            model(IMAGES.float())
            assert not thing.activations_and_grads.activations
            assert method(IMAGES.float(), TARGETS).any()
        assert len(model.features._forward_hooks) == 2

    def test_a_hand_written_cam(self, model: nn.Module) -> None:
        def cam(images: Tensor, targets: Tensor) -> Tensor:
            kept = {}
            handle = model.features.register_forward_hook(lambda _module, _inputs, output: kept.update(a=output))
            scores = model(images)
            handle.remove()
            (gradient,) = torch.autograd.grad(scores.gather(1, targets[:, None]).sum(), kept["a"])
            maps = (gradient.mean((2, 3), keepdim=True) * kept["a"]).sum(1, keepdim=True).relu()
            return torch.nn.functional.interpolate(maps, images.shape[-2:], mode="bilinear")

        with torch.no_grad(), frozen(model):  # as some protocols do
            found = as_method("mine", cam, model)(IMAGES, TARGETS)
        assert torch.allclose(found, ours("Grad-CAM", model, layer="features"))

    def test_gradients_of_the_parameters(self, model: nn.Module) -> None:
        def explain(images: Tensor, targets: Tensor) -> Tensor:
            model(images).sum().backward()
            return images * model.conv1.weight.grad.abs().sum()

        assert as_method("mine", explain, model)(IMAGES, TARGETS).any()
        assert model.conv1.weight.grad is None

    def test_the_registrys_noise_tunnel_of_captum(self, model: nn.Module) -> None:
        tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(model))
        assert as_method("x", (tunnel, {"nt_samples": 2, "abs": False}), model)(IMAGES, TARGETS).shape == (5, 1, 8, 12)
        with pytest.raises(TypeError, match=r"'x' \(NoiseTunnel\) needs a value for 'baselines'"):
            as_method("x", captum.attr.NoiseTunnel(captum.attr.GradientShap(model)), model)

    def test_ids(self, model: nn.Module) -> None:
        seen = []

        def explain(images: Tensor, targets: Tensor, image_ids: list[str]) -> Tensor:
            seen.append(image_ids)
            return images

        method = as_method("mine", explain, model)
        method.batch = 2
        method(IMAGES, TARGETS, IDS)
        assert seen == [["a", "b"], ["c", "d"], ["e"]]

    def test_a_buffer_that_is_returned_again_and_again(self, model: nn.Module) -> None:
        buffer = torch.zeros(2, 8, 12)

        def explain(images: Tensor, targets: Tensor) -> Tensor:
            return buffer[: len(images)].copy_(images.sum(1))

        method = as_method("mine", explain, model)
        method.batch = 2
        assert torch.allclose(method(IMAGES, TARGETS)[:, 0], IMAGES.sum(1).float().double())


RESULTS = {
    "numpy": lambda m: m.numpy(),
    "float32 numpy": lambda m: m.numpy().astype("float32"),
    "big endian": lambda m: m.numpy().astype(">f8"),
    "(B, H, W)": lambda m: m.sum(1),
    "(B, 1, H, W)": lambda m: m.sum(1, keepdim=True),
    "a list": lambda m: [one.numpy() for one in m],
    "a tuple of one": lambda m: (m,),
    "with a graph": lambda m: m.clone().requires_grad_() * 1,
    "not contiguous": lambda m: m.flip(-1).contiguous().flip(-1).permute(0, 1, 3, 2).contiguous().permute(0, 1, 3, 2),
}


@pytest.mark.parametrize("kind", RESULTS)
def test_results_of_many_kinds(model: nn.Module, kind: str) -> None:
    found = as_method("mine", lambda images, targets: RESULTS[kind](images**3), model)(IMAGES, TARGETS)
    assert torch.allclose(found, (IMAGES**3).sum(1, keepdim=True), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("thing", "error", "message"),
    [
        (lambda m: captum.attr.GradientShap(m), TypeError, r"\(GradientShap\) needs a value for 'baselines': .*'x': \(GradientShap"),
        (lambda m: captum.attr.Occlusion(m), TypeError, "needs a value for 'sliding_window_shapes'"),
        (lambda m: (captum.attr.Occlusion(m), {"strides": 2}), TypeError, "needs a value for 'sliding_window_shapes'"),
        (lambda m: (captum.attr.Saliency(m), {"abss": False}), UnknownNameError, "argument of method 'x' 'abss'. .*'abs'"),
        (lambda m: captum.attr.NeuronGradient(m, m.conv1), TypeError, r"\(NeuronGradient\) does not explain a class"),
        (lambda m: lambda images: images, TypeError, r"is called with \(images, targets\), but it takes \(images\)"),
        (lambda m: lambda images, targets, width: images, TypeError, "needs a value for 'width'"),
        (lambda m: (lambda images, targets, width=1: images, {"wdith": 2}), UnknownNameError, "'width'"),
        (lambda m: (create_method("IG", m), {"steps": 2}), TypeError, "pass its options to create_method"),
    ],
)
def test_a_call_that_cannot_work_is_known_before_any_work(model: nn.Module, thing, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        as_method("x", thing(model), model)


def test_arguments_reach_the_call(model: nn.Module) -> None:
    found = as_method("x", (lambda images, targets, factor, power=1: factor * images**power, {"factor": 3, "power": 2}), model)
    assert torch.allclose(found(IMAGES, TARGETS), 3 * IMAGES.square().sum(1, keepdim=True))
    occlusion = (captum.attr.Occlusion(model), {"sliding_window_shapes": (3, 4, 4), "strides": (3, 4, 4)})
    assert as_method("x", occlusion, model)(IMAGES, TARGETS).any()


class TestStoredMaps:
    """Maps that were computed elsewhere are found by image id, or the image that lacks one is named."""

    def test_by_id(self, model: nn.Module) -> None:
        kinds = [IMAGES[0].numpy(), IMAGES[1], IMAGES[2].sum(0), IMAGES[3].sum(0, keepdim=True).numpy(), IMAGES[4:5]]
        found = as_method("stored", dict(zip(reversed(IDS), reversed(kinds), strict=True)), model)(IMAGES, TARGETS, IDS)
        assert torch.allclose(found, IMAGES.sum(1, keepdim=True))

    def test_a_folder(self, model: nn.Module, tmp_path) -> None:
        ids = [f"class {i % 2}/{i}.jpg" for i in range(5)]
        for image_id, image in zip(ids, IMAGES, strict=True):
            (path := tmp_path / f"{image_id}.npy").parent.mkdir(exist_ok=True)
            np.save(path, image.numpy())
        for folder in (tmp_path, str(tmp_path)):
            assert torch.allclose(as_method("stored", folder, model)(IMAGES, TARGETS, ids), IMAGES.sum(1, keepdim=True))
        before = StoredMaps("stored", tmp_path).content
        np.save(tmp_path / f"{ids[0]}.npy", -IMAGES[0].numpy())
        assert StoredMaps("stored", tmp_path).content != before

    def test_what_lacks_is_named(self, model: nn.Module) -> None:
        method = as_method("stored", {"a": IMAGES[0], "b": IMAGES[1][..., :5]}, model)
        with pytest.raises(MethodError, match="method 'stored' has no map of 3 images, the first is 'c'"):
            method(IMAGES, TARGETS, IDS)
        with pytest.raises(MethodError, match=r"the map of 'b' is \(3, 8, 5\); wanted real numbers of shape \(8, 12\)"):
            method(IMAGES[:2], TARGETS[:2], IDS[:2])

    def test_changed_images_have_none(self, model: nn.Module) -> None:
        method = as_method("stored", dict(zip(IDS, IMAGES, strict=True)), model)
        method(IMAGES, TARGETS, IDS)
        with pytest.raises(MethodError, match="asks for a map of a modified 'a'"):
            method(IMAGES + 0.1, TARGETS, IDS)
