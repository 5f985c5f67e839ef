"""What is explained and judged: equal to a net that is wrapped by hand, in methods and protocols alike."""

import warnings

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import idsds
from idsds.common.registry import UnknownNameError
from idsds.evaluation.manifest import read_manifest
from idsds.models.quantity import Quantity, as_quantity, explaining

LOGITS = torch.tensor([[1.0, 3.0, -2.0], [0.5, 0.0, 4.0]])
#: Every kind of method: gradients, paths, CAMs of the package and of both libraries, perturbations, rules of ReLUs.
METHODS = {
    **dict.fromkeys(("Gradient", "IxG", "IG", "IxG-SG", "Guided Backprop", "RISE", "Occlusion", "KernelSHAP")),
    **{name: (name, {"layer": "layer3"}) for name in ("Grad-CAM", "Grad-CAM++", "XGrad-CAM", "Layer-CAM", "SG-CAM++", "Guided Grad-CAM")},
    **{name: (name, {"layer": "layer3"}) for name in ("Score-CAM", "gradcam/HiResCAM", "captum/LayerGradCam")},
}


def net(classes=3):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return idsds.create_model("mini_resnet8", num_classes=classes)


def data(n=3):
    generator = torch.Generator().manual_seed(2)
    return TensorDataset(2 * torch.rand(n, 3, 32, 32, generator=generator) - 1, torch.randint(3, (n,), generator=generator))


def within(methods, name):
    """The same methods on a net that is the part ``name`` of a wrapper."""
    return {key: (m[0], {"layer": f"{name}.{m[1]['layer']}"}) if m else None for key, m in methods.items()}


class Contrast(nn.Module):
    """Logits minus that of class 2."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, images):
        logits = self.inner(images)
        return logits - logits[:, 2:3]


def evaluate(net, methods, **settings):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it returns probabilities, and was not fine-tuned
        return idsds.evaluate({"net": net}, methods, data(), progress=False, device="cpu", **settings)


def same(first, second):
    assert len(first) == len(second) > 0
    for name in ("patch_sums", "drops"):
        np.testing.assert_allclose(np.stack(first[name]), np.stack(second[name]), rtol=1e-4, atol=1e-6, err_msg=name)
    np.testing.assert_allclose(first["score"], second["score"], atol=1e-6)


def test_of_logits():
    assert torch.equal(Quantity("probability")(LOGITS), LOGITS.softmax(1))
    assert Quantity("contrast", 0)(LOGITS).tolist() == [[0, 2, -3], [0, -0.5, 3.5]]
    assert Quantity("contrast")(LOGITS).tolist() == [[-2, 2, -5], [-3.5, -4, 3.5]]  # of the highest, the second is taken away
    for quantity in (Quantity("probability"), Quantity("contrast"), Quantity("contrast", 1)):
        assert torch.equal(quantity(LOGITS).argmax(1), LOGITS.argmax(1))  # the prediction stays


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ("probabilty", UnknownNameError, "unknown quantity 'probabilty'. Did you mean 'probability'"),
        (("contrast", -1), ValueError, "a whole number of 0 or more, not -1"),
        (("contrast", 1.5), ValueError, "not 1.5"),
        (("logit", 1), ValueError, "only a contrast takes another class"),
        (3, TypeError, "quantity must be one of logit, probability, contrast"),
        (("contrast", 3), ValueError, "contrast with class 3, but 'net' has 3 classes, 0 to 2"),
    ],
)
def test_what_cannot_be_explained_is_said_before_any_work(given, error, message):
    with pytest.raises(error, match=message.replace("(", r"\(")):
        evaluate(net(), ["IG"], quantity=given)


def test_hook_is_gone_afterwards():
    model = net()
    images = torch.randn(2, 3, 32, 32)
    before = model(images)
    with explaining(model, as_quantity("probability")):
        assert torch.equal(model(images), before.softmax(1))
    with pytest.raises(TypeError), explaining(model, as_quantity("probability")):
        model("no images")
    assert torch.equal(model(images), before)
    assert not model._forward_hooks


def test_probability_is_that_of_a_net_wrapped_in_softmax():
    """The drops and every method, CAMs included; RISE explains the probability in any case, and no more than once."""
    model = net()
    found = evaluate(model, METHODS, quantity="probability")
    wrapped = evaluate(nn.Sequential(model, nn.Softmax(dim=1)), within({k: m for k, m in METHODS.items() if k != "RISE"}, "0"))
    same(found[found["method"] != "RISE"], wrapped)
    rise = evaluate(model, ["RISE"])
    sums = [np.stack(records.loc[records["method"] == "RISE", "patch_sums"]) for records in (found, rise)]
    np.testing.assert_allclose(*sums, rtol=1e-5)
    assert set(found["quantity"]) == {"probability"}
    plain = evaluate(model, ["Grad-CAM"])
    assert not np.allclose(np.stack(plain["drops"]), np.stack(found.loc[found["method"] == "Grad-CAM", "drops"]))


def test_contrast_is_that_of_a_net_wrapped_by_hand():
    model = net()
    methods = {name: METHODS[name] for name in ("IxG", "IG", "Grad-CAM", "Layer-CAM", "Occlusion", "Guided Backprop")}
    found = evaluate(model, methods, quantity=("contrast", 2))
    same(found, evaluate(Contrast(model), within(methods, "inner")))
    assert set(found["quantity"]) == {"contrast with class 2"}
    constant = found["target"] == 2  # the class against itself: undefined, counted, not dropped
    assert found["score"].isna().tolist() == constant.tolist()
    assert constant.any()


@pytest.mark.parametrize("protocol", ["incremental_deletion", "augmentation_robustness", "infidelity"])
def test_other_protocols_read_it_once(protocol):
    """A protocol that takes the softmax by itself takes that of the logits, not of the probabilities."""
    model, settings = net(), {"protocol": protocol, "normalisation": ((0.5,) * 3, (0.5,) * 3)}
    found = evaluate(model, ["IxG"], quantity="probability", **settings)
    if protocol == "augmentation_robustness":  # which augmentations count is decided by the probability in any case
        assert np.allclose(np.stack(found["shifts"]), np.stack(evaluate(model, ["IxG"], **settings)["shifts"]), equal_nan=True)
        return
    options = {"quantity": "logit"} if protocol == "incremental_deletion" else {}  # what the wrapped net returns, as it is
    wrapped = evaluate(nn.Sequential(model, nn.Softmax(dim=1)), ["IxG"], **options, **settings)
    np.testing.assert_allclose(found["score"], wrapped["score"], rtol=1e-5)
    assert not np.allclose(found["score"], evaluate(model, ["IxG"], quantity="logit", **settings)["score"])


def test_methods_of_the_logit_alone_are_left_out():
    model = net()
    for name in ("DeepLIFT", "LRP", "torchcam/CAM"):
        with pytest.raises(ValueError, match=f"method '{name}' applies to none of the models: it does not explain the probability"):
            evaluate(model, [name], quantity="probability")
    with pytest.raises(ValueError, match=r"'RISE' applies to none of the models: .* it weighs its masks by the probability"):
        evaluate(model, ["RISE"], quantity="contrast")
    with pytest.raises(ValueError, match="layer rules do not reach beyond the logits"):
        evaluate(model, {"mine": captum.attr.DeepLift(model)}, quantity="probability")
    assert len(evaluate(model, {"mine": captum.attr.Saliency(model)}, quantity="probability")) == 3


def test_records_of_two_quantities_are_kept_apart(tmp_path):
    """The address says what was explained, the manifest too; the plain logit keeps the address that it had before there was a choice."""
    model, scores = net(), {}
    for quantity in (None, "probability", "contrast", "logit"):
        found = evaluate(model, ["IG"], quantity=quantity, output=tmp_path / "run")
        scores[quantity] = found["score"].to_numpy()
        assert read_manifest(tmp_path / "run")["settings"]["quantity"] == {None: "logit", "contrast": "contrast with the runner-up"}.get(
            quantity, quantity
        )
    assert np.array_equal(scores[None], scores["logit"], equal_nan=True)
    assert not np.allclose(scores["probability"], scores["logit"])
    assert not np.allclose(scores["contrast"], scores["logit"])
    plan = evaluate(model, ["IG"], quantity="probability", dry_run=True)
    assert {"IG", "deletions"} <= set(plan["work"])
