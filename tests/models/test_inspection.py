"""What is found out about a user's net."""

from __future__ import annotations

import torch
from torch import nn

from idsds.models.inspection import as_net
from tests.evaluation.test_checks import plain


def test_wrappers_are_taken_off() -> None:
    net = plain()
    assert as_net("n", nn.DataParallel(net)) is net
    assert as_net("n", torch.compile(net)) is net
    assert as_net("n", None) is None
