"""Every method that says it applies runs on a dozen families of nets, and the page of methods by family says what holds."""

from __future__ import annotations

import warnings
import zlib

import pytest

pytest.importorskip("pytorch_grad_cam")
pytest.importorskip("zennit")
pytest.importorskip("saliency")

from benchmarks import families
from benchmarks.families import FAMILIES, PAGE, RIGHT, ROWS
from idsds.methods import create_method, list_methods

#: A pass or more for each channel of a layer.
PER_CHANNEL = ("Score-CAM", "SS-CAM", "IS-CAM", "Ablation-CAM", "ScoreCAM", "SSCAM", "ISCAM", "AblationCAM")


@pytest.fixture(scope="module")
def cells() -> dict[tuple[str, str], str]:
    return families.read_page(PAGE.read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_method_that_says_it_applies_runs(family: str) -> None:
    net, images = families.net_of(family), families.images_of(family)
    methods = [name for name in list_methods(net) if not name.endswith(PER_CHANNEL)]
    assert {"Gradient", "IG", "RISE", "Occlusion", "KernelSHAP"} <= set(methods)
    for name in methods:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*max pooling")
            maps = create_method(name, net, **(families.options_of(name, net)))(images, families.TARGETS, families.IDS)
        assert maps.shape == (2, 1, *images.shape[-2:]), name
        assert maps.isfinite().all(), name


def test_the_page_has_every_method_and_family(cells) -> None:
    assert list(cells) == [(name, family) for name in ROWS for family in FAMILIES]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_says_what_holds(family: str, cells) -> None:
    """All refusals, and of the rest three methods of each net."""
    said = {name: cells[name, family] for name in ROWS}
    reasons = {name: families.refusal(name, family) for name in ROWS}
    assert {name: reason for name, reason in reasons.items() if reason}.items() <= said.items()
    applying = [name for name in ROWS if not reasons[name] and not name.endswith(PER_CHANNEL)]
    sample = sorted(applying, key=lambda name: zlib.crc32(f"{name} {family}".encode()))[:3]
    assert {name: families.judge(name, family) for name in sample} == {name: said[name] for name in sample}
    assert all(cell == RIGHT or len(cell) > 10 for cell in said.values())


@pytest.mark.parametrize("name", ["Gradient", "Guided Backprop", "DeepLIFT", "Grad-CAM", "LRP"])
def test_a_wrong_map_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    explained = families.explained
    monkeypatch.setattr(families, "explained", lambda *given: explained(*given) * 1.001)
    with pytest.raises(AssertionError, match=f"{name} on ResNet"):
        families.judge(name, "ResNet (torchvision)")
