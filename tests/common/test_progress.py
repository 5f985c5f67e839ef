"""Progress is plain output in a kernel: what goes to the error stream is shown as an error there."""

import io
import sys

from idsds.common.progress import Progress


def test_a_bar_is_plain_output_in_a_kernel_and_an_aside_on_a_terminal(monkeypatch, capsys):
    stream = type("OutStream", (io.StringIO,), {"__module__": "ipykernel.iostream"})()
    monkeypatch.setattr(sys, "stdout", stream)
    with Progress(total=3, desc="maps") as bar:
        bar.update(3)
    assert "maps: 100%" in stream.getvalue()
    assert capsys.readouterr().err == ""
    monkeypatch.undo()
    for _ in Progress(range(2), desc="nets"):
        pass
    written = capsys.readouterr()
    assert "nets" in written.err
    assert written.out == ""
