"""A net as a graph in which every nonlinearity, and optionally every sum, is a module of its own.

Module-based rules (DeepLIFT, LRP) miss functional calls and fail on modules that are called twice, such as the ReLUs of torchvision's
ResNets. ``torch.fx`` rewrites the net as a graph that shares its weights; the net itself is not changed.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import fx, nn

#: Functions and tensor methods that exist as modules: the module, and the names of the arguments after the first.
MODULES: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_"), (nn.ReLU, ("inplace",))),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), (nn.Sigmoid, ())),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), (nn.Tanh, ())),
    F.gelu: (nn.GELU, ("approximate",)),
    F.silu: (nn.SiLU, ("inplace",)),
    F.hardswish: (nn.Hardswish, ("inplace",)),
    F.leaky_relu: (nn.LeakyReLU, ("negative_slope", "inplace")),
    F.elu: (nn.ELU, ("alpha", "inplace")),
    F.max_pool2d: (nn.MaxPool2d, ("kernel_size", "stride", "padding", "dilation", "ceil_mode")),
}
IN_PLACE = (F.relu_, torch.relu_, "relu_")
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
#: Functions that multiply two values that both depend on the image.
PRODUCTS = frozenset(
    ("mul", "imul", "mul_", "truediv", "div", "div_", "matmul", "bmm", "baddbmm", "einsum", "pow", "scaled_dot_product_attention")
)
#: Other nonlinear functions, not listed in :data:`MODULES`.
NONLINEAR = frozenset(
    (
        *("abs", "adaptive_max_pool2d", "celu", "clamp", "exp", "gelu", "group_norm", "hardsigmoid", "hardtanh", "instance_norm"),
        *("layer_norm", "log", "log_softmax", "max", "min", "mish", "norm", "normalize", "prelu", "relu6", "rms_norm", "rsqrt", "selu"),
        *("sigmoid", "silu", "softmax", "softplus", "sqrt", "square", "tanh"),
    )
)
#: Attributes that reveal only a tensor's shape.
SHAPE = frozenset(("size", "dim", "shape", "ndim", "device", "dtype"))
#: A graph runs in place of the net, so the net's hooks become its own.
HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
)
OfType = Callable[[type[nn.Module]], bool]
Result = TypeVar("Result")


_KEPT: WeakKeyDictionary[nn.Module, dict[Any, tuple[tuple[int, ...], Any]]] = WeakKeyDictionary()


def kept(function: Callable[..., Result]) -> Callable[..., Result]:
    """Cache what a function of a net returns or raises while the net has the same modules, parameters and buffers."""

    @wraps(function)
    def lookup(model: nn.Module, *options: Any) -> Result:
        parts = tuple(map(id, (*model.modules(), *model.parameters(), *model.buffers())))
        results = _KEPT.setdefault(model, {})
        known, result = results.get((function, *options), ((), None))
        if known != parts:
            try:
                result = function(model, *options)
            except NotTraceableError as error:
                result = error.with_traceback(None)
            results[function, *options] = parts, result
        if isinstance(result, NotTraceableError):
            raise result
        return result

    return lookup


class NotTraceableError(ValueError):
    """A net that ``torch.fx`` cannot trace; the message gives fx's reason."""


class _Tracer(fx.Tracer):
    """Tracer that does not enter modules that timm excludes from its own tracing."""

    def __init__(self) -> None:
        from timm.layers import get_notrace_functions, get_notrace_modules

        super().__init__(autowrap_functions=tuple(get_notrace_functions()))
        self.leaves = tuple(get_notrace_modules())

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self.leaves) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.GraphModule:
    """Return the net as a graph over its own modules, in eval mode, that runs the net's hooks. Raises NotTraceableError."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        optional = {p.name: p.default for p in inspect.signature(model.forward).parameters.values() if p.default is not p.empty}
        graph = fx.GraphModule(model, _Tracer().trace(model, concrete_args=optional or None))
    except Exception as error:  # whatever the net's own code raises for a proxy without values
        reason = str(error).strip().split("\n")[0].rstrip(".")
        raise NotTraceableError(f"torch.fx cannot write this net as a graph ({type(error).__name__}: {reason})") from error
    finally:
        for module, mode in modes.items():
            module.training = mode
    for name in HOOKS:
        setattr(graph, name, getattr(model, name))
    _divide_norms(graph)
    return graph.eval()


def _divide_norms(traced: fx.GraphModule) -> None:
    """Split timm's BatchNorm-plus-activation modules into a BatchNorm, which shares their statistics, and the activation."""
    from timm.layers import BatchNormAct2d

    for number, node in enumerate(list(traced.graph.nodes)):
        module = traced.get_submodule(node.target) if node.op == "call_module" else None
        if type(module) is not BatchNormAct2d:
            continue
        norm = _without_hooks(module)
        norm.__class__, norm._modules = nn.BatchNorm2d, {}
        with traced.graph.inserting_before(node):
            value = _first(node)
            for part in (norm, *(part for part in (module.drop, module.act) if not isinstance(part, nn.Identity))):
                name = f"norm_{number}_{type(part).__name__}"
                traced.add_module(name, part)
                value = traced.graph.call_module(name, (value,))
        node.replace_all_uses_with(value)
        traced.graph.erase_node(node)
    traced.recompile()


def _without_hooks(module: nn.Module) -> nn.Module:
    """Return a twin with the same weights."""
    twin = copy.copy(module)
    vars(twin).update({name: OrderedDict() for name in vars(module) if name.endswith("hooks") or "_hooks_" in name})
    return twin


@kept
def separate(model: nn.Module, is_nonlinear: OfType, sums: Callable[[], nn.Module] | None = None) -> fx.GraphModule:
    """Return the net as a graph in which each call of a nonlinearity is a separate, out-of-place module.

    Args:
        is_nonlinear: whether modules of a type get a twin per call.
        sums: makes the module that replaces each sum of two values that depend on the image; it receives them stacked along a new last
            dimension. None to keep sums.

    Raises:
        NotTraceableError: with fx's reason.
    """
    traced = trace(model)
    depends = dependent(traced)
    nodes = list(traced.graph.nodes)
    for number, node in enumerate(nodes):
        module, in_place = _as_module(traced, node, is_nonlinear)
        name = f"separate_{number}"
        if module is not None:
            traced.add_module(name, module)
            with traced.graph.inserting_before(node):
                twin = traced.graph.call_module(name, (_first(node),))
            if in_place:  # later readers of the input see the nonlinearity's in-place result
                later = set(nodes[number + 1 :])
                _first(node).replace_all_uses_with(twin, delete_user_cb=lambda user, later=later: user in later)
        elif sums is not None and node.target in SUMS and not node.kwargs and sum(arg in depends for arg in node.args) == 2:
            traced.add_module(name, sums())
            with traced.graph.inserting_before(node):
                stacked = traced.graph.call_function(torch.stack, (list(node.args),), {"dim": -1})
                twin = traced.graph.call_module(name, (stacked,))
        else:
            continue
        depends.add(twin)
        node.replace_all_uses_with(twin)
        traced.graph.erase_node(node)
    traced.recompile()
    return traced


@kept
def unruled(model: nn.Module, has_rule: OfType) -> str | None:
    """Return why rules for linear layers, sums and the nonlinearities of ``has_rule`` do not cover a net, else None.

    Raises NotTraceableError with fx's reason.
    """
    traced = trace(model)
    depends = dependent(traced)
    for node in traced.graph.nodes:
        kind, name = kind_of(traced, node), name_of(node)
        if kind is not None:
            if not has_rule(kind) and (name or is_nonlinear(kind)):
                return f"it has no rule for the {name or kind.__name__} of this net"
        elif name in PRODUCTS and sum(node_arg in depends for node_arg in node.all_input_nodes) > 1:
            return f"it has no rule for the products of activations ({name}) in this net"
        elif name in NONLINEAR and node in depends:
            return f"it has no rule for the {name} of this net"
    return None


def is_nonlinear(kind: type[nn.Module]) -> bool:
    """Return whether a layer type is nonlinear; types that are not torch's own count as nonlinear."""
    home = kind.__module__
    if not home.startswith("torch.nn."):
        return True
    return home.endswith((".activation", ".normalization", ".instancenorm")) or "MaxPool" in kind.__name__ or "LPPool" in kind.__name__


@kept
def has_module(model: nn.Module, of_type: OfType) -> bool:
    """Return whether a net calls a module of such a type or its functional form. Raises NotTraceableError with fx's reason."""
    traced = trace(model)
    return any(of_type(kind) for node in traced.graph.nodes if (kind := kind_of(traced, node)) is not None)


@kept
def functional(model: nn.Module, of_type: OfType) -> str | None:
    """Return a function that a net calls in place of a module of such a type, else None. Raises NotTraceableError with fx's reason."""
    traced = trace(model)
    calls = ((name_of(node), kind_of(traced, node)) for node in traced.graph.nodes)
    return next((name for name, kind in calls if name and kind is not None and of_type(kind)), None)


def dependent(traced: fx.GraphModule) -> set[fx.Node]:
    """Return the nodes whose values depend on the image."""
    found: set[fx.Node] = set()
    for node in traced.graph.nodes:
        shape = name_of(node) in SHAPE or (node.target is getattr and node.args[1] in SHAPE)
        if node.op == "placeholder" or (not shape and any(before in found for before in node.all_input_nodes)):
            found.add(node)
    return found


def directly_followed(traced: fx.GraphModule, first: tuple[type, ...], second: tuple[type, ...]) -> list[tuple[list[str], str]]:
    """Return names of consecutive modules, ([first], second): each called once, and only the second reads the first's output."""
    calls = Counter(node.target for node in traced.graph.nodes if node.op == "call_module")
    pairs = []
    for node in traced.graph.nodes:
        if node.op != "call_module" or not isinstance(traced.get_submodule(node.target), second):
            continue
        before = _first(node)
        alone = before.op == "call_module" and len(before.users) == 1 and calls[before.target] == calls[node.target] == 1
        if alone and isinstance(traced.get_submodule(before.target), first):
            pairs.append(([before.target], node.target))
    return pairs


def kind_of(traced: fx.GraphModule, node: fx.Node) -> type[nn.Module] | None:
    """Return the type of the module that a node calls, or of that in :data:`MODULES` for its function; None for any other call."""
    if node.op == "call_module":
        return type(traced.get_submodule(node.target))
    return MODULES[node.target][0] if name_of(node) and node.target in MODULES else None


def name_of(node: fx.Node) -> str:
    """Return the plain name of the function or method that a node calls."""
    return node.target if node.op == "call_method" else getattr(node.target, "__name__", "")


def _first(node: fx.Node) -> fx.Node:
    return node.args[0] if node.args else node.kwargs["input"]  # type: ignore[return-value]


def _as_module(traced: fx.GraphModule, node: fx.Node, is_nonlinear: OfType) -> tuple[nn.Module | None, bool]:
    """Return the module that replaces a node's call, None to keep it, and whether the call worked in place."""
    if node.op == "call_module":
        module = traced.get_submodule(node.target)
        if not is_nonlinear(type(module)):
            return None, False
        twin = _without_hooks(module)
        in_place = getattr(module, "inplace", False)
        if in_place:
            twin.inplace = False
        return twin, in_place
    if not name_of(node) or node.target not in MODULES:
        return None, False
    made, names = MODULES[node.target]
    options = dict(zip(names, node.args[1:], strict=False)) | {k: v for k, v in node.kwargs.items() if k in names}
    in_place = bool(options.pop("inplace", False)) or node.target in IN_PLACE
    return made(**options), in_place
