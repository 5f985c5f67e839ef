"""Facts from compiled code, against the source that it was compiled from."""

import collections

import pytest
import torch

from idsds.common.bytecode import attributes_of, content_of, globals_of, holds_more, imports_of, slots_of


def code_of(source: str):
    return compile(source, "x.py", "exec")


def test_the_content_is_that_of_the_source():
    source = "def f(x, y=1):\n    return np.abs(x) + {}\n"
    first, again, other = (code_of(source.format(number)) for number in (2, 2, 3))
    assert content_of(first) == content_of(again) != content_of(other)
    assert content_of(first) != content_of(code_of(source.format(2).replace("y=1", "*, y=1"))), "a keyword is no position"


def test_globals_come_with_the_attributes_that_follow_them():
    code = code_of("def f(x):\n    def g():\n        return torch.linalg.norm(x) + scale\n    return g, x.shape.numel()\n")
    found = set(globals_of(code))
    assert {("torch", ("linalg", "norm")), ("scale", ())} <= found
    assert not {name for name, _ in found} & {"x", "shape"}, "what is local, and attributes of it"
    assert set(attributes_of(code)) == {"linalg", "norm", "shape", "numel"}


def test_imports_within_code():
    code = code_of("def f():\n    import a.b\n    from ..c import d, e\n")
    assert list(imports_of(code)) == [("a.b", 0, None), ("c", 2, ("d", "e"))]


class Slotted:
    __slots__ = ("__dict__", "__hidden", "shown")


@pytest.mark.parametrize(
    ("kind", "base", "more"),
    [
        (Slotted, object, False),
        (type("Plain", (list,), {}), list, False),
        (torch.nn.Module, object, False),
        (collections.deque, object, True),
        (torch.Tensor, object, True),
    ],
)
def test_memory_that_only_c_code_can_see(kind, base, more):
    assert holds_more(kind, base) == more
    assert slots_of(Slotted) == ["_Slotted__hidden", "shown"]
