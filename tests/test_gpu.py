"""What only a GPU can show. Skipped where there is none; the same calls run on a CPU in the other tests."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import TensorDataset

import idsds
from idsds.common.batching import halving
from idsds.datasets import as_image_dataset
from idsds.datasets.decoded import Decoded
from idsds.models import create_model

pytestmark = pytest.mark.gpu
DEVICE = "cuda"
METHODS = ["IxG", "IG", "IxG-SG", "Grad-CAM", "RISE", "Random"]


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return create_model("mini_resnet8")


@pytest.fixture(scope="module")
def data():
    return TensorDataset(torch.randn(12, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(12) % 10)


@pytest.fixture(scope="module")
def evaluate(net, data):
    def call(device=DEVICE, methods=METHODS, **settings):
        return idsds.evaluate({"net": net}, methods, data, "single_deletion", device=device, progress=False, **settings)

    return call


@pytest.fixture(scope="module")
def reference(evaluate):
    return evaluate("cpu")


def stacked(records, name):
    return np.stack(records[name].to_numpy())


def test_scores_are_those_of_a_cpu(evaluate, reference, net, tmp_path):
    found = evaluate(output=tmp_path)
    np.testing.assert_allclose(stacked(found, "drops"), stacked(reference, "drops"), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(stacked(found, "patch_sums"), stacked(reference, "patch_sums"), rtol=1e-2, atol=1e-3)
    assert (found["score"] - reference["score"]).abs().mean() < 0.01
    assert next(net.parameters()).device.type == "cpu", "the net comes back to where it was"
    pd.testing.assert_frame_equal(evaluate(output=tmp_path), found)  # from the folder


@pytest.mark.parametrize("change", [{"channels_last": False}, {"compiled": True}, {"workers": 2}, {"batch_size": 5}])
def test_settings_change_scores_by_rounding_alone(evaluate, change):
    found, usual = evaluate(**change), evaluate()
    np.testing.assert_allclose(stacked(found, "drops"), stacked(usual, "drops"), rtol=1e-3, atol=1e-4)
    assert (found["score"] - usual["score"]).abs().mean() < 0.02


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_keeps_the_drops_up_to_its_own_rounding(evaluate, reference, precision):
    found = evaluate(precision=precision)
    assert found["score"].notna().mean() > 0.95  # few bits make more maps constant
    assert np.corrcoef(stacked(found, "drops").ravel(), stacked(reference, "drops").ravel())[0, 1] > 0.99


def test_a_pass_that_does_not_fit_is_halved():
    free = torch.cuda.mem_get_info()[0]
    sizes = []

    def half_of_the_memory_for_each(size):
        sizes.append(size)
        return torch.empty(size * free // 2 + 2**20, dtype=torch.uint8, device=DEVICE).numel()

    _, fitted = halving(half_of_the_memory_for_each, 8)
    assert fitted == 1
    assert sizes == [8, 4, 2, 1]


def test_images_come_in_pinned_memory(data):
    batches = list(Decoded(as_image_dataset(data)).batches([[0, 1], [2]], pin=True))
    assert [image_ids for _, _, image_ids in batches] == [["0", "1"], ["2"]]
    assert all(images.is_pinned() for images, _, _ in batches)


def test_a_second_device_computes_on_its_own(net, data):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU alone")
    found = []
    for device in ("cuda:0", "cuda:1"):
        images, targets = (tensor[:4].to(device) for tensor in data.tensors)
        drops = idsds.deletion_drops(net.to(device), images, targets)
        maps = idsds.create_method("IG", net)(images, targets)
        assert drops.device == maps.device == torch.device(device)
        found.append((drops.cpu(), maps.cpu()))
    net.cpu()
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)
