"""Scores of a protocol by its name, as the engine computes them."""

from __future__ import annotations

import torch

from idsds.methods import create_method
from idsds.protocols import PROTOCOLS

TARGETS = torch.tensor([0, 2, 1])
IDS = ["a", "b", "c"]


def score(name, net, methods, batch, **settings):
    entry = PROTOCOLS[name]
    prepared = entry.prepare(net, batch, **settings) if entry.prepare else {}
    return entry.function(net, methods, batch, prepared, **settings)


def methods_of(net, *names):
    return [create_method(name, net) for name in names]
