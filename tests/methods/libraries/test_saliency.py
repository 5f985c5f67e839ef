"""Methods of saliency, against that library called directly."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from idsds.methods import create_method
from tests.methods.libraries.nets import net_of_modules
from tests.methods.nets import images_of


def test_guided_ig_called_directly_gives_the_same() -> None:
    pytest.importorskip("saliency")
    import saliency.core

    net, images, targets = net_of_modules(), images_of(2, 6, 8), torch.tensor([0, 3])
    found = create_method("Guided IG", net, x_steps=5)(images, targets)

    def gradient(values: np.ndarray, call_model_args: int, expected_keys: list) -> dict:
        inputs = torch.from_numpy(values).requires_grad_()
        return {expected_keys[0]: torch.autograd.grad(net(inputs)[:, call_model_args].sum(), inputs)[0].numpy()}

    for image, target, one in zip(images, targets, found, strict=True):
        wanted = saliency.core.GuidedIG().GetMask(image.numpy(), gradient, int(target), x_steps=5)
        assert np.allclose(one[0], wanted.sum(0))
