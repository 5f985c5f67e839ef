"""Pieces of work side by side, and the scripts that may start them."""

import sys

import pytest

from idsds.common.processes import is_guarded

GUARDED = ('if __name__ == "__main__":', "if '__main__'==__name__:", "if __name__=='__main__': main()")


UNGUARDED = ("log = logging.getLogger(__name__)", "name = __name__", "print(__file__ == __name__file__)")


@pytest.mark.parametrize("line", [*GUARDED, *UNGUARDED])
def test_a_script_is_guarded_only_if_it_compares_its_name(monkeypatch, tmp_path, line):
    script = tmp_path / "script.py"
    script.write_text(f"import logging\n{line}\n", encoding="utf-8")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    assert is_guarded() == (line in GUARDED)
