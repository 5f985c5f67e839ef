"""A small torture, of a few trials; `make torture` makes some hundreds, of all kinds."""

from tests.torture import KINDS, torture

QUICK = ("one process, killed", "two writers", "disk full", "folder removed", "bits of a file: records", "bits of a file: manifest")


def test_nothing_is_silent():
    table = torture(8, seed=1, kinds={name: KINDS[name] for name in QUICK})
    assert table["trials"].sum() >= len(QUICK)
    bad = table[table["silent"] + table["obscure"] > 0]
    assert bad.empty, bad.to_string()
