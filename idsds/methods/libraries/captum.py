"""Captum's attribution methods."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import cache
from numbers import Integral
from typing import Any

import torch
from torch import Tensor, nn

from idsds.common.interventions import baseline_images, grid_of, patch_numbers, patch_size
from idsds.common.randomness import Draws, generator
from idsds.methods import graphs
from idsds.methods.base import Passes
from idsds.methods.cam import cam_layer, no_cam_layer, resized
from idsds.methods.libraries.base import LibraryMethod, gradients_needed


@cache
def deeplift_rules() -> frozenset[type]:
    """Return the layer types for which captum's DeepLift has a rule."""
    from captum.attr._core.deep_lift import SUPPORTED_NON_LINEAR

    return frozenset(SUPPORTED_NON_LINEAR)


def is_relu(kind: type) -> bool:
    """Return whether a layer type is a ReLU."""
    return issubclass(kind, nn.ReLU)


#: Why DeepLIFT explains the logit.
BEYOND_RULES = "its layer rules do not reach beyond the logits: for the probability wrap the net, nn.Sequential(net, nn.Softmax(dim=1))"


class Captum(LibraryMethod):
    """A captum attribution method."""

    library = "captum"
    GIVEN = (
        *("self", "model", "forward_func", "layer", "device_ids", "inputs", "target", "additional_forward_args", "show_progress"),
        *("return_convergence_delta", "return_input_shape", "perturbations_per_eval", "internal_batch_size"),
        *("custom_attribution_func", "grad_kwargs"),
    )
    RANDOM = ("KernelShap", "Lime", "ShapleyValueSampling", "GradientShap")
    PERTURBING = ("Occlusion", "KernelShap", "Lime", "ShapleyValueSampling", "FeatureAblation")
    RESCALING = ("DeepLift", "DeepLiftShap")
    OF_LOGIT = dict.fromkeys(RESCALING, BEYOND_RULES)
    GUIDED = ("GuidedBackprop", "Deconvolution")
    DISTRIBUTION = ("DeepLiftShap", "GradientShap")  # explained against several baselines
    NAMES = (
        *RESCALING,
        *PERTURBING,
        *GUIDED,
        *("GradientShap", "InputXGradient", "IntegratedGradients", "Saliency"),
        *("LayerGradCam", "LayerGradientXActivation"),
    )
    REFUSED = {
        "LRP": "it has no rules for reused modules and many layers; zennit's composites do",
        "GuidedGradCam": "use Guided Grad-CAM, which is the same on any net",
        "NoiseTunnel": "it is not a method by itself: see the names that end in -SG, -SG-SQ and -SG-VG",
        "ShapleyValues": "it takes a pass for each subset of the features: use ShapleyValueSampling",
        "FeaturePermutation": "it permutes features between the images of a batch, so a map depends on the batch",
    }

    def calls(self) -> list[Callable[..., Any]]:
        return [self.cls.__init__, self.cls.attribute]

    def added(self) -> dict[str, Any]:
        added: dict[str, Any] = {}
        if self.name in self.PERTURBING:
            added["grid"] = None
        if self.name == "Occlusion":
            added["sliding_window_shapes"] = None
        if self.name in self.DISTRIBUTION:
            added |= {"baselines": None, "baseline_samples": 5}
        if self.of_layer:
            added["layer"] = None
        return added

    @property
    def of_layer(self) -> bool:
        """Whether it reads a layer."""
        return self.name.startswith("Layer")

    @property
    def family(self) -> str:  # type: ignore[override]
        """The family of this method."""
        return "perturbation" if self.name in self.PERTURBING else "CAM" if self.of_layer else "gradient"

    def passes(self, model: nn.Module, **options: Any) -> Passes | None:
        patches = (options.get("grid") or 0) ** 2
        match self.name:
            case "DeepLift":
                return Passes(2, 2)
            case "DeepLiftShap":
                given = options["baselines"]
                return Passes(2, 2).times(options["baseline_samples"] if given is None else len(given))
            case "Occlusion" | "FeatureAblation":
                return Passes(1 + patches) if patches else None
            case "ShapleyValueSampling":
                return Passes(1 + options["n_samples"] * patches) if patches else None
            case "KernelShap" | "Lime":
                return Passes(options["n_samples"])
            case "IntegratedGradients":
                return Passes(1, 1).times(options["n_steps"])
            case "GradientShap":
                return Passes(1, 1).times(options["n_samples"])
        return Passes(1, 1)

    def queries(self, **options: Any) -> dict[str, Any] | None:
        check_of_all_images((self.name,), options)
        names = ("grid", "sliding_window_shapes", "strides", "feature_mask", "baselines")
        grid, window, strides, mask, baseline = (_only(options.get(name)) for name in names)
        if baseline is None or (isinstance(baseline, (int, float, Tensor)) and not torch.as_tensor(baseline).any()):
            baseline = "zeros"
        if self.name not in self.PERTURBING or not isinstance(baseline, str):
            return None
        if grid is not None:
            return {"grid": grid, "baseline": baseline}
        if window is not None:
            strides = (1 if strides is None else strides,) * 3 if strides is None or isinstance(strides, int) else strides
            return {"window": _whole(window), "strides": _whole(strides)[-2:], "baseline": baseline}
        return None if (patches := grid_of(mask)) is None else {**patches, "baseline": baseline}

    def refuses(self, model: nn.Module) -> str | None:
        if self.name in self.RESCALING:
            return graphs.unruled(model, deeplift_rules().__contains__)
        if self.of_layer:
            return no_cam_layer(model)
        if self.name in self.GUIDED and not graphs.has_module(model, is_relu):
            return "it changes the backward pass of ReLUs, and this model has none"
        return None

    def __call__(self, model: nn.Module, images: Tensor, targets: Tensor, *, draws: Draws, batch: int, **options: Any) -> Tensor:
        def explain(images: Tensor, targets: Tensor, draws: Draws) -> Tensor:
            return self.explain(model, images, targets, draws, batch, dict(options))

        # Captum passes images and baselines together.
        size = max(1, batch // self.passes(model, **options).forward) if self.name in self.RESCALING else batch  # type: ignore[union-attr]
        return self.batched(explain, images, targets, draws, size)

    def explain(self, model: nn.Module, images: Tensor, targets: Tensor, draws: Draws, batch: int, options: dict[str, Any]) -> Tensor:
        """Return the maps of some images from one captum call."""
        made = {name: options.pop(name) for name in inspect.signature(self.cls.__init__).parameters if name in options and name != "layer"}
        asked = inspect.signature(self.cls.attribute).parameters
        if "grid" in options and (grid := options.pop("grid")) is not None:
            options |= features(images, grid, "sliding_window_shapes" in asked)
        if self.name == "Occlusion" and options["sliding_window_shapes"] is None:
            raise TypeError("captum/Occlusion needs a value for its option 'grid' or 'sliding_window_shapes'")
        samples = options.pop("baseline_samples", 0)
        if "baselines" in options:
            options["baselines"] = self.baselines(options["baselines"], images, draws, samples)
        if "perturbations_per_eval" in asked:
            options["perturbations_per_eval"] = max(1, batch // len(images))
        if "internal_batch_size" in asked:
            options["internal_batch_size"] = batch
        net, layer = self.net(model), options.pop("layer", None)
        attribution = self.cls(net, model.get_submodule(cam_layer(model, layer)), **made) if self.of_layer else self.cls(net, **made)
        outputs: list[Tensor] = []
        keep = net.register_forward_hook(lambda _module, _inputs, output: outputs.append(output.detach()))
        # DeepLIFT divides differences by differences, which 16 bits do not resolve.
        exact = torch.autocast(images.device.type, enabled=False) if self.name in self.RESCALING else nullcontext()
        with torch.set_grad_enabled(self.name not in self.PERTURBING), exact, keep, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Setting forward, backward hooks")
            warnings.filterwarnings("ignore", message="Input Tensor .* did not already require gradients")
            found = attribution.attribute(gradients_needed(images), target=targets, **options).detach()
        if self.name in self.RESCALING and made["multiply_by_inputs"]:
            pooled = any("MaxPool" in type(module).__name__ for module in net.modules())
            check_complete(self.key, found, outputs[0], targets, exact=not pooled)
        return resized(found, images) if self.of_layer else found

    def net(self, model: nn.Module) -> nn.Module:
        """Return what captum explains: the net, or its graph for rules that hook modules."""
        if self.name in self.RESCALING:
            return graphs.separate(model, deeplift_rules().__contains__)
        return graphs.separate(model, is_relu) if self.name in self.GUIDED else model

    def baselines(self, given: Any, images: Tensor, draws: Draws, samples: int) -> Any:
        """Return baselines given by name or as tensors; methods that take a distribution get uniform noise in [-1, 1]."""
        if given is None and self.name in self.DISTRIBUTION:
            shape = (samples, *images.shape[1:])
            return (2 * torch.rand(shape, generator=generator(draws.seed, "baselines", shape)) - 1).to(images)
        if isinstance(given, str):
            return baseline_images(images, given, seed=draws.seed, image_ids=draws.image_ids)
        return given.to(images) if isinstance(given, Tensor) else given


def _only(given: Any) -> Any:
    """Return the single element of a tuple, which captum also accepts for one input; anything else unchanged."""
    return given[0] if isinstance(given, tuple) and len(given) == 1 else given


def check_of_all_images(kinds: Collection[str], options: Mapping[str, Any]) -> None:
    """Raise ValueError for a mask or baseline per image: images come in an order and in batches that the caller does not know.

    Args:
        kinds: names of the attribution's classes.
    """
    distribution = any(kind in kinds for kind in Captum.DISTRIBUTION)
    for name in ("feature_mask", *(() if distribution else ("baselines",))):
        value = _only(options.get(name))
        if isinstance(value, Tensor) and value.ndim == 4 and len(value) > 1:
            raise ValueError(
                f"{name} {tuple(value.shape)} has one entry per image, but images come in batches and in another order: pass one for all "
                "images, (1, C, H, W), or a function (images, targets, image_ids) that selects each image's own by its id"
            )


def _whole(sides: Sequence[Any]) -> tuple[Any, ...]:
    """Convert sides in pixels to ints where they are numpy's integers, which captum accepts too."""
    return tuple(int(side) if isinstance(side, Integral) else side for side in sides)


def features(images: Tensor, grid: int, sliding: bool) -> dict[str, Any]:
    """Return a grid's patches as captum's features: a window that moves by its own size, or a feature mask."""
    if sliding:
        window = (images.shape[1], *patch_size(*images.shape[-2:], grid))
        return {"sliding_window_shapes": window, "strides": window}
    return {"feature_mask": patch_numbers(images, grid)[None, None]}


def check_complete(name: str, attributions: Tensor, outputs: Tensor, targets: Tensor, exact: bool) -> None:
    """Check that DeepLIFT's attributions sum to the change of the logit, which operations without a rule violate.

    Args:
        outputs: logits of the images, each repeated for its n baselines, followed by those of the baselines, (2 B n, K).
        exact: whether a violation is an error. Captum's rule for max pooling drops part of the change where image and baseline agree.

    Raises:
        ValueError: if ``exact`` and violated; the message names both values.

    Warns:
        RuntimeWarning: if not ``exact`` and violated.
    """
    intact, baseline = outputs.chunk(2)
    times = len(intact) // len(targets)
    moved = (intact - baseline).gather(1, targets.repeat_interleave(times)[:, None]).view(-1, times).mean(1)
    total, size = attributions.flatten(1).sum(1), attributions.flatten(1).abs().sum(1)
    wrong = (total - moved).abs() > 0.05 * moved.abs() + 1e-3 * size
    if outputs.dtype not in (torch.float32, torch.float64) or not wrong.any():
        return
    first = int(wrong.nonzero()[0])
    sums = (
        f"for {int(wrong.sum())} of {len(targets)} images its attributions do not sum to the change of the logit (the first: "
        f"{total[first]:.4g}, not {moved[first]:.4g})"
    )
    if exact:
        raise ValueError(f"{name} does not hold on this net: {sums}; the net has an operation that DeepLIFT has no rule for")
    warnings.warn(f"{name}: {sums}; captum's rule for max pooling is not exact", RuntimeWarning, stacklevel=2)
