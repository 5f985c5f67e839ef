"""Global state that changes numbers is part of every hash."""

import torch
from torch import nn

from idsds.common.hashing import own_digest
from idsds.common.switches import switches


def test_a_function_in_a_library_s_place_counts(monkeypatch):
    net, before = nn.Sequential(nn.ReLU()), own_digest(switches())
    plain = own_digest(net)
    assert own_digest(switches()) == before
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x)
    assert own_digest(net) != plain
    monkeypatch.setattr(torch.nn.functional, "gelu", lambda x: x)
    assert own_digest(switches()) != before


def test_torch_s_switches_count():
    before = own_digest(switches())
    torch.set_default_dtype(torch.float64)
    try:
        assert own_digest(switches()) != before
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert own_digest(switches()) != before
    handle = nn.modules.module.register_module_forward_hook(lambda module, given, result: result)
    try:
        assert own_digest(switches()) != before
    finally:
        handle.remove()
    assert own_digest(switches()) == before
