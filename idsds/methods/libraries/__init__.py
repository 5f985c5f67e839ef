"""Methods of captum, torchcam, zennit, pytorch-grad-cam and saliency by name, for example ``captum/DeepLift`` or ``gradcam/EigenCAM``.

Each name stands for the library's own class; its options are those of the class's constructor and of its attribution call. Added here:

* ``layer`` defaults to the CAM layer of the model's entry;
* ``grid`` makes perturbation methods use the patches of a grid as features, in place of a feature mask or sliding window;
* ``baselines`` may be a name from :func:`idsds.common.interventions.list_baselines`;
* random numbers are keyed by (seed, method, image id): since the libraries draw from global generators, these methods explain one image
    at a time, with the generators seeded for each;
* for module-based rules (DeepLIFT, LRP, captum's guided methods), each call of a nonlinearity is a separate module
    (:mod:`idsds.methods.graphs`).

The most common ones have plain names. A library is imported when one of its methods is used, not to list names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from idsds.methods.base import METHODS, MethodEntry
from idsds.methods.libraries.base import SOURCES, LibraryMethod, MissingLibraryError
from idsds.methods.libraries.captum import Captum
from idsds.methods.libraries.gradcam import GradCam
from idsds.methods.libraries.saliency import Saliency
from idsds.methods.libraries.torchcam import Torchcam
from idsds.methods.libraries.zennit import Zennit

ADAPTERS: dict[str, type[LibraryMethod]] = {kind.library: kind for kind in (Captum, Torchcam, Zennit, GradCam, Saliency)}


def entry_of(key: str, name: str = "", options: Mapping[str, Any] | None = None, source: str = "") -> MethodEntry:
    """Return the entry of ``library/Name``, or of a plain name that stands for it with some options."""
    home, _, local = key.partition("/")
    method = ADAPTERS[home](local)
    if reason := method.REFUSED.get(local):
        return refusal(key, method.family, reason, f"{SOURCES[home][1]}: {local}")
    return MethodEntry(
        name=name or key,
        function=method,
        family=method.family,
        options=dict(options or {}),
        passes=method.passes,
        noise=key,
        inapplicable=method.inapplicable,
        queries=method.queries,
        explains_not=method.explains_not,
        source=source or f"{SOURCES[home][1]}: {local}",
    )


#: For each plain name: the method it stands for, its options, and the paper.
PLAIN: Mapping[str, tuple[str, Mapping[str, Any], str]] = {
    "DeepLIFT": ("captum/DeepLift", {}, "Shrikumar et al., ICML 2017 (rescale rule)"),
    "DeepSHAP": ("captum/DeepLiftShap", {}, "Lundberg and Lee, NeurIPS 2017; Chen et al., Nature Communications 2022"),
    "Occlusion": ("captum/Occlusion", {"grid": 4, "baselines": "zeros"}, "Zeiler and Fergus, ECCV 2014"),
    "KernelSHAP": ("captum/KernelShap", {"grid": 4, "baselines": "zeros", "n_samples": 100}, "Lundberg and Lee, NeurIPS 2017"),
    "LIME": ("captum/Lime", {"grid": 4, "baselines": "zeros", "n_samples": 100}, "Ribeiro et al., KDD 2016"),
    "Shapley": ("captum/ShapleyValueSampling", {"grid": 4, "baselines": "zeros", "n_samples": 10}, "Strumbelj and Kononenko, 2010"),
    "Score-CAM": ("torchcam/ScoreCAM", {}, "Wang et al., CVPR Workshops 2020"),
    "SS-CAM": ("torchcam/SSCAM", {}, "Wang et al., 2020 (SS-CAM)"),
    "IS-CAM": ("torchcam/ISCAM", {}, "Naidu et al., 2020 (IS-CAM)"),
    "LRP": ("zennit/EpsilonPlus", {}, "Bach et al., PLoS ONE 2015; Montavon et al., Pattern Recognition 2017"),
    "Ablation-CAM": ("gradcam/AblationCAM", {}, "Desai and Ramaswamy, WACV 2020"),
    "Eigen-CAM": ("gradcam/EigenCAM", {}, "Muhammad and Yeasin, IJCNN 2020"),
    "HiRes-CAM": ("gradcam/HiResCAM", {}, "Draelos and Carin, 2020 (HiResCAM)"),
    "FullGrad": ("gradcam/FullGrad", {}, "Srinivas and Fleuret, NeurIPS 2019"),
    "Guided IG": ("saliency/GuidedIG", {}, "Kapishnikov et al., CVPR 2021"),
}


#: Why there is no AttnLRP: only lxt implements its rules.
NO_ATTN_LRP = (
    "no library has its rules for the ViTs of timm or torchvision: those of lxt 2.1 for torchvision's are CP-LRP's, which stop relevance "
    "at queries and keys, and are set for the whole process. CheferLRP explains ViTs here, and a callable of your own is taken as it is"
)


def refusal(name: str, family: str, reason: str, source: str) -> MethodEntry:
    """Return the entry of a method that applies to no model, with the reason."""

    def refused(model: nn.Module, images: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError(reason)

    return MethodEntry(name, refused, family, refused=reason, inapplicable=lambda _model: reason, source=source)


def _register() -> None:
    for home, kind in ADAPTERS.items():
        METHODS.add_library(home, lambda kind=kind: (*kind.NAMES, *kind.REFUSED), entry_of)  # type: ignore[misc]
    for name, (key, options, source) in PLAIN.items():
        extra = SOURCES[key.partition("/")[0]][2]
        METHODS.add(name, entry_of(key, name, options, source), listed=not extra)
    METHODS.add("AttnLRP", refusal("AttnLRP", "transformer", NO_ATTN_LRP, "Achtibat et al., ICML 2024"), listed=False)


_register()
