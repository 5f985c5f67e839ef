"""Which code may read external data while it runs."""

import math
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from idsds.common.origin import Unknown
from idsds.common.purity import check, check_attributes, is_reader


@pytest.mark.parametrize("thing", [len, sorted, math.sin, np.mean, torch.relu, torch.nn.Linear, math, "text", 3])
def test_what_computes_from_its_arguments_alone(thing):
    check(thing)


@pytest.mark.parametrize(
    "thing", [open, eval, os.getenv, time.time, np.loadtxt, torch.load, yaml.safe_load, os], ids=lambda thing: thing.__name__
)
def test_what_may_read_other_data(thing):
    with pytest.raises(Unknown, match="may read external data"):
        check(thing)


def test_attributes_that_lead_out():
    def reads(path: Path):
        return path.read_text()

    def takes(records):
        return records.load()

    def imports(records):
        import json

        return json, records.load()

    with pytest.raises(Unknown, match=r"reads uses read_text\(\)"):
        check_attributes(reads)
    check_attributes(takes)  # an attribute of this name may be anything
    with pytest.raises(Unknown, match=r"imports uses load\(\)"):
        check_attributes(imports)
    assert [is_reader(name) for name in ("read_csv", "imread", "reader", "relu")] == [True, True, False, False]
