import numpy as np
import pytest
import torch
from sklearn.metrics import auc
from torch import nn

from idsds.methods import OwnMethod, create_method
from idsds.protocols.incremental_deletion import (
    area_under_curve,
    incremental_deletion,
    incremental_deletion_curve,
)
from idsds.protocols.single_deletion import patch_sums
from tests.methods.nets import ConvNet, images_of, seeded
from tests.protocols.golden import GOLDEN, TARGETS, golden_images, golden_model
from tests.protocols.scoring import methods_of, score


class PixelSum(nn.Module):
    """Logits [sum of all values, 0]: deleting a pixel takes away what it holds."""

    def forward(self, x):
        total = x.sum(dim=(1, 2, 3))
        return torch.stack([total, torch.zeros_like(total)], dim=1)


@pytest.fixture
def net():
    return seeded(ConvNet, classes=4)


@pytest.fixture
def images():
    return images_of(3, 8, 12) - 0.3


@pytest.fixture
def targets():
    return torch.tensor([0, 3, 1])


# The order of pixels whose attributions differ by less than float32 rounding depends on the machine, and each point of a curve with
# it: 1e-4 of a probability at most. The area averages this out.
@pytest.mark.parametrize(("name", "order"), [("IxG", "ascending"), ("Grad-CAM", "descending")])
def test_curves_agree_with_the_reference(name, order):
    key = f"{name}/{order}" if name == "IxG" else f"{name}/{order}/stable_sort_first_index_first"
    golden = GOLDEN["incremental_deletion"][key]
    model = golden_model()
    curve = incremental_deletion_curve(model, create_method(name, model), golden_images(1), TARGETS[:1], order=order)
    np.testing.assert_allclose(curve, golden["curves"][:1], atol=3e-4)
    np.testing.assert_allclose(area_under_curve(curve), golden["per_image"][:1], atol=2e-5)


# Each step sorts by gradients at an image that the step before has made, so differences of the order feed on themselves.
@pytest.mark.parametrize(("name", "order"), [("IxG", "ascending"), ("Grad-CAM", "descending")])
def test_updated_curves_agree_with_the_reference(name, order):
    golden = GOLDEN["incremental_deletion_with_update"][f"{name}/{order}"]
    model = golden_model()
    method = create_method(name, model)
    curve = incremental_deletion_curve(model, method, golden_images(1), TARGETS[:1], steps=8, order=order, update=True)
    np.testing.assert_allclose(curve, golden["curves"][:1], atol=4e-3)
    np.testing.assert_allclose(area_under_curve(curve), golden["per_image"][:1], atol=1e-3)


@pytest.mark.parametrize("order", ["ascending", "descending"])
@pytest.mark.parametrize("mode", ["deletion", "insertion"])
def test_pixels_follow_a_sorted_loop(order, mode, images):
    """A loop in numpy over sorted pixels, on a model whose logit is the sum of what is left."""
    maps = images.mean(dim=1, keepdim=True)
    targets, steps = torch.zeros(3, dtype=torch.long), 7
    curve = incremental_deletion_curve(
        PixelSum(), maps, images, targets, steps, order, mode=mode, quantity="logit", endpoint=True, baseline="zeros"
    )
    for b, image in enumerate(images.numpy()):
        ranked = np.argsort(image.mean(axis=0).ravel(), kind="stable")
        ranked = ranked if order == "ascending" else ranked[::-1]
        for k in range(steps + 1):
            left = image.reshape(3, -1).copy()
            changed = ranked[: k * 96 // steps]
            if mode == "deletion":
                left[:, changed] = 0
            else:
                left = np.where(np.isin(np.arange(96), changed), left, 0)
            assert curve[b, k] == pytest.approx(left.sum(), abs=1e-9)


def test_patches_go_in_the_order_of_their_sums(images):
    maps = images_of(3, 8, 12, seed=4)[:, :1] - 0.5
    curve = incremental_deletion_curve(
        PixelSum(), maps, images, torch.zeros(3, dtype=torch.long), 8, "descending", units="patches", grid=4, quantity="logit"
    )
    order = patch_sums(maps, 4).argsort(dim=1, descending=True)
    contents = patch_sums(images.sum(dim=1), 4)  # (B, 16)
    for b in range(3):
        for k in range(8):
            assert curve[b, k] == pytest.approx(float(contents[b, order[b, 2 * k :]].sum()), abs=1e-9)


def test_more_steps_than_patches_repeat_points(net, images, targets):
    few = incremental_deletion_curve(net, images[:, :1], images, targets, 4, units="patches", grid=2)
    many = incremental_deletion_curve(net, images[:, :1], images, targets, 8, units="patches", grid=2)
    torch.testing.assert_close(many, few.repeat_interleave(2, dim=1))


@pytest.mark.parametrize("order", ["ascending", "descending"])
def test_equal_pixels_go_row_by_row(order):
    images = torch.arange(1.0, 13).view(1, 1, 3, 4).double().expand(1, 3, 3, 4)
    curve = incremental_deletion_curve(
        PixelSum(), torch.zeros(1, 1, 3, 4), images, torch.tensor([0]), 12, order, quantity="logit", endpoint=True
    )
    values = np.arange(1, 13)
    np.testing.assert_allclose(curve[0], [3 * values[k:].sum() for k in range(13)])


@pytest.mark.parametrize("rule", ["mean", "trapezoid"])
def test_area(rule):
    curves = torch.rand(4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = curves.numpy().mean(axis=1) if rule == "mean" else [auc(np.linspace(0, 1, 9), curve) for curve in curves.numpy()]
    np.testing.assert_allclose(area_under_curve(curves, rule=rule), expected, rtol=1e-12)


def test_update_explains_what_is_left(images):
    """The map is the image itself minus what a mean over it says: it changes as pixels go, and a loop tells what happens."""
    targets = torch.zeros(3, dtype=torch.long)

    def method(x, _targets):
        return (x.mean(dim=1) * (1 + x.sum(dim=(1, 2, 3))[:, None, None]).sin()).double()

    curve = incremental_deletion_curve(PixelSum(), method, images, targets, 6, "descending", update=True, quantity="logit")
    for b in range(3):
        left = images[b : b + 1].clone()
        gone = np.zeros(96, dtype=bool)
        for k in range(6):
            if k:
                importance = np.where(gone, np.inf, method(left, None).numpy().ravel())
                gone[np.argsort(-importance, kind="stable")[: k * 96 // 6]] = True
                left = torch.where(torch.from_numpy(gone).view(1, 1, 8, 12), 0, images[b : b + 1])
            assert curve[b, k] == pytest.approx(float(left.sum()), abs=1e-9)


@pytest.mark.parametrize("update", [False, True])
@pytest.mark.parametrize("baseline", ["zeros", "blur", "uniform"])
def test_batch_equals_loop(net, images, targets, baseline, update):
    method, ids = create_method("IxG", net), ["a", "b", "c"]
    settings = {"steps": 5, "baseline": baseline, "update": update}
    together = incremental_deletion(net, method, images, targets, **settings, image_ids=ids, batch=4)
    alone = [
        incremental_deletion(net, method, images[i : i + 1], targets[i : i + 1], **settings, image_ids=ids[i : i + 1]) for i in range(3)
    ]
    torch.testing.assert_close(together, torch.cat(alone))
    assert not net.training
    assert all(parameter.requires_grad for parameter in net.parameters())


@pytest.mark.filterwarnings("ignore:method 'method' gave a NaN")
@pytest.mark.parametrize("update", [False, True])
def test_nan_stays_with_its_image(net, images, targets, update):
    def method(x, _targets):
        maps = x[:, :1].clone()
        maps[1, 0, 2, 3] = torch.nan
        return maps

    scores = incremental_deletion(net, method, images, targets, 4, update=update)
    assert scores.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"order": "descendin"}, "unknown order 'descendin'. Did you mean 'descending'"),
        ({"mode": "insert"}, "unknown mode 'insert'"),
        ({"units": "patch"}, "unknown units 'patch'. Did you mean 'patches'"),
        ({"quantity": "logits"}, "unknown quantity 'logits'. Did you mean 'logit'"),
        ({"baseline": "zero"}, "unknown baseline 'zero'. Did you mean 'zeros'"),
        ({"rule": "sum"}, "unknown rule 'sum'"),
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"units": "patches", "grid": 5}, "grid 5 does not divide images of 8 x 12 pixels"),
        ({"update": True}, "update=True explains the image after each step"),
    ],
)
def test_mistakes_are_named_before_any_work(images, targets, wrong, message):
    class Untouched(nn.Module):
        def forward(self, x):
            raise AssertionError("the model was run")

    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        incremental_deletion(Untouched(), images[:, :1], images, targets, **wrong)


class TestGain:
    def test_it_is_least_first_less_most_first(self, linear, batch):
        (method,) = methods_of(linear, "IxG")
        found = score("symmetric_relevance_gain", linear, [method], batch, steps=8)["IxG"]["score"]
        both = [incremental_deletion(linear, method, batch.images, batch.targets, 8, order) for order in ("ascending", "descending")]
        torch.testing.assert_close(found, both[0] - both[1])
        assert (found > 0).all()  # on a linear net the order of the contributions is the best there is

    def test_the_opposite_map_has_the_opposite_gain(self, linear, batch):
        maps = batch.images.mean(dim=1)  # all different, so that no two pixels tie
        given = [OwnMethod(name, lambda images, targets, sign=sign: sign * maps, linear) for name, sign in (("map", 1), ("opposite", -1))]
        for name in ("symmetric_relevance_gain", "in_domain_relevance_gain"):
            found = score(name, linear, given, batch, steps=16)
            # The curves have floor(k n / steps) units at each step: from the other end the same numbers go.
            torch.testing.assert_close(found["map"]["score"], -found["opposite"]["score"])

    def test_in_domain_deletes_patches(self, linear, batch):
        (method,) = methods_of(linear, "IxG")
        found = score("in_domain_incremental_deletion", linear, [method], batch, steps=16)["IxG"]["score"]
        torch.testing.assert_close(found, incremental_deletion(linear, method, batch.images, batch.targets, 16, units="patches"))
