"""What a notebook shows of a table and of a warning."""

import re
import sys
import warnings

import numpy as np
import pandas as pd
import pytest

from idsds.studies.shown import Table, as_html, intervals_of, short_warnings

RANKING = pd.DataFrame(
    {
        "model": "a <net>",
        "method": ["IG", "IxG", "Random"],
        "mean": [0.5, 0.25, np.nan],
        "low": [0.25, 0.125, np.nan],
        "high": [1.0, 0.5, np.nan],
        "count": [12_000, 3, 0],
        "interval": "95 % BCa bootstrap over images",
        "direction": "lower is better",
    }
)


def positions(text):
    return [tuple(map(float, found)) for found in re.findall(r'd="M([\d.]+) 4\.0H([\d.]+)"', text)]


def test_intervals_are_found_by_their_columns():
    table = pd.DataFrame(columns=["share", "low", "high", "p", "p_low", "place_low", "q", "q_low", "q_high", "low_"], dtype=float)
    assert intervals_of(table) == {"share": ("low", "high"), "q": ("q_low", "q_high")}
    assert intervals_of(table.astype({"share": str})) == {"q": ("q_low", "q_high")}


def test_a_table_has_bars_arrows_and_says_once_what_is_the_same():
    text = as_html(RANKING)
    heads = re.findall(r"<th>(.*?)</th>", text)
    assert heads == ["method", "mean ↓", "count"]
    assert "0.5 [0.25, 1]" in text
    (first, second) = positions(text)  # of the undefined row there is no bar
    assert first == (14.0, 86.0)  # 0.125 to 1 on 84 pixels, from 2 on
    assert second == (2.0, 38.0)
    assert "<td>nan</td>" in text
    assert "<td>12,000</td>" in text
    assert text.count("95 % BCa bootstrap over images") == 1
    assert "a &lt;net&gt;" in text
    assert "<net>" not in text
    assert "overflow: auto" in text
    assert as_html(RANKING.assign(direction="higher is better")).count("mean ↑") == 1
    mixed = as_html(RANKING.assign(direction=["higher is better", "lower is better", "lower is better"]))
    assert "↑" not in mixed
    assert "higher is better" in mixed


def test_one_scale_per_column_with_a_tick_at_zero():
    table = pd.DataFrame({"x": [0.0, 1.0], "x_low": [-1.0, 0.5], "x_high": [1.0, 1.0]})
    text = as_html(table)
    assert positions(text) == [(2.0, 86.0), (65.0, 86.0)]
    assert text.count('d="M44.0 0V8"') == 2
    assert 'd="M44.0 0V8"' not in as_html(table + 2)


def test_a_long_table_says_that_it_is_cut():
    text = as_html(pd.DataFrame({"number": range(501)}))
    assert "the first 500 of 501 rows" in text
    assert text.count("<tr") == 501  # the head, too
    assert "of 500" not in as_html(pd.DataFrame({"number": range(500)}))


def test_the_frame_stays_a_frame():
    table = Table(RANKING)
    assert "<svg" in table._repr_html_()
    assert type(table[table["mean"] > 0.3]) is pd.DataFrame
    assert "<svg" not in table[table["mean"] > 0.3]._repr_html_()
    pd.testing.assert_frame_equal(pd.DataFrame(table), RANKING)
    grouped = RANKING.groupby("method")[["count"]].sum()
    assert re.findall(r"<th>(.*?)</th>", as_html(grouped)) == ["method", "count"]
    assert as_html(pd.DataFrame())


def test_warnings_are_short_and_told_once_in_a_notebook(capsys, monkeypatch):
    class Stream:
        __module__ = "ipykernel.iostream"

        def __init__(self, kept):
            self.write, self.flush = kept.write, kept.flush

    with pytest.warns(UserWarning, match="elsewhere"), short_warnings():
        warnings.warn("as elsewhere", stacklevel=1)
    before = warnings.showwarning
    monkeypatch.setattr(sys, "stdout", Stream(sys.stdout))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        with short_warnings():
            for _ in range(3):
                warnings.warn("a net is\n   doubtful", stacklevel=1)
    assert capsys.readouterr() == ("note: a net is doubtful\n", "")
    assert warnings.showwarning is before


def test_bare_ends_belong_to_the_number_between_them():
    table = pd.DataFrame({"infidelity": [3.0, 4.0], "infidelity_se": [0.1, 0.2], "low": [2.8, 3.6], "high": [3.2, 4.4]})
    assert intervals_of(table) == {"infidelity": ("low", "high")}
    assert intervals_of(table.drop(columns="infidelity")) == {}
