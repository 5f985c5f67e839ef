"""B-cos nets: encoding, explanation mode, published weights."""

import pytest
import torch

from idsds.models import create_model
from idsds.models.bcos import BcosResNet
from tests.models.golden import filled


def test_bcos_contributions_sum_to_the_logit():
    model = create_model("mini_bcos", num_classes=7).double()
    model.load_state_dict(filled(model.state_dict(), "bcos_resnet50"))
    encoded = model.encode(torch.rand(3, 3, 32, 40, dtype=torch.float64)).requires_grad_()
    targets = torch.tensor([2, 0, 6])
    plain = model.classify(encoded).detach()
    with model.explanation_mode():
        logits = model.classify(encoded)
        (rows,) = torch.autograd.grad(logits.gather(1, targets[:, None]).sum(), encoded)
    assert torch.equal(logits, plain)
    assert model.logit_bias == pytest.approx(-torch.log(torch.tensor(6.0)).item())
    # float64: W(x) x is the logit itself, up to rounding.
    sums = (rows * encoded).sum(dim=(1, 2, 3))
    torch.testing.assert_close(sums, logits.gather(1, targets[:, None])[:, 0] - model.logit_bias, rtol=1e-9, atol=1e-9)


def test_bcos_explanation_mode_ends_after_an_error_and_nests():
    model = create_model("mini_bcos")

    def modes():
        return {module.detach for module in model.modules() if hasattr(module, "set_explanation_mode")}

    def fail():
        with model.explanation_mode():
            assert modes() == {True}
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        fail()
    assert modes() == {False}
    with model.explanation_mode():
        with model.explanation_mode():
            pass
        assert modes() == {True}


def test_bcos_encoding_is_differentiable():
    images = torch.rand(2, 3, 4, 5, requires_grad=True)
    encoded = BcosResNet.encode(images)
    assert torch.equal(encoded, torch.cat([images, 1 - images], dim=1))
    encoded[:, 4].sum().backward()
    assert torch.equal(images.grad[:, 1], -torch.ones(2, 4, 5))


@pytest.mark.parametrize("num_classes", [1000, 5])
def test_published_weights_of_bcos(num_classes, monkeypatch):
    published = filled(create_model("bcos_resnet50").state_dict())
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **_: dict(published))
    state = create_model("bcos_resnet50", num_classes=num_classes, pretrained=True).state_dict()
    assert torch.equal(state["conv1.linear.weight"], published["conv1.linear.weight"])
    assert torch.equal(state["fc.linear.weight"], published["fc.linear.weight"]) == (num_classes == 1000)
