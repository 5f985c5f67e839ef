"""Nets of the user's: a correct one runs with default settings and scores what its plain form does, or the error says what to change."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import captum.attr
import pytest
import torch
import torch.nn.functional as F
import torchcam.methods
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import idsds
from idsds.training.recipes import Deletion

COUNT, CLASSES, SIDE = 6, 4, 16


def own_data(dtype: torch.dtype = torch.float32, count: int = COUNT) -> TensorDataset:
    images = torch.rand(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(3))
    return TensorDataset(images.to(dtype), torch.arange(count) % CLASSES)


def plain() -> nn.Sequential:
    torch.manual_seed(5)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 16, CLASSES)).eval()


class Around(nn.Module):
    """A net with something done to its images or its logits."""

    def __init__(self, net: nn.Module | None = None, before=lambda x: x, after=lambda y: y) -> None:
        super().__init__()
        self.net, self.before, self.after = net or plain(), before, after

    def forward(self, images: Tensor) -> Tensor:
        return self.after(self.net(self.before(images)))


class Functional(nn.Module):
    """The same net by functions, one convolution's ReLU in place, its features flattened by ``view``."""

    def __init__(self) -> None:
        super().__init__()
        self.one, _, _, self.two, _, _, self.fc = plain()

    def forward(self, images: Tensor) -> Tensor:
        x = F.avg_pool2d(F.relu(self.one(images)), 4)
        return self.fc(torch.relu_(self.two(x)).view(-1, 8 * 16))


class Strided(nn.Module):
    """Reads the memory of its features, whatever their layout is."""

    def __init__(self) -> None:
        super().__init__()
        self.net = plain()

    def forward(self, images: Tensor) -> Tensor:
        x = self.net[:5](images)
        return self.net[6](torch.as_strided(x, (len(x), 128), (128, 1)))


def scores(net: nn.Module, methods=("IxG", "RISE"), data: TensorDataset | None = None, **settings: object) -> list[float]:
    wanted = {name: (name, {"samples": 8}) if name == "RISE" else None for name in methods} if isinstance(methods, tuple) else methods
    settings = {"protocol": "single_deletion", "grid": 2, "device": "cpu", "progress": False, "images": COUNT, **settings}
    records = idsds.evaluate({"net": net}, wanted, data or own_data(), **settings)
    return records.sort_values(["method", "image_id"]).score.tolist()


def quiet(*args: object, **settings: object) -> list[float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return scores(*args, **settings)


def parallel() -> nn.Module:
    return nn.DataParallel(plain())


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(plain())


def traced() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(plain(), torch.rand(2, 3, SIDE, SIDE))


def in_place(x: Tensor) -> Tensor:
    return x.sub_(0.5).div_(0.25).mul_(0.25).add_(0.5)


NETS = {
    "view": Functional,
    "strides": Strided,
    "float64": lambda: plain().double(),
    "bfloat16": lambda: plain().bfloat16().float(),
    "TorchScript": scripted,
    "a trace": traced,
    "with a script": lambda: Around(scripted()),
    "DataParallel": parallel,
    "writes into its images": lambda: Around(before=in_place),
    "in training mode": lambda: plain().train(),
    "frozen weights": lambda: plain().requires_grad_(False),
}


@pytest.mark.parametrize("kind", NETS)
def test_a_correct_net_scores_what_its_plain_form_does(kind: str) -> None:
    reference = plain().bfloat16().float() if kind == "bfloat16" else plain()
    assert quiet(NETS[kind]()) == pytest.approx(quiet(reference), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_widened(dtype: torch.dtype) -> None:
    net = plain().to(dtype)
    assert quiet(net) == pytest.approx(quiet(plain().to(dtype).float()), abs=1e-6)
    assert {p.dtype for p in net.parameters()} == {dtype}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_images_come_in_the_precision_of_the_weights(dtype: torch.dtype) -> None:
    rounded = TensorDataset(own_data(dtype).tensors[0].float(), own_data().tensors[1])
    assert quiet(plain(), data=own_data(dtype)) == pytest.approx(quiet(plain(), data=rounded), abs=1e-6)


@pytest.mark.parametrize("kind", ["view", "strides"])
def test_a_net_that_needs_contiguous_memory_is_judged_so_and_it_is_said(kind: str) -> None:
    with pytest.warns(
        UserWarning, match="model 'net' does not run in channels_last memory format and is evaluated with channels_last=False"
    ):
        scores(NETS[kind]())


def test_a_net_of_single_image_data_is_looked_at() -> None:
    assert len(quiet(plain(), ("IxG",), own_data(count=1), images=1)) == 1


OUTPUTS = {
    "dict": (lambda y: {"loss": y.mean(), "out": y}, r"returns a dict with 'loss', 'out'.*self.net\(images\)\['out'\]"),
    "tuple": (lambda y: (y.mean(1), y), r"returns a tuple of 2.*self.net\(images\)\[1\]"),
    "object": (lambda y: SimpleNamespace(hidden=None, logits=y), r"returns a SimpleNamespace.*self.net\(images\).logits"),
    "vector": (lambda y: y[:, 0], r"returns torch.float32 \(2,\)"),
    "maps": (lambda y: y[:, :, None, None], r"returns torch.float32 \(2, 4, 1, 1\)"),
    "classes": (lambda y: y.argmax(1, keepdim=True), r"returns torch.int64 \(2, 1\)"),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_an_output_that_is_no_logits_is_named_with_the_wrapper_to_write(kind: str) -> None:
    after, message = OUTPUTS[kind]
    with pytest.raises(ValueError, match=rf"(?s)'net' must return logits \(B, K\).*{message}"):
        scores(Around(after=after))


def test_a_net_that_is_not_built_is_named() -> None:
    for lazy in (nn.LazyLinear(CLASSES), nn.Sequential(nn.LazyConv2d(4, 3), nn.Flatten(), nn.LazyLinear(CLASSES))):
        with pytest.raises(ValueError, match="model 'net' is not built yet: layer"):
            scores(nn.Sequential(nn.Flatten(), lazy) if isinstance(lazy, nn.LazyLinear) else lazy)


def test_a_net_that_fails_is_named_with_what_it_was_given() -> None:
    with pytest.raises(ValueError, match=r"model 'net' fails on images \(2, 3, 16, 16\) of float32 on cpu: RuntimeError: "):
        scores(nn.Sequential(nn.Flatten(), nn.Linear(99, CLASSES)))


@pytest.mark.parametrize("where", ["conv", "linear"])
def test_statistics_of_the_batch_are_refused(where: str) -> None:
    norm = nn.BatchNorm2d(6, track_running_stats=False) if where == "conv" else nn.BatchNorm1d(CLASSES, track_running_stats=False)
    net = plain()
    layers = [*net[:1], norm, *net[1:]] if where == "conv" else [*net, norm]
    with pytest.raises(ValueError, match=rf"model 'net' is batch-dependent: .*BatchNorm{'2' if where == 'conv' else '1'}d"):
        scores(nn.Sequential(*layers))


def test_a_net_that_centres_its_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="batch-dependent"):
        scores(Around(after=lambda y: y - 3 * y.mean(0)))


def no_grad(x: Tensor) -> Tensor:
    with torch.no_grad():
        return plain()(x)


def test_methods_that_need_a_gradient_are_left_out_where_none_arrives() -> None:
    net = Around(nn.Identity(), after=no_grad)
    with pytest.raises(ValueError, match=r"'IxG' applies to none of the models: no gradient of the logits reaches the images.*no_grad"):
        scores(net, ("IxG",))
    with pytest.warns(UserWarning, match="method 'IG' is left out for model 'detached': no gradient"):
        records = idsds.evaluate(
            {"net": plain(), "detached": Around(after=lambda y: y.detach())},
            {"IG": ("IG", {"steps": 2}), "RISE": ("RISE", {"samples": 4}), "Random": None},
            own_data(),
            protocol="single_deletion",
            images=COUNT,
            grid=2,
            progress=False,
        )
    assert records.groupby("model").method.unique().map(sorted).to_dict() == {
        "net": ["IG", "RISE", "Random"],
        "detached": ["RISE", "Random"],
    }


class TestApplicability:
    """A method that cannot work on a net is known when the plan is made."""

    def test_a_missing_layer_shows_the_form(self) -> None:
        form = r'in evaluate as \{"Grad-CAM": \("Grad-CAM", \{"layer": "3"\}\)\}'
        with pytest.raises(ValueError, match=form):
            scores(plain(), ("IxG", "Grad-CAM"), dry_run=True)

    def test_a_layer_that_is_not_there_is_named(self) -> None:
        with pytest.raises(ValueError, match="unknown layer 'conv1'"):
            scores(plain(), {"cam": ("Grad-CAM", {"layer": "conv1"})}, dry_run=True)
        with pytest.raises(ValueError, match=r"unknown layer 'layr3'\. .*'layer3'"):
            idsds.evaluate(["mini_resnet8"], {"cam": ("Grad-CAM", {"layer": "layr3"})}, "digits", images=2, dry_run=True)

    def test_a_layer_of_vectors_is_named(self) -> None:
        with pytest.raises(ValueError, match=r"layer '6' gives \(1, 4\)"):
            scores(plain(), {"cam": ("Grad-CAM", {"layer": "6"})}, dry_run=True)

    def test_guided_methods_see_capped_and_functional_relus(self) -> None:
        for relu in (nn.ReLU6(), nn.Hardtanh(0, 1), Around(nn.Identity(), after=lambda x: x.clamp(min=0))):
            net = plain()
            net[1] = relu
            assert len(quiet(net, ("Guided Backprop", "Deconvolution"))) == 2 * COUNT

    def test_guided_methods_are_left_out_without_any(self) -> None:
        net = plain()
        net[1], net[4] = nn.GELU(), nn.Tanh()
        with pytest.raises(ValueError, match="'Guided Backprop' applies to none of the models: no ReLU ran"):
            scores(net, ("IxG", "Guided Backprop"), dry_run=True)

    def test_a_layer_may_be_there_in_one_net_only(self) -> None:
        methods = {"a": ("Grad-CAM", {"layer": "3"}), "b": ("Grad-CAM", {"layer": "net.3"})}
        with pytest.warns(UserWarning, match=r"method '\w' is left out for model '\w+': unknown layer"):
            plan = idsds.evaluate({"plain": plain(), "around": Around()}, methods, own_data(), images=2, grid=2, dry_run=True)
        assert plan.note.str.contains("left out").sum() == 2


class TestBinding:
    """A method that is bound to one net is never used for another."""

    @pytest.fixture
    def nets(self) -> dict[str, nn.Module]:
        torch.manual_seed(1)
        return {"a": plain(), "b": nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(128, CLASSES)).eval()}

    @pytest.mark.parametrize("kind", ["captum", "torchcam", "a pair", "a partial", "a closure", "another net judged"])
    def test_it_is_left_out_where_another_is_judged(self, nets: dict[str, nn.Module], kind: str) -> None:
        a = nets["a"]
        saliency = captum.attr.Saliency(a)
        thing = {
            "captum": saliency,
            "torchcam": torchcam.methods.GradCAM(a, "3"),
            "a pair": (captum.attr.InputXGradient(a), {}),
            "a partial": __import__("functools").partial(lambda s, x, t: s.attribute(x, t), saliency),
            "a closure": lambda x, t: saliency.attribute(x, t),
            "another net judged": lambda x, t: torch.autograd.grad(a(z := x.requires_grad_()).gather(1, t[:, None]).sum(), z)[0],
        }[kind]
        with pytest.warns(UserWarning, match="method 'mine' is left out for model 'b': it"):
            records = idsds.evaluate(
                nets, {"mine": thing, "Random": None}, own_data(), protocol="single_deletion", images=COUNT, grid=2, progress=False
            )
        assert set(records[records.method == "mine"].model) == {"a"}
        assert set(records[records.method == "Random"].model) == {"a", "b"}

    def test_it_is_refused_where_its_net_is_not_judged_at_all(self, nets: dict[str, nn.Module]) -> None:
        a = nets["a"]
        for thing in (captum.attr.Saliency(a), captum.attr.Saliency(lambda x: a(x))):
            with pytest.raises(ValueError, match="'mine' applies to none of the models: its captum object, Saliency, explains another"):
                idsds.evaluate({"b": nets["b"]}, {"mine": thing}, own_data(), images=2, grid=2, progress=False)
        with pytest.raises(ValueError, match="explains another"):
            idsds.evaluate(["mini_resnet8"], {"mine": captum.attr.Saliency(a)}, "digits", images=2, dry_run=True)

    def test_a_callable_that_holds_some_other_net_is_doubted(self, nets: dict[str, nn.Module]) -> None:
        a, b = nets["a"], nets["b"]
        with pytest.warns(UserWarning, match="method 'mine' holds a Sequential, and not model 'net', which it is scored on"):
            scores(b, {"mine": lambda x, t: x * a(x)[:, :1, None, None]})
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scores(b, {"mine": lambda x, t: x * a(x)[:, :1, None, None] * b(x)[:, :1, None, None], "plain": lambda x, t: x})

    def test_a_wrapper_or_a_part_of_the_net_judged_is_that_net(self, nets: dict[str, nn.Module]) -> None:
        a = nets["a"]
        wrapped = nn.DataParallel(a)
        found = quiet(wrapped, {"x": captum.attr.InputXGradient(wrapped), "y": captum.attr.InputXGradient(a), "IxG": None})
        assert found[:COUNT] == pytest.approx(found[COUNT : 2 * COUNT], abs=1e-6)
        assert found[:COUNT] == pytest.approx(found[2 * COUNT :], abs=1e-6)


class TestHonesty:
    """What works but may not be what the user thinks is said, once."""

    def said(self, net: nn.Module, **settings: object) -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scores(net, ("IxG",), **settings)
        return [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]

    @pytest.mark.parametrize(
        ("last", "kind"), [(nn.Softmax(1), "probabilities"), (nn.LogSoftmax(1), "log-probabilities"), (nn.Sigmoid(), "probabilities")]
    )
    def test_probabilities(self, last: nn.Module, kind: str) -> None:
        same, message = self.said(Around(after=last), seed=[0, 1])
        assert "model 'net' is one net, the same for every seed" in same
        assert f"model 'net' returns {kind}, not logits" in message

    def test_outputs_that_differ_between_two_calls(self) -> None:
        (message,) = self.said(Around(before=lambda x: F.dropout(x, 0.3)))
        assert "model 'net' is not deterministic" in message

    def test_a_plain_net_is_passed_over_in_silence(self) -> None:
        assert self.said(plain()) == []

    def test_a_net_that_is_not_in_domain(self) -> None:
        (message,) = self.said(plain(), protocol="idsds")
        assert "not known to be fine-tuned in-domain" in message
        assert "idsds.finetune(" in message

    def test_a_net_that_is(self) -> None:
        for known in (True, Deletion(grid=2)):
            net = plain()
            net.in_domain = known
            assert self.said(net, protocol="idsds") == []
        net.in_domain = Deletion(grid=4)
        (message,) = self.said(net, protocol="idsds")
        assert "was fine-tuned in-domain with {'grid': 4, 'baseline': 'zeros'}, but is judged with {'grid': 2" in message


def test_a_frozen_script_is_refused() -> None:
    with pytest.raises(ValueError, match="model 'net' is a frozen TorchScript net"):
        scores(torch.jit.freeze(scripted()))
