"""CAMs of torchcam, against torchcam called directly."""

from __future__ import annotations

import pytest
import torch
import torchcam.methods
from torch import Tensor, nn

from idsds.common.randomness import seeded as generators
from idsds.common.registry import UnknownNameError
from idsds.methods import create_method, libraries
from tests.methods.libraries.nets import TARGETS, small_vit
from tests.methods.nets import images_of, mini


@pytest.mark.parametrize("name", [name for name in libraries.ADAPTERS["torchcam"].NAMES if name != "LeGrad"])
def test_torchcam_called_directly_gives_the_same(name: str) -> None:
    model, images = mini("mini_resnet8"), images_of(2, 16, 24)
    given = {"ISCAM": {"num_samples": 2}, "SSCAM": {"num_samples": 1}, "SmoothGradCAMpp": {"num_samples": 2}, "CAM": {"fc_layer": "fc"}}
    options, layer = given.get(name, {}), ["layer2", "layer3"] if name == "RefineCAM" else "layer3"

    def called(images: Tensor, targets: Tensor) -> Tensor:
        with getattr(torchcam.methods, name)(model, layer, **options) as extractor:
            (cam,) = extractor(targets.tolist(), model(images.clone().requires_grad_()), normalized=False)
        return nn.functional.interpolate(cam.detach()[:, None], size=(16, 24), mode="bilinear", align_corners=False)

    if name in ("SSCAM", "SmoothGradCAMpp"):
        wanted = []
        for number, image_id in enumerate("ab"):
            with generators(0, f"torchcam/{name}", image_id):
                wanted.append(called(images[number : number + 1], TARGETS[number : number + 1]))
        wanted = torch.cat(wanted)
    else:
        wanted = called(images, TARGETS)
    found = create_method(f"torchcam/{name}", model, layer=layer, **options)(images, TARGETS, list("ab"))
    assert wanted.any()
    assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-12)


def test_legrad_called_directly_gives_the_same() -> None:
    model, images = small_vit(), images_of(2, 16, 16)
    with torchcam.methods.LeGrad(model, list(model.encoder.layers)) as extractor:
        (cam,) = extractor(TARGETS.tolist(), model(images.clone().requires_grad_()), normalized=False)
    wanted = nn.functional.interpolate(cam[:, None], size=(16, 16), mode="bilinear", align_corners=False)
    assert torch.allclose(create_method("torchcam/LeGrad", model)(images, TARGETS), wanted.detach(), rtol=1e-10)
    assert wanted.std() > 0
    with pytest.raises(ValueError, match="attention of torchvision's VisionTransformer"):
        create_method("torchcam/LeGrad", mini("mini_vit"))


def test_finer_cam_compares_with_the_classes_that_are_named() -> None:
    model, images = mini("mini_resnet8"), images_of(2, 32, 32)
    found = create_method("torchcam/FinerCAM", model, comparison_idx=[0, 3], base_method="LayerCAM")(images, TARGETS)
    with torchcam.methods.FinerCAM(model, "layer3", base_method=torchcam.methods.LayerCAM) as extractor:
        scores = model(images.clone().requires_grad_())
        (cam,) = extractor(TARGETS.tolist(), scores, comparison_idx=[0, 3], normalized=False)
    wanted = nn.functional.interpolate(cam.detach()[:, None], size=(32, 32), mode="bilinear", align_corners=False)
    assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-14)
    with pytest.raises(UnknownNameError, match="Did you mean 'LayerCAM'"):
        create_method("torchcam/FinerCAM", model, base_method="LayerCam")(images, TARGETS)
