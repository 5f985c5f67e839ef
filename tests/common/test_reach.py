"""Numbers are reused only where all that determines them is the same: random edits of a user's modules, and one test per kind of reach."""

import functools
import importlib
import logging
import os
import random
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import idsds
from idsds.common.hashing import own_digest

MINE = """
import functools
import torch
from torch import nn
import second
from second import clip
GAIN = {gain}
CONFIG = {{"power": {power}, "inner": {{"shift": {shift}}}}}
def scaled(function):
    @functools.wraps(function)
    def inner(*args, **kwargs):
        return {decorator} * function(*args, **kwargs)
    return inner
def helper(x, offset={default}, *, factor={kwdefault}):
    return (x {operator} 0.5) * factor + offset
class Base(nn.Module):
    bias = {class_attribute}
    def after(self, y):
        return y + {base_class} * y.square()
    @property
    def tilt(self):
        return {property} * torch.arange(4)
class Net(Base):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter({weight} * torch.linspace(-1, 1, 3 * 8 * 8 * 4).sin().view(-1, 4))
        self.register_buffer("mean", torch.tensor({buffer}))
        self.entry = {attribute}
    def forward(self, x):
        y = helper(x.flatten(1) - self.mean) @ self.weight
        return self.after(y) * self.entry + self.bias + self.tilt
def net():
    made = Net()
    made.register_forward_hook(lambda module, given, result: result * {hook})
    made.register_forward_pre_hook(lambda module, given: (given[0] + {pre_hook},))
    made.gain = {set_from_outside}
    return made.eval()
def closing(value):
    return lambda x: x * value
TABLE = {{"first": lambda x: x + {table}}}
class Explainer:
    def __init__(self, model):
        self.model, self.close, self.training = model, closing({closure}), {training}
    @staticmethod
    def post(m):
        return m * {static}
    def __call__(self, x, t):
        from lazy import late
        with torch.no_grad():
            y = self.model(x).gather(1, t[:, None])[..., None, None]
        m = TABLE["first"](self.close(x) * y) * GAIN + CONFIG["inner"]["shift"]
        return late(clip(self.post(second.twice(m) * CONFIG["power"]))) + self.training * x.square()
@scaled
def function(x, t, option={option}):
    return x * option + helper(x.abs())
"""
SECOND = """
import third
LIMIT = {limit}
def clip(x):
    return x / (LIMIT + x.abs())
def twice(x):
    return {second_module} * third.thrice(x)
"""
THIRD = "def thrice(x):\n    return {third_module} * x - {sub_attribute}\n"
LAZY = "LATE = {lazy_constant}\ndef late(x):\n    return LATE * x + {lazy_function} * x.abs()\n"
SOURCES = {"mine": MINE, "second": SECOND, "third": THIRD, "lazy": LAZY}
PLACES = """gain power shift decorator default kwdefault class_attribute base_class property weight buffer attribute hook pre_hook table
closure training static option limit second_module third_module sub_attribute lazy_constant lazy_function set_from_outside"""
START = dict.fromkeys(PLACES.split(), 1.0) | {"operator": "-"}


def write(folder, state):
    for name, source in SOURCES.items():
        (folder / f"{name}.py").write_text(source.format(**state))


def fresh(folder, state):
    """The user's module as a new process would see it, with an attribute that is set from outside."""
    write(folder, state)
    for name in SOURCES:
        sys.modules.pop(name, None)
    importlib.invalidate_caches()
    return importlib.import_module("mine")


def edited(state, rng):
    place = rng.choice(sorted(state))
    value = ("+" if state["operator"] == "-" else "-") if place == "operator" else rng.choice([0.25, 0.5, 1.0, 1.5, 2.0])
    return {**state, place: value}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two edits within a second have files of one age
    yield tmp_path
    for name in SOURCES:
        sys.modules.pop(name, None)


def things_of(mine, images, targets):
    """Things whose hashes are asked for, and what each of them computes."""
    net = mine.net()
    explainer = mine.Explainer(net)
    return {
        "net": (net, lambda: net(images)),
        "object": (explainer, lambda: explainer(images, targets)),
        "bound": (explainer.__call__, lambda: explainer(images, targets)),
        "decorated": (mine.function, lambda: mine.function(images, targets)),
        "partial": (functools.partial(mine.function, option=2), lambda: mine.function(images, targets, option=2)),
        "lambda": (lambda x, t: mine.second.twice(mine.helper(x)), lambda: mine.second.twice(mine.helper(images))),
    }


def test_what_has_one_hash_computes_one_thing_after_random_edits(folder, capsys):
    rng, state, edits = random.Random(0), START, 0
    images, targets = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 3])
    seen: dict[tuple[str, str], torch.Tensor] = {}
    hashes: dict[tuple, dict] = {}
    for _ in range(150):
        numbers = {}
        for name, (thing, call) in things_of(fresh(folder, state), images, targets).items():
            key = own_digest(thing)
            assert not key.reason, key.reason
            number = call().detach()
            assert torch.equal(seen.setdefault((name, key), number), number), (name, state)
            numbers[name] = key
        assert hashes.setdefault(tuple(state.items()), numbers) == numbers, "the same sources have the same hashes"
        state, edits = edited(state, rng), edits + 1
    with capsys.disabled():
        print(f"\n{edits} random edits, {len(hashes)} different states, {len(seen)} hashes")


def evaluated(mine, output):
    images = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    net = mine.net()
    methods = {"object": mine.Explainer(net), "function": mine.function, "IxG": None}
    return idsds.evaluate(
        {"net": net}, methods, TensorDataset(images, torch.arange(4)), protocol="single_deletion", images=4, output=output, progress=False
    )


@pytest.mark.filterwarnings("ignore")
def test_a_reused_number_is_a_fresh_one_after_random_edits(folder, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("IDSDS_RECORD_CACHE", "1")
    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path / "cache"))
    rng, state = random.Random(1), START
    for number in range(20):
        reused = evaluated(fresh(folder, state), tmp_path / f"run{number % 3}")
        anew = evaluated(fresh(folder, state), None)
        for column in ("score", "patch_sums", "drops"):
            np.testing.assert_array_equal(np.stack(reused[column]), np.stack(anew[column]), err_msg=f"{column}, {state}")
        state = edited(state, rng)
    with capsys.disabled():
        print("\n20 edits between evaluations")


SCRIPT = """
import sys; sys.path[:0] = [{folder!r}, {tests!r}]
import warnings; warnings.simplefilter("ignore")
import mine
from tests.common.test_reach import evaluated
for output in ({output!r}, None):
    print([list(sums) for sums in evaluated(mine, output).patch_sums])
"""


def test_a_reused_number_is_a_fresh_one_in_other_processes(tmp_path, capsys):
    tests = str(Path(__file__).parents[2])
    texts = []
    for change in ({}, {"lazy_function": 0.5}, {"default": 0.25}, {}):
        write(tmp_path, START | change)
        code = SCRIPT.format(folder=str(tmp_path), tests=tests, output=str(tmp_path / "run"))
        env = {**os.environ, "IDSDS_RECORD_CACHE": "1", "IDSDS_CACHE": str(tmp_path / "cache")}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
        assert not done.returncode, done.stderr[-2000:]
        reused, anew = done.stdout.strip().splitlines()[-2:]
        assert reused == anew, change
        texts.append(anew)
    assert texts[0] == texts[3]
    assert len(set(texts)) == 3
    with capsys.disabled():
        print("\n3 edits between processes")


class Attributed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        with torch.no_grad():
            self.layer.weight.fill_(1.0)
            self.layer.bias.fill_(0.5)

    def forward(self, x):
        return self.layer(x)


def changed_net(change):
    net = Attributed()
    change(net)
    return net


CHANGES = {
    "an attribute called entry": lambda net: setattr(net, "entry", 1),
    "an attribute with hooks in its name": lambda net: setattr(net, "my_hooks", {"a": 2}),
    "a hook": lambda net: net.register_forward_hook(lambda module, given, result: result * 2),
    "a pre-hook": lambda net: net.layer.register_forward_pre_hook(lambda module, given: (given[0] * 2,)),
    "a backward hook": lambda net: net.register_full_backward_hook(lambda module, given, result: (given[0] * 2,)),
    "a hook of a weight": lambda net: net.layer.weight.register_hook(lambda gradient: gradient * 2),
    "a weight": lambda net: net.layer.weight.data.add_(1e-7),
    "frozen weights": lambda net: net.requires_grad_(False),
    "another type": lambda net: net.double(),
    "a forward of its own": lambda net: setattr(net, "forward", lambda x: x),
    "a buffer": lambda net: net.register_buffer("mean", torch.zeros(1)),
    "a module": lambda net: net.add_module("more", nn.ReLU()),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_net_is_all_that_it_holds(what):
    same, other = own_digest(changed_net(CHANGES[what])), own_digest(changed_net(CHANGES[what]))
    assert same == other != own_digest(Attributed())


def test_modes_count_but_for_the_net_that_is_judged():
    net, training = Attributed().eval(), Attributed().train()
    assert own_digest(net) != own_digest(training)
    assert own_digest(net, judged=True) == own_digest(training, judged=True)


def test_a_mode_that_eval_does_not_set_counts():
    class Stubborn(Attributed):
        def train(self, mode=True):
            return self

    one, other = Stubborn(), Stubborn()
    other.training = False
    assert own_digest(one, judged=True) != own_digest(other, judged=True)


OUTWARD = {
    "torch.load": lambda x, t: torch.load("a.pt"),
    "np.load": lambda x, t: np.load("a.npy"),
    "open": lambda x, t: open("a").read(),  # noqa: SIM115
    "eval": lambda x, t: eval("x"),
    "import_module": lambda x, t: importlib.import_module("a"),
    "sys": lambda x, t: sys.modules["a"],
    "random": lambda x, t: random.random() * x,
}


@pytest.mark.parametrize("what", OUTWARD)
def test_code_that_looks_elsewhere_is_new_each_time_and_says_why(what):
    first, second = own_digest(OUTWARD[what]), own_digest(OUTWARD[what])
    assert first != second
    assert f"uses {what.split('.')[0]}" in first.reason or what in first.reason


def test_what_a_constructor_reads_is_seen_in_the_object():
    class Reader:
        def __init__(self, value):
            self.value = value if value else torch.load("a.pt")

    assert own_digest(Reader(1)) == own_digest(Reader(1)) != own_digest(Reader(2))
    assert not own_digest(Reader(1)).reason
    assert own_digest(lambda x, t: Reader(0)).reason


@functools.lru_cache
def remembered(x):
    return x


@pytest.mark.parametrize(
    "thing",
    [
        (i for i in range(3)),
        threading.Lock(),
        torch.jit.trace(nn.Linear(2, 2), torch.rand(1, 2)),
        torch.rand(2, device="meta"),
    ],
    ids=["generator", "lock", "script", "meta"],
)
def test_what_cannot_be_looked_into_is_new_each_time(thing):
    assert own_digest([thing]) != own_digest([thing])
    assert own_digest([thing]).reason


def test_results_that_are_remembered_are_new_each_time():
    remembered.cache_clear()
    assert not own_digest(remembered).reason
    remembered(1)
    assert "remembers" in own_digest(remembered).reason


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a):
        self.a = a


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Slotted(1), Slotted(2)),
        (np.arange(3), np.arange(3.0)),
        (np.zeros((2, 3)), np.zeros((3, 2))),
        ({"a": 1}, {"a": 1.0}),
        ([0.0], [-0.0]),
        ({1, 2}, {1, 3}),
        (functools.partial(torch.mul, other=2), functools.partial(torch.mul, other=3)),
        (torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)),
        (np.random.default_rng(0), np.random.default_rng(1)),
        (types.SimpleNamespace(entry=1), types.SimpleNamespace(entry=2)),
        (torch.zeros(2).to_sparse(), torch.ones(2).to_sparse()),
        (nn.LSTM(2, 2), nn.LSTM(2, 2)),
    ],
)
def test_values_count(one, other):
    assert own_digest(one) == own_digest(one) != own_digest(other)
    assert not own_digest(one).reason


def test_a_thing_that_refers_to_itself_and_a_logger_have_a_hash():
    loop: list = [logging.getLogger("x")]
    loop.append(loop)
    other: list = [logging.getLogger("x")]
    other.append(other)
    assert own_digest(loop) == own_digest(other) != own_digest([loop])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["torchvision", "timm"])
def test_a_library_s_net_has_the_same_hash_in_another_process(name):
    code = f"""
import torch; torch.manual_seed(0)
import {name}; net = {name + ".models.resnet18()" if name == "torchvision" else name + ".create_model('vit_tiny_patch16_224')"}
import captum.attr
from idsds.common.hashing import own_digest
keys = own_digest(net), own_digest(captum.attr.IntegratedGradients(net)), own_digest((captum.attr.Occlusion(net), {{"strides": 2}}))
assert not any(key.reason for key in keys), keys[0].reason
print(*keys)
"""
    first, second = (subprocess.run([sys.executable, "-c", code], capture_output=True, text=True) for _ in range(2))
    assert first.stdout, first.stderr[-1000:]
    assert first.stdout == second.stdout


def test_a_method_that_is_computed_anew_is_named(tmp_path, monkeypatch):
    def reads(images, targets):
        return images if targets is not None else torch.load("a.pt")

    data = TensorDataset(torch.rand(4, 3, 8, 8), torch.arange(4))
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    with pytest.warns(UserWarning, match=r"method 'mine' is computed anew.*reads uses torch\.load"):
        idsds.evaluate({"n": net}, {"mine": reads}, data, protocol="single_deletion", images=4, output=tmp_path, progress=False)
