"""Hashes of things and of the package's code: the same for what computes the same, and for nothing else."""

import functools

import pytest
import torch

from idsds.common import hashing
from idsds.common.hashing import code_digest, digest, modules_of, own_digest


def test_partial_objects_and_closures_count():
    def make(k):
        return lambda images, targets: images * k

    assert own_digest(make(2)) == own_digest(make(2)) != own_digest(make(3))
    assert own_digest(functools.partial(torch.mul, other=2)) != own_digest(functools.partial(torch.mul, other=3))


def test_a_thing_that_cannot_be_pickled_is_never_taken_for_another():
    assert own_digest(iter(open(__file__))) != own_digest(iter(open(__file__)))  # noqa: SIM115


def test_the_package_s_code_is_addressed_by_its_file():
    from idsds.protocols.single_deletion import deletion_table, single_deletion

    assert code_digest(deletion_table) == code_digest(deletion_table) != code_digest(single_deletion)


def test_words_about_the_package_s_code_move_no_address(tmp_path, monkeypatch):
    def address(text):
        (tmp_path / "room.py").write_text(text)
        hashing._code.cache_clear()
        return hashing._code("idsds.room")

    monkeypatch.setattr(hashing, "PACKAGE", tmp_path)
    code = '"""A room."""\n\n\nclass A:\n    """An A."""\n\n    def f(self, x):\n        """Double."""\n        return 2 * x\n'
    worded = code.replace("A room", "The room").replace("An A", "One").replace("Double", "Return twice").replace("2 * x", "2 * x  # twice")
    bare = "class A:\n    def f(self, x):\n        return 2 * x\n"
    try:
        assert address(code) == address(worded) != address(code.replace("2 * x", "3 * x"))
        assert address(code) != address(bare.replace("x)", "x, y)"))
    finally:
        hashing._code.cache_clear()


def test_the_package_s_code_is_addressed_with_what_it_builds_on():
    gradient, deletion = modules_of("idsds.methods.gradient"), modules_of("idsds.protocols.single_deletion")
    assert {
        "idsds.methods.gradient",
        "idsds.methods.base",
        "idsds.models.base",
        "idsds.common.randomness",
        "idsds.common.batching",
    } <= gradient
    assert "idsds.common.interventions" in deletion
    assert not {"idsds.methods.rise", "idsds.evaluation.evaluate", "idsds.plots"} & (gradient | deletion)


def test_digest_depends_on_content_and_not_on_order():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": (1, 2), "a": 1})
    assert digest({"a": 1}) != digest({"a": 2})
    assert digest({"a": 1}) != digest({"a": "1"})
    with pytest.raises(TypeError, match="set"):
        digest({"a": {1}})
