"""A small torture, of a few trials; `make torture` makes some hundreds, of all kinds."""

import random
import time

import pytest

from tests.torture import KINDS, Hung, World, patient, torture

QUICK = ("one process, killed", "two writers", "disk full", "folder removed", "bits of a file: records", "bits of a file: manifest")


def test_nothing_is_silent():
    table = torture(8, seed=1, kinds={name: KINDS[name] for name in QUICK})
    assert table["trials"].sum() >= len(QUICK)
    bad = table[table["silent"] + table["hung"] + table["obscure"] > 0]
    assert bad.empty, bad.to_string()


def test_a_call_that_hangs_is_seen(tmp_path, monkeypatch):
    for name in ("IDSDS_CACHE", "IDSDS_RECORD_CACHE"):
        monkeypatch.setenv(name, "")  # so that they are as they were
    world = World(tmp_path, random.Random(0))
    with pytest.raises(Hung) as hung, patient(0.1):
        time.sleep(60)
    world.judge(hung.value)
    assert (world.worst, world.said) == ("hung", "Hung: it took more than 0.1 seconds")
