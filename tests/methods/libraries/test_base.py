"""Methods of libraries by name: what the library gives when it is called directly, for a batch as one by one."""

from __future__ import annotations

import subprocess
import sys
import warnings

import captum.attr
import numpy as np
import pytest
import torch
from torch import nn

import idsds
from idsds.common.interventions import patch_numbers
from idsds.common.registry import UnknownNameError
from idsds.methods import METHODS, create_method, libraries, list_methods
from idsds.methods.libraries import PLAIN, MissingLibraryError, base
from idsds.models import describe
from tests.methods.libraries.nets import TARGETS, needs, small_vit
from tests.methods.nets import images_of, mini

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


NAMES = [f"{library}/{name}" for library, adapter in libraries.ADAPTERS.items() for name in adapter.NAMES]


def options_of(name: str, model: nn.Module) -> dict:
    """The options of :data:`OPTIONS`, with two layers of the model."""
    options = dict(OPTIONS.get(name, {}))
    if "layer" in options:
        options["layer"] = [FIRST[describe(model).name], describe(model).cam_layer]
    return options


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


def test_attn_lrp_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"AttnLRP does not apply to .*: no library has its rules for the ViTs of timm or torchvision"):
        create_method("AttnLRP", idsds.create_model("mini_resnet8"))
    assert "AttnLRP" not in list_methods()
