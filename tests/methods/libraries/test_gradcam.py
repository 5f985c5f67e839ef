"""CAMs of pytorch-grad-cam, against that library called directly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import idsds
from idsds.common.randomness import seeded as generators
from idsds.methods import create_method, libraries
from tests.methods.libraries.nets import TARGETS, Last
from tests.methods.nets import images_of, mini, seeded


@pytest.mark.parametrize("name", libraries.ADAPTERS["gradcam"].NAMES)
def test_pytorch_grad_cam_called_directly_gives_the_same(name: str) -> None:
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images = mini("mini_resnet8", torch.float32), images_of(2, 32, 32, torch.float32)
    names = {"FullGrad": [], "RefineCAM": ["layer2", "layer3"]}.get(name, ["layer3"])
    made = {"num_scales": 2} if name == "SESS" else {}

    def called(images: Tensor, targets: Tensor) -> Tensor:
        cam = getattr(grad_cam, name)(model, [model.get_submodule(name) for name in names], **made)
        wanted = [ClassifierOutputTarget(t) for t in targets.tolist()]
        images = images.clone().requires_grad_()
        return torch.from_numpy(cam(images, None, target_idx=int(targets)) if name == "FinerCAM" else cam(images, wanted))[:, None]

    if name in ("RandomCAM", "FinerCAM"):
        wanted = []
        for number, image_id in enumerate("cd"):  # whose random weights do not sum to a map of zeros
            with generators(0, f"gradcam/{name}", image_id):
                wanted.append(called(images[number : number + 1], TARGETS[number : number + 1]))
        wanted = torch.cat(wanted)
    else:
        wanted = called(images, TARGETS)
    options = made | ({"layer": names} if len(names) > 1 else {})
    found = create_method(f"gradcam/{name}", model, **options)(images, TARGETS, list("cd"))
    assert torch.allclose(found, wanted.detach(), atol=1e-5)
    assert wanted.std() > 0


def test_smoothing_by_principal_components_is_an_option_of_the_call() -> None:
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    model, images = mini("mini_resnet8", torch.float32), images_of(2, 32, 32, torch.float32)
    with grad_cam.GradCAM(model, [model.layer3]) as cam:
        wanted = cam(images, [ClassifierOutputTarget(t) for t in TARGETS.tolist()], eigen_smooth=True)
    found = create_method("gradcam/GradCAM", model, eigen_smooth=True)(images, TARGETS)
    assert torch.allclose(found[:, 0], torch.from_numpy(wanted), atol=1e-5)
    assert not torch.allclose(found, create_method("gradcam/GradCAM", model)(images, TARGETS), atol=1e-2)


def test_ablation_cam_does_not_depend_on_the_images_per_pass() -> None:
    """What it puts in a channel's place adds up within a batch, where a layer has negative values."""
    pytest.importorskip("pytorch_grad_cam")
    model, images = mini("mini_densenet", torch.float32), images_of(2, 32, 32, torch.float32)
    few, many = (create_method("Ablation-CAM", model) for _ in range(2))
    few.batch, many.batch = 2, 128
    assert torch.allclose(few(images, TARGETS), many(images, TARGETS), atol=1e-6)


@pytest.mark.parametrize("name", ["AblationCAM", "ShapleyCAM"])
def test_cams_that_read_channels_first_alone_refuse_others(name: str) -> None:
    pytest.importorskip("pytorch_grad_cam")
    method = create_method(f"gradcam/{name}", seeded(Last), layer="norm")
    with pytest.raises(ValueError, match="it reads the CAM layer's second dimension as channels"):
        method(images_of(2, 8, 8), TARGETS)


def test_full_grad_refuses_biases_that_it_does_not_read() -> None:
    pytest.importorskip("pytorch_grad_cam")
    with pytest.raises(ValueError, match="this model has biases of BatchNormAct2d"):
        create_method("FullGrad", idsds.create_model("timm/mobilenetv3_small_050", num_classes=2))
    with pytest.raises(ValueError, match="biases of LayerNorm"):
        create_method("FullGrad", seeded(Last))


def test_ablation_cam_gives_the_layer_back_when_it_fails() -> None:
    pytest.importorskip("pytorch_grad_cam")
    model, calls = mini("mini_resnet8"), []
    layer = model.layer3

    def fail(_module: nn.Module, _inputs: object) -> None:
        calls.append(1)
        if len(calls) > 2:
            raise KeyError("simulated")

    model.register_forward_pre_hook(fail)
    with pytest.raises(KeyError):
        create_method("Ablation-CAM", model)(images_of(2, 32, 32), TARGETS)
    assert model.layer3 is layer
