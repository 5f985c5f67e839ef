"""Methods of libraries by name: what the library gives when it is called directly, for a batch as one by one."""

from __future__ import annotations

import subprocess
import sys
import warnings

import captum.attr
import numpy as np
import pytest
import torch
import torchcam.methods
import torchvision
from torch import Tensor, nn

import idsds
from idsds.common.interventions import patch_numbers
from idsds.common.randomness import seeded as generators
from idsds.common.registry import UnknownNameError
from idsds.methods import METHODS, create_method, libraries, list_methods
from idsds.methods.libraries import PLAIN, MissingLibraryError, base
from idsds.models import describe
from tests.methods.nets import ConvNet, Linear, images_of, mini, seeded

EXTRAS = {"zennit": "zennit", "gradcam": "pytorch_grad_cam", "saliency": "saliency"}
# What these ask for beside a model; few samples, so that the tests are fast.
OPTIONS = {
    **{f"captum/{name}": {"grid": 4} for name in ("Occlusion", "FeatureAblation")},
    **{f"captum/{name}": {"grid": 4, "n_samples": 20} for name in ("KernelShap", "Lime")},
    "captum/ShapleyValueSampling": {"grid": 4, "n_samples": 2},
    "captum/IntegratedGradients": {"n_steps": 3},
    "torchcam/SSCAM": {"num_samples": 1},
    "torchcam/ISCAM": {"num_samples": 1},
    "zennit/EpsilonGammaBox": {"low": -1.0, "high": 1.0},
    "saliency/GuidedIG": {"x_steps": 4},
    "saliency/BlurIG": {"steps": 4},
    "torchcam/RefineCAM": {"layer": ["cam layer", "first"]},
    "gradcam/RefineCAM": {"layer": ["cam layer", "first"]},
    "gradcam/SESS": {"num_scales": 2},
}
NETS = ("mini_resnet8", "mini_vgg11_bn", "mini_densenet")
FIRST = {"mini_resnet8": "layer2", "mini_vgg11_bn": "features.4", "mini_densenet": "features.denseblock1"}
TARGETS = torch.tensor([1, 7])


def needs(library: str) -> None:
    if library in EXTRAS:
        pytest.importorskip(EXTRAS[library])


def net_of_modules() -> nn.Sequential:
    """Every ReLU is a module of its own, as captum wants it; the weights are those of :func:`seeded` ``ConvNet``."""
    net = seeded(ConvNet)
    return nn.Sequential(net.conv1, nn.ReLU(), net.conv2, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), net.fc).eval()


NAMES = [f"{library}/{name}" for library, adapter in libraries.ADAPTERS.items() for name in adapter.NAMES]


def options_of(name: str, model: nn.Module) -> dict:
    """The options of :data:`OPTIONS`, with two layers of the model."""
    options = dict(OPTIONS.get(name, {}))
    if "layer" in options:
        options["layer"] = [FIRST[describe(model).name], describe(model).cam_layer]
    return options


def small_vit(height: int = 16, width: int = 16) -> nn.Module:
    """torchvision's, of two blocks."""
    options = {"patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32, "num_classes": 10}
    net = seeded(torchvision.models.VisionTransformer, image_size=16, **options)
    nn.init.normal_(net.heads.head.weight)
    return net


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_images_one_by_one_and_leaves_the_net_as_it_was(name: str) -> None:
    needs(name.partition("/")[0])
    ids, ran = ["a", "b"], 0
    for net in (*NETS, "vit"):
        model = small_vit() if net == "vit" else mini(net)
        images = images_of(2, 16, 16) if net == "vit" else images_of(2, 32, 32)
        if (net == "vit") != (name == "torchcam/LeGrad") or METHODS[name].inapplicable(model):
            continue
        state = {key: value.clone() for key, value in model.state_dict().items()}
        kinds = {key: type(module) for key, module in model.named_modules()}
        gradient = torch.ones_like(next(model.parameters()))
        next(model.parameters()).grad = gradient
        method = create_method(name, model, seed=3, **options_of(name, model))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*max pooling")
            maps = method(images, TARGETS, ids)
            alone = torch.cat([method(images[i : i + 1], TARGETS[i : i + 1], ids[i : i + 1]) for i in (1, 0)]).flip(0)
        # pytorch-grad-cam works in float32; LRP divides by values near 0.
        tolerance = 1e-4 if name.startswith(("gradcam", "zennit")) else 1e-8
        assert ((maps - alone).abs() <= tolerance * maps.abs().amax((1, 2, 3), keepdim=True)).all()
        assert maps.shape == (2, 1, *images.shape[-2:])
        assert maps.isfinite().all()
        assert next(model.parameters()).grad is gradient
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert {key: type(module) for key, module in model.named_modules()} == kinds
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert not any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in model.modules())
        ran += 1
    assert ran


@pytest.mark.parametrize(
    ("name", "make", "options"),
    [
        ("captum/DeepLift", captum.attr.DeepLift, {}),
        ("captum/InputXGradient", captum.attr.InputXGradient, {}),
        ("captum/Saliency", captum.attr.Saliency, {}),
        ("captum/IntegratedGradients", captum.attr.IntegratedGradients, {"n_steps": 7}),
        ("captum/GuidedBackprop", captum.attr.GuidedBackprop, {}),
        ("captum/Deconvolution", captum.attr.Deconvolution, {}),
        ("captum/Occlusion", captum.attr.Occlusion, {"sliding_window_shapes": (3, 3, 2), "strides": (3, 2, 2)}),
        ("captum/FeatureAblation", captum.attr.FeatureAblation, {"feature_mask": torch.arange(48).view(1, 1, 6, 8) // 7}),
    ],
)
def test_captum_called_directly_gives_the_same(name: str, make: type, options: dict) -> None:
    net, images, targets = net_of_modules(), images_of(3, 6, 8), torch.tensor([0, 3, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = make(net).attribute(images.clone().requires_grad_(), target=targets, **options).sum(1, keepdim=True)
        found = create_method(name, net, **options)(images, targets)
    tolerance = 1e-10 if wanted.dtype == torch.float64 else 1e-6  # captum sums windows in float32
    assert torch.allclose(found, wanted.detach().double(), rtol=tolerance, atol=tolerance / 100)


@pytest.mark.parametrize("name", ["KernelShap", "Lime", "ShapleyValueSampling"])
def test_captums_random_methods_with_the_same_generator(name: str) -> None:
    net, images, targets = net_of_modules(), images_of(2, 6, 8), torch.tensor([0, 3])
    mask = (torch.arange(6)[:, None] // 3 * 2 + torch.arange(8) // 4)[None, None]
    found = create_method(f"captum/{name}", net, seed=5, grid=2, n_samples=12)(images, targets, ["x", "y"])
    for number, image_id in enumerate(("x", "y")):
        some = slice(number, number + 1)
        with generators(5, f"captum/{name}", image_id), torch.no_grad():
            wanted = getattr(captum.attr, name)(net).attribute(images[some], target=targets[some], feature_mask=mask, n_samples=12)
        assert torch.allclose(found[some], wanted.sum(1, keepdim=True).double(), rtol=1e-6, atol=1e-8)


def test_random_methods_are_keyed_and_leave_the_global_generators_alone() -> None:
    net, image, target = net_of_modules(), images_of(1, 6, 8), torch.tensor([1])
    torch.manual_seed(4)
    np.random.seed(4)
    first = create_method("Shapley", net, grid=2, n_samples=1)(image, target, ["a"])
    drawn = torch.rand(()), np.random.rand()
    torch.manual_seed(4)
    np.random.seed(4)
    assert drawn == (torch.rand(()), np.random.rand())
    assert torch.equal(first, create_method("Shapley", net, grid=2, n_samples=1)(image, target, ["a"]))
    others = [create_method("Shapley", net, seed=seed, grid=2, n_samples=1)(image, target, [i]) for seed, i in ((1, "a"), (0, "b"))]
    assert any(not torch.equal(first, other) for other in others)


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


@pytest.mark.parametrize("library", ["torchcam", "gradcam"])
def test_refine_cam_wants_layers_and_reads_each_in_its_own_order(library: str) -> None:
    needs(library)
    model, images = mini("mini_resnet8", torch.float32), images_of(2, 32, 32, torch.float32)
    with pytest.raises(TypeError, match="'layer' needs two names or more"):
        create_method(f"{library}/RefineCAM", model)(images, TARGETS)
    with pytest.raises(UnknownNameError, match="Did you mean 'layer3' or 'layer2'"):
        create_method(f"{library}/RefineCAM", model, layer=["layer", "layer3"])(images, TARGETS)
    with pytest.raises(TypeError, match="reads one layer"):
        create_method(f"{library}/GradCAM", model, layer=["layer2", "layer3"])(images, TARGETS)


@pytest.mark.parametrize("name", ["captum/LRP", "gradcam/DeepFeatureFactorization", "saliency/XRAI"])
def test_what_is_refused_is_named_with_the_reason(name: str) -> None:
    names = list_methods(library=name.partition("/")[0])
    assert name not in names
    with pytest.raises(ValueError, match=f"{name} does not apply to") as error:
        create_method(name, mini("mini_resnet8"))
    assert names.excluded[name] in str(error.value)


@pytest.mark.parametrize("library", ["captum", "torchcam", "gradcam", "saliency"])
def test_every_class_of_a_library_that_explains_is_a_method_or_refused(library: str) -> None:
    needs(library)
    module = base.library(library)
    explains = {
        "captum": lambda c: hasattr(c, "attribute") and not c.__name__.startswith(("Neuron", "Internal")) and "LLM" not in c.__name__,
        "torchcam": lambda c: hasattr(c, "compute_cams"),
        "gradcam": lambda c: hasattr(c, "forward") and c.__name__ not in ("GuidedBackpropReLU",) and "Layer" not in c.__name__,
        "saliency": lambda c: hasattr(c, "GetMask") and c.__name__ != "CoreSaliency",
    }[library]
    found = {name for name, value in vars(module).items() if isinstance(value, type) and explains(value)}
    abstract = {name for name in found if name.endswith(("Attribution", "Base")) or name.startswith("_")}
    layers = {name for name in found if name.startswith("Layer") and library == "captum"}
    assert {f"{library}/{name}" for name in found - abstract - layers} <= set(METHODS.names_of(library))


@pytest.mark.parametrize("name", ["EpsilonPlus", "EpsilonPlusFlat", "EpsilonAlpha2Beta1"])
def test_zennit_with_its_own_canonizer_for_resnets_gives_the_same(name: str) -> None:
    pytest.importorskip("zennit")
    from zennit import composites
    from zennit.attribution import Gradient
    from zennit.torchvision import ResNetCanonizer

    model, images = mini("mini_resnet8"), images_of(2, 32, 32)
    found = create_method(f"zennit/{name}", model)(images, TARGETS)
    with Gradient(model, getattr(composites, name)(canonizers=[ResNetCanonizer()])) as attributor:
        _, wanted = attributor(images.clone(), lambda output: output.detach() * nn.functional.one_hot(TARGETS, 10))
    assert torch.allclose(found, wanted.sum(1, keepdim=True).detach(), rtol=1e-6, atol=1e-9 * float(wanted.detach().abs().max()))


def test_lrp_shares_out_the_logit_of_a_net_without_biases() -> None:
    pytest.importorskip("zennit")
    model, images = mini("mini_x_resnet8"), images_of(2, 32, 32)
    logits = model(images).gather(1, TARGETS[:, None])[:, 0]
    assert torch.allclose(create_method("LRP", model)(images, TARGETS).sum((1, 2, 3)), logits.detach(), rtol=1e-3)


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


@pytest.mark.parametrize("relu", ["module", "in place", "functional"])
def test_deeplift_on_reused_and_functional_relus_is_deeplift_on_modules(relu: str) -> None:
    images, targets = images_of(3, 6, 8), torch.tensor([0, 3, 1])
    wanted = create_method("DeepLIFT", net_of_modules())(images, targets)
    found = create_method("DeepLIFT", seeded(ConvNet, relu=relu))(images, targets)
    assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-14)


def test_deeplift_of_a_linear_net_is_weight_times_difference() -> None:
    net, images = seeded(Linear), images_of(2, 6, 4)
    found = create_method("DeepLIFT", net, baselines=0.25)(images, TARGETS % 3)
    wanted = net.fc.weight[TARGETS % 3].view_as(images) * (images - 0.25)
    assert torch.allclose(found, wanted.sum(1, keepdim=True))


def test_deepshap_is_deeplift_averaged_over_baselines() -> None:
    net, images, targets = seeded(ConvNet), images_of(2, 6, 8), torch.tensor([0, 3])
    baselines = images_of(3, 6, 8, seed=5)
    each = [create_method("DeepLIFT", net, baselines=baseline[None])(images, targets) for baseline in baselines]
    assert torch.allclose(create_method("DeepSHAP", net, baselines=baselines)(images, targets), torch.stack(each).mean(0))


class Wave(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.erf(self.conv(3 * x)).mean((2, 3)))


def test_deeplift_that_does_not_sum_to_what_the_logit_moves_by_is_an_error() -> None:
    with pytest.raises(ValueError, match="do not sum to the change of the logit"):
        create_method("DeepLIFT", seeded(Wave))(images_of(2, 6, 8), torch.tensor([0, 2]))


def test_deeplift_warns_where_captums_rule_for_pooling_is_not_exact() -> None:
    with pytest.warns(RuntimeWarning, match="max pooling is not exact"):
        create_method("DeepLIFT", mini("mini_vgg11_bn"), baselines=images_of(1, 32, 32, seed=9))(images_of(2, 32, 32), TARGETS)


@pytest.mark.parametrize(
    ("name", "net", "reason"),
    [
        ("DeepLIFT", "mini_efficientnet", "no rule for the SiLU"),
        ("DeepLIFT", "mini_vit", "no rule for"),
        ("DeepLIFT", "mini_bcos", "cannot write this net as a graph"),
        ("Score-CAM", "mini_vit", "convolutional layer"),
        ("torchcam/CAM", "mini_vgg11", "only linear layer"),
    ],
)
def test_a_method_says_why_it_does_not_apply(name: str, net: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        create_method(name, mini(net))


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


def test_names_are_listed_without_importing_the_optional_libraries() -> None:
    code = (
        "import sys, idsds; names = [n for l in ('zennit', 'gradcam', 'saliency') for n in idsds.list_methods(library=l)];"
        "assert {'LRP', 'zennit/EpsilonPlus', 'Eigen-CAM', 'Guided IG'} <= set(names);"
        "assert not {'LRP', 'zennit/EpsilonPlus'} & set(idsds.list_methods());"
        "assert {'DeepLIFT', 'KernelSHAP', 'Score-CAM'} <= set(idsds.list_methods());"
        "assert not {'zennit', 'pytorch_grad_cam', 'saliency'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_library_that_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(base.SOURCES, "zennit", ("there_is_no_zennit", "zennit", "zennit"))
    base.library.cache_clear()
    try:
        model = mini("mini_resnet8")
        with pytest.raises(MissingLibraryError, match=r"pip install 'idsds\[zennit\]'"):
            create_method("LRP", model)
        with pytest.raises(MissingLibraryError, match=r"idsds\[zennit\]"):
            idsds.evaluate(["mini_resnet8"], ["zennit/EpsilonPlus"], "digits", images=2, progress=False)
        assert "idsds[zennit]" in list_methods(model, library="zennit").excluded["LRP"]
    finally:
        base.library.cache_clear()


def test_unknown_names_and_options_name_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"'captum/DeepLfit'. Did you mean 'captum/DeepLift'"):
        create_method("captum/DeepLfit", mini("mini_resnet8"))
    with pytest.raises(UnknownNameError, match="Did you mean 'KernelSHAP'"):
        create_method("KernelShap", mini("mini_resnet8"))
    with pytest.raises(UnknownNameError, match="Did you mean 'n_samples'"):
        create_method("KernelSHAP", mini("mini_resnet8"), nsamples=5)
    with pytest.raises(TypeError, match="'grid' or 'sliding_window_shapes'"):
        create_method("captum/Occlusion", mini("mini_resnet8"))(images_of(1, 32, 32), TARGETS[:1])
    with pytest.raises(UnknownNameError, match="library"):
        list_methods(library="captun")


def test_plain_names_are_known_and_have_a_source() -> None:
    for name in PLAIN:
        assert METHODS[name].source
        assert METHODS[name].family in ("gradient", "CAM", "perturbation")


def test_evaluate_takes_them_by_name(checkpoint) -> None:
    wanted = {"DeepLIFT": None, "captum/InputXGradient": None, "small": ("KernelSHAP", {"n_samples": 30}), "Occlusion abs": None}
    records = idsds.evaluate(
        ["mini_resnet8"], wanted, "digits", images=3, checkpoints={"mini_resnet8": checkpoint}, device="cpu", progress=False
    )
    assert set(records["method"]) == set(wanted)
    assert records["score"].notna().all()
    again = idsds.evaluate(
        ["mini_resnet8"], ["IxG"], "digits", images=3, checkpoints={"mini_resnet8": checkpoint}, device="cpu", progress=False
    )
    assert np.allclose(records[records["method"] == "captum/InputXGradient"]["score"], again["score"])


def test_a_method_that_has_queried_the_judging_deletions_is_a_ceiling(checkpoint) -> None:
    wanted = {
        "Occlusion": None,
        "Occlusion 8": ("Occlusion", {"grid": 8}),
        "blurred": ("captum/FeatureAblation", {"grid": 4, "baselines": "blur"}),
        "window": ("captum/Occlusion", {"sliding_window_shapes": (3, 5, 5)}),
        "Gradient": None,
        "Occlusion abs": None,
    }
    arguments = {"dataset": "digits", "images": 3, "checkpoints": {"mini_resnet8": checkpoint}, "device": "cpu", "progress": False}
    records = idsds.evaluate(["mini_resnet8"], wanted, **arguments, grid=[4, 8])
    found = set(zip(records["method"], records["grid"], strict=True)) - set(
        records.loc[~records["ceiling"], ["method", "grid"]].itertuples(index=False, name=None)
    )
    assert found == {("Occlusion", 4), ("Occlusion abs", 4), ("Occlusion 8", 8)}
    assert np.allclose(records[(records["method"] == "Occlusion") & (records["grid"] == 4)]["score"], 1)
    table = idsds.rank(records)
    assert set(table.loc[table["ceiling"], ["method", "grid"]].itertuples(index=False, name=None)) == found
    assert table["ceiling"].dtype == bool
    for baseline in ("blur", "blur 51 41", "blur 51 41.0"):  # one blur by three names
        blurred = idsds.evaluate(["mini_resnet8"], {"blurred": wanted["blurred"], "Occlusion": None}, **arguments, baseline=baseline)
        assert set(blurred.loc[blurred["ceiling"], "method"]) == {"blurred"}
    other = idsds.evaluate(["mini_resnet8"], {"blurred": wanted["blurred"]}, **arguments, baseline="blur 51 40")
    assert not other["ceiling"].any()


def test_a_users_own_windows_on_the_judging_patches_are_a_ceiling_and_others_are_not(checkpoint) -> None:
    """Occlusion by windows that are the patches scores 1. The package's methods, and captum's objects on the user's net, at 32 x 32."""
    net = idsds.create_model("mini_resnet8", num_classes=10, checkpoint=checkpoint)
    patches = patch_numbers(torch.zeros(1, 3, 32, 32), 4)
    moved = torch.full((32, 32), 99)
    moved[4:28, 4:28] = patch_numbers(torch.zeros(1, 3, 24, 24), 3)
    window, object_ = {"sliding_window_shapes": (3, 8, 8)}, captum.attr.Occlusion(net)
    exact = {  # judged by the grid of 4
        "windows": ("Occlusion", {"grid": None, **window, "strides": (3, 8, 8)}),
        "windows of zeros": ("captum/Occlusion", {**window, "strides": 8, "baselines": torch.zeros(1, 3, 32, 32)}),
        "windows of numpy": ("captum/Occlusion", {"sliding_window_shapes": (3, *np.array([8, 8])), "strides": (3, *np.array([8, 8]))}),
        "object": (object_, {**window, "strides": (3, 8, 8)}),
        "mask": ("captum/FeatureAblation", {"feature_mask": 7 - patches[None, None]}),
        "mask of channels": (captum.attr.FeatureAblation(net), {"feature_mask": patches.expand(1, 3, -1, -1)}),
    }
    seen = {
        "SHAP": ("captum/KernelShap", {"feature_mask": patches[None, None], "n_samples": 30}),
        "Shapley": (captum.attr.ShapleyValueSampling(net), {"feature_mask": patches, "n_samples": 2}),
        "overlapping": ("captum/Occlusion", {**window, "strides": (1, 4, 2)}),  # queries the patches among others
    }
    others = {
        "smaller": ("captum/Occlusion", {"sliding_window_shapes": (3, 4, 4), "strides": 4}),
        "one channel": (object_, {"sliding_window_shapes": (1, 8, 8), "strides": (1, 8, 8)}),
        "wide": ("captum/Occlusion", {"sliding_window_shapes": (3, 8, 16), "strides": (3, 8, 16)}),
        "never on a patch": ("captum/Occlusion", {**window, "strides": (3, 5, 5)}),
        "grey": ("captum/Occlusion", {**window, "strides": 8, "baselines": 0.5}),
        "noise": (object_, {**window, "strides": 8, "baselines": torch.ones(1, 3, 32, 32)}),
        "stripes": ("captum/FeatureAblation", {"feature_mask": patches[None, None] // 4}),
        "channels": ("captum/FeatureAblation", {"feature_mask": torch.stack([patches, patches + 16, patches])[None]}),
        "moved": ("captum/FeatureAblation", {"feature_mask": moved[None, None]}),
        "permuted": (captum.attr.FeaturePermutation(net), {"feature_mask": patches[None, None]}),
        "tunnel": (captum.attr.NoiseTunnel(captum.attr.Saliency(net)), {"nt_samples": 1, "nt_type": "smoothgrad"}),
    }
    arguments = {"dataset": "digits", "images": 2, "device": "cpu", "progress": False}
    records = idsds.evaluate({"own": net}, {**exact, **seen, **others}, **arguments, normalisation=(0.5, 0.5))
    assert set(records.loc[records["ceiling"], "method"]) == {*exact, *seen}
    scores = records.groupby("method")["score"].mean()
    assert scores[[*exact]].to_numpy() == pytest.approx(1)
    assert scores[["smaller", "wide", "stripes", "moved"]].max() < 0.999
    beside = idsds.evaluate({"own": net}, {**exact, **seen, **others}, **arguments, normalisation=(0.5, 0.5), offset=4)
    assert set(beside.loc[beside["ceiling"], "method"]) == {"moved", "overlapping"}
    assert beside.loc[beside["method"] == "moved", "score"].to_numpy() == pytest.approx(1)


@pytest.mark.parametrize(
    ("kind", "name"), [("FeatureAblation", "feature_mask"), ("FeatureAblation", "baselines"), ("IntegratedGradients", "baselines")]
)
def test_masks_and_baselines_per_image_are_refused(checkpoint, kind: str, name: str) -> None:
    """Images come in the engine's order, so that one image would get another's."""
    net = idsds.create_model("mini_resnet8", num_classes=10, checkpoint=checkpoint)
    options = {name: patch_numbers(torch.zeros(1, 3, 32, 32), 4).expand(2, 1 if name == "feature_mask" else 3, -1, -1)}
    for thing in (f"captum/{kind}", getattr(captum.attr, kind)(net)):
        with pytest.raises(ValueError, match=rf"{name} \(2, ., 32, 32\) has one entry per image"):
            idsds.evaluate({"own": net}, {"mine": (thing, options)}, "digits", images=2, progress=False)


def test_attn_lrp_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"AttnLRP does not apply to .*: no library has its rules for the ViTs of timm or torchvision"):
        create_method("AttnLRP", idsds.create_model("mini_resnet8"))
    assert "AttnLRP" not in list_methods()


def test_ablation_cam_does_not_depend_on_the_images_per_pass() -> None:
    """What it puts in a channel's place adds up within a batch, where a layer has negative values."""
    pytest.importorskip("pytorch_grad_cam")
    model, images = mini("mini_densenet", torch.float32), images_of(2, 32, 32, torch.float32)
    few, many = (create_method("Ablation-CAM", model) for _ in range(2))
    few.batch, many.batch = 2, 128
    assert torch.allclose(few(images, TARGETS), many(images, TARGETS), atol=1e-6)


class Last(nn.Module):
    """A layer of as many channels as rows, which are last: read in the wrong order it would not be noticed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 1), nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x).permute(0, 2, 3, 1)).relu().mean((1, 2)))


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
