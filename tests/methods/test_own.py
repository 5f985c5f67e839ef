"""Methods of the user's own: functions, classes, captum attributions, torchcam extractors; and what is said of bad ones."""

from __future__ import annotations

import captum.attr
import pytest
import torch
import torchcam.methods
from torch import Tensor, nn

from idsds.methods import METHODS, Method, as_method, create_method, list_methods, register_method, shared_maps, shared_passes
from idsds.registry import UnknownNameError
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
    assert as_method("same", both[1], model) is both[1]


@pytest.mark.parametrize(
    ("attribution", "name"),
    [(captum.attr.Saliency, "Saliency"), (captum.attr.InputXGradient, "IxG"), (captum.attr.IntegratedGradients, "IG")],
)
def test_captum(model: nn.Module, attribution: type, name: str) -> None:
    found = as_method("theirs", attribution(model), model)(IMAGES, TARGETS, IDS)
    assert torch.allclose(found, ours(name, model), rtol=1e-9, atol=1e-12)


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
    with pytest.raises(TypeError, match=r"'x' is a str; wanted a captum Attribution"):
        as_method("x", "Grad-CAM", model)
    with pytest.raises(TypeError, match=r"is the class Saliency; pass an instance"):
        as_method("x", captum.attr.Saliency, model)
    with pytest.raises(TypeError, match="is a ConvNet"):
        as_method("x", model, model)
    with pytest.raises(ValueError, match="another net"):
        as_method("x", Method("IxG", seeded(ConvNet)), model)
    with pytest.raises(ValueError, match="another net"), torchcam.methods.GradCAM(seeded(ConvNet), "features") as thing:
        as_method("x", thing, model)


@pytest.mark.parametrize("batch", [2, 8])
@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (lambda x: x.numpy(), TypeError, r"method 'mine' returned ndarray for the images a, b, c, d, e, not a tensor"),
        (lambda x: None, TypeError, r"'mine' returned NoneType for the images a, b"),
        (lambda x: x > 0, TypeError, r"'mine' returned values of torch.bool for the images a, b"),
        (lambda x: x[..., :5], ValueError, r"shape \(\d, 3, 8, 5\) for the images a, .*; wanted \(5, C, 8, 12\) or \(5, 8, 12\)"),
        (lambda x: x[:1], ValueError, r"shape \(1, 3, 8, 12\) for the images a"),
        (lambda x: x.mean(), ValueError, r"shape \(\) for the images a"),
    ],
)
def test_bad_maps_are_named(model: nn.Module, batch: int, result, error: type, message: str) -> None:
    method = as_method("mine", lambda images, targets: result(images), model)
    method.batch = batch
    with pytest.raises(error, match=message):
        method(IMAGES, TARGETS, IDS)


def test_nan_is_kept_and_named(model: nn.Module) -> None:
    def some(images: Tensor, targets: Tensor) -> Tensor:
        return torch.where((targets == 1)[:, None, None, None], torch.nan, images)

    with pytest.warns(RuntimeWarning, match="method 'mine' gave a NaN or an infinity for 2 of 5 images: c, d"):
        found = as_method("mine", some, model)(IMAGES, TARGETS, IDS)
    assert found.isnan().flatten(1).all(dim=1).tolist() == [False, False, True, True, False]


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


def test_batches_are_checked(model: nn.Module) -> None:
    method = create_method("Gradient", model)
    with pytest.raises(TypeError, match="images must be a float tensor"):
        method(IMAGES[0], TARGETS)
    with pytest.raises(TypeError, match="targets must be an integer tensor"):
        method(IMAGES, TARGETS.float())
    with pytest.raises(ValueError, match="5 images with 2 targets"):
        method(IMAGES, TARGETS[:2])
    with pytest.raises(UnknownNameError, match="Did you mean 'Grad-CAM"):
        create_method("GradCAM", model)
    with pytest.raises(UnknownNameError, match="'IG-U abs'"):
        create_method("IGU abs", model)
