"""The result of a study: what is said of it, and its files."""

import pandas as pd
import pytest

from idsds.studies.base import Findings
from idsds.studies.result import listed


def test_findings_are_three_sentences_at_most():
    with pytest.raises(ValueError, match="4 sentences; a study's findings are at most 3"):
        Findings(["One."] * 4)
    claims = pd.DataFrame({"claim": ["a < b", "c"], "difference": [0.5, 0.1], "low": [0.25, -0.1], "high": [0.75, 0.3]})
    shown = Findings(["One & two."], claims, "Of three nets.")._repr_html_()
    assert "<li>One &amp; two.</li>" in shown
    assert "a &lt; b" in shown
    assert "0.5 [0.25, 0.75]" in shown
    assert shown.count("<svg") == 2, "verdicts have their intervals as bars"
    assert shown.endswith("<p>Of three nets.</p>")
    assert "<table" not in Findings(["One."])._repr_html_()
    assert [listed("abc"), listed("abcd"), listed("abcdef")] == ["a, b, c", "a, b, c, d", "a, b, c, d and 2 more"]
    assert [listed("abc", most=2), listed([])] == ["a, b and 1 more", ""]
