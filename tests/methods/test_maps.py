"""What goes into a method and what comes out: maps and batches that are checked."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from idsds.common.registry import UnknownNameError
from idsds.methods import as_method, create_method
from tests.methods.nets import ConvNet, seeded
from tests.methods.test_own import IDS, IMAGES, TARGETS


@pytest.fixture
def model() -> nn.Module:
    return seeded(ConvNet)


@pytest.mark.parametrize("batch", [2, 8])
@pytest.mark.parametrize(
    ("result", "error", "message"),
    [
        (lambda x: x.numpy().astype(object), TypeError, r"method 'mine' returned ndarray for the images a, b, c, d, e, not a tensor"),
        (
            lambda x: [x.numpy()] * len(x),
            ValueError,
            r"returned shape \(\d, \d, 3, 8, 12\) for the images a, b, c, d, e",
        ),
        (lambda x: None, TypeError, r"'mine' returned NoneType for the images a, b"),
        (lambda x: {"mine": x}, TypeError, r"'mine' returned dict for the images a, b"),
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


def test_maps_have_the_precision_of_the_images_or_a_higher_one(model: nn.Module) -> None:
    images = IMAGES.float()
    for kind, wanted in {torch.bfloat16: torch.float32, torch.int16: torch.float32, torch.float64: torch.float64}.items():
        found = as_method("mine", lambda images, targets, kind=kind: torch.ones_like(images, dtype=kind), model)(images, TARGETS)
        assert found.dtype == wanted
        assert found.eq(3).all()


def test_batches_are_checked(model: nn.Module) -> None:
    method = create_method("Gradient", model)
    with pytest.raises(TypeError, match="images must be a float tensor"):
        method(IMAGES[0], TARGETS)
    with pytest.raises(TypeError, match="targets must be an integer tensor"):
        method(IMAGES, TARGETS.float())
    with pytest.raises(ValueError, match="5 images with 2 targets"):
        method(IMAGES, TARGETS[:2])
    with pytest.raises(ValueError, match=r"nothing to explain: images have shape \(0, 3, 8, 12\)"):
        method(IMAGES[:0], TARGETS[:0])
    with pytest.raises(UnknownNameError, match="Did you mean 'Grad-CAM"):
        create_method("GradCAM", model)
    with pytest.raises(UnknownNameError, match="'IG-U abs'"):
        create_method("IGU abs", model)
