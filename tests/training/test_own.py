"""In-domain fine-tuning of a user's own net: a copy is trained, cached by all that determines it, and known by evaluate."""

from __future__ import annotations

import sys
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import idsds
from idsds.__main__ import main
from idsds.common.settings import SettingsError
from idsds.training import own
from idsds.training.recipes import Deletion

CLASSES = 3


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


def images(count: int = 48, seed: int = 0) -> TensorDataset:
    """The class is the channel that is bright."""
    targets = torch.arange(count) % CLASSES
    pixels = torch.rand(count, CLASSES, 8, 8, generator=torch.Generator().manual_seed(seed))
    pixels[torch.arange(count), targets] += 1
    return TensorDataset(pixels, targets)


class Net(nn.Module):
    """Features flattened by ``view``, which channels last do not allow."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv(x).relu().view(-1, 4 * 64))


def tuned(net: nn.Module, data: TensorDataset | None = None, **changes: object) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return idsds.finetune(net, data or images(), **{"epochs": 4, "lr": 0.05, "grid": 2, "device": "cpu", "progress": False, **changes})


@pytest.mark.parametrize("make", [Net, lambda: Net().double(), lambda: Net().half()])
def test_a_copy_learns_and_the_net_stays_as_it_was(make, cache) -> None:
    net = make()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = tuned(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not hasattr(net, "in_domain")
    pixels, targets = images(seed=9).tensors
    dtype = found.fc.weight.dtype
    assert (found(pixels.to(dtype)).argmax(1) == targets).double().mean() > 0.9
    assert found.in_domain == Deletion(grid=2)
    assert not found.training
    (checkpoint,) = cache.glob("*.safetensors")
    assert checkpoint.name.startswith("Net-in_domain-")


def test_evaluate_knows_it_and_says_nothing() -> None:
    found = tuned(Net().eval())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "model 'mine' does not run in channels_last")
        records = idsds.evaluate({"mine": found}, ["IxG"], images(12, seed=5), images=12, grid=2, progress=False)
    assert records.score.notna().all()
    assert set(records.protocol) == {"idsds"}


def test_what_is_cached_is_not_trained_again(cache, monkeypatch) -> None:
    first = tuned(Net())
    monkeypatch.setattr(own, "fit", lambda *_, **__: pytest.fail("trained again"))
    second = tuned(Net())
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def altered() -> nn.Module:
    net = Net()
    net.fc.bias.data += 1
    return net


class Other(Net):
    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


@pytest.mark.parametrize(
    "changes",
    [
        {"net": altered()},
        {"net": Other()},
        {"data": images(seed=1)},
        {"lr": 0.06},
        {"epochs": 3},
        {"grid": 4},
        {"baseline": "blur"},
        {"seed": 1},
        {"val": images(12, seed=2)},
        {"loss": "distill"},
    ],
)
def test_whatever_determines_it_is_in_its_address(changes: dict, cache) -> None:
    tuned(Net())
    tuned(changes.pop("net", None) or Net(), changes.pop("data", None), **changes)
    assert len(list(cache.glob("*.safetensors"))) == 2


def test_a_damaged_checkpoint_is_made_again(cache) -> None:
    first = tuned(Net())
    (checkpoint,) = cache.glob("*.safetensors")
    checkpoint.write_bytes(checkpoint.read_bytes()[:50])
    second = tuned(Net())
    assert torch.equal(first.fc.weight, second.fc.weight)


def test_bad_input_is_named_before_any_work(cache) -> None:
    with pytest.raises(SettingsError, match="epoch"):
        tuned(Net(), epoch=3)
    with pytest.raises(SettingsError, match="blurr"):
        tuned(Net(), baseline="blurr")
    with pytest.raises(ValueError, match=r"the target of image '\d+' is 7, but the net has 3 classes"):
        tuned(Net(), TensorDataset(images().tensors[0], torch.full((48,), 7)))
    with pytest.raises(ValueError, match=r"model 'net' fails on images"):
        tuned(Net(), TensorDataset(torch.rand(8, 1, 8, 8), torch.zeros(8, dtype=torch.long)))
    with pytest.raises(ValueError, match="1 training images are too few"):
        tuned(Net(), images(1))
    assert not cache.exists()


def test_one_params_file_does_it(tmp_path, cache, monkeypatch) -> None:
    (tmp_path / "my_code_of_a_test.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\n"
        "def net(): return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 2))\n"
        "images = TensorDataset(torch.rand(20, 3, 4, 4), torch.arange(20) % 2)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    params = tmp_path / "mine.yaml"
    params.write_text("net: my_code_of_a_test:net\ntrain: my_code_of_a_test:images\ngrid: 2\nepochs: 1\ndevice: cpu\n")
    assert main(["finetune", str(params), "epochs=2", "seeds=[0, 1]"]) == 0
    assert len(list(cache.glob("*.safetensors"))) == 2
    sys.modules.pop("my_code_of_a_test")
    for text, message in (("net: nowhere_at_all:net", "nowhere_at_all"), ("net: my_code_of_a_test", "must be written module:name")):
        with pytest.raises(SettingsError, match=message):
            own.FineTuning(net=text.removeprefix("net: "), train="my_code_of_a_test:images").run()
