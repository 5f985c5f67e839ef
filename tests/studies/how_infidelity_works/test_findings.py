"""What is said of the steps: intervals, orders and similarities of known maps."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from idsds.studies.how_infidelity_works.findings import (
    ZEROS,
    claims_table,
    lower,
    mean_of,
    reordered,
    sentences,
    similarity,
    steps_table,
    winners_of,
)
from idsds.studies.how_infidelity_works.study import Step, Walk


def step_of(predicted, changes, **facts):
    changes = np.asarray(changes, dtype=float)
    blank = {"taken": np.zeros((2, 2)), "picture": np.zeros((2, 2, 3)), "products": {}, "logit": 1.0, "optimal": np.zeros((2, 2))}
    blank |= {"name": "p", "noise": True, "sampled": True, "cells": 4, "ridge": 0.0, "fitted": 12, "different": 6, "seen": 0, **facts}
    return Step(changes=changes, predicted={name: np.asarray(values, dtype=float) for name, values in predicted.items()}, **blank)


def test_intervals_are_those_of_student():
    values = np.random.default_rng(3).normal(size=20) ** 2
    found = mean_of(values)
    low, high = stats.t.interval(0.95, 19, values.mean(), stats.sem(values))
    assert found == pytest.approx((values.mean(), stats.sem(values), low, high))
    assert mean_of(values, sampled=False) == (values.mean(), 0, values.mean(), values.mean())


def test_only_clear_differences_count():
    """Ten times the change is far off and, scaled, perfect; a map with noise added is near, and scaled stays so: their order turns."""
    rng = np.random.default_rng(4)
    changes = rng.normal(size=200)
    loud, noisy = 10 * changes, changes + 0.3 * rng.normal(size=200)
    twin = noisy + 1e-3 * rng.normal(size=200)
    step = step_of({"loud": loud, "noisy": noisy, "twin": twin}, changes)
    assert lower(step, "noisy", "loud")
    assert lower(step, "loud", "noisy", scaled=True)
    assert lower(step, ZEROS, "loud")
    assert not lower(step, ZEROS, "noisy")
    # The two that are the same but for a thousandth differ in their means, which is no order.
    assert step.errors["noisy"].mean() != step.errors["twin"].mean()
    assert not lower(step, "noisy", "twin")
    assert not lower(step, "twin", "noisy")
    assert set(reordered(step, ["loud", "noisy", "twin"])) == {("noisy", "loud"), ("twin", "loud")}
    assert set(winners_of(step, ["loud", "noisy", "twin"])) == {"noisy", "twin"}
    # Where the perturbations are all that there are, any difference counts.
    assert len(winners_of(replace(step, sampled=False), ["loud", "noisy", "twin"])) == 1


def test_silence_that_wins_is_counted(settings):
    rng = np.random.default_rng(5)
    changes = rng.normal(size=100)
    optimal = settings().optimal
    bad = step_of({"a": 10 * rng.normal(size=100), "b": -3 * changes, optimal: changes}, changes)
    good = replace(bad, name="q", predicted={"a": 0.9 * changes, "b": -3 * changes, optimal: changes})
    maps = {name: np.zeros((8, 8)) for name in ("a", "b")}
    walk = Walk(settings(), "id", "7", np.zeros((2, 2, 3)), maps, [bad, good], {"p": [], "q": []})
    claims = claims_table(walk)
    assert claims["zeros_below"].tolist() == ["a, b", "b"]
    assert claims["verdict"].tolist() == ["supported", "supported"]
    worse = replace(good, predicted={**good.predicted, optimal: 5 * changes})
    assert claims_table(replace(walk, steps=[worse]))["verdict"].tolist() == ["contradicted"]
    said = sentences(walk, claims)
    assert "a map of zeros is clearly below all of them for 1." in said[1]
    assert "intervals are over perturbations, not over images" in said[0]


def test_similarity_is_of_cells():
    rng = np.random.default_rng(6)
    first, second = rng.normal(size=(2, 8, 12))
    cells = [
        np.array([values[4 * i : 4 * i + 4, 6 * j : 6 * j + 6].mean() for i in range(2) for j in range(2)]) for values in (first, second)
    ]
    cosine = cells[0] @ cells[1] / np.linalg.norm(cells[0]) / np.linalg.norm(cells[1])
    assert similarity(first, second, 2) == pytest.approx((cosine, stats.spearmanr(*cells).statistic))
    assert np.isnan(similarity(np.zeros((8, 12)), second, 2)).all()


def test_the_table_has_an_interval_beside_each_number(settings):
    table = steps_table(settings().walk(progress=False))
    assert len(table) == 4 * 4
    for value, low, high, se in (
        ("infidelity", "low", "high", "infidelity_se"),
        ("normalised", "normalised_low", "normalised_high", "normalised_se"),
    ):
        assert (table[low] <= table[value]).all()
        assert (table[value] <= table[high]).all()
        assert (table[low] >= 0).all()
        drawn = table["perturbation"] != "one patch"
        assert (table.loc[drawn, se] > 0).all()
        assert (table.loc[~drawn, se] == 0).all()
    assert set(table["interval"]) == {"95 % t over 30 perturbations of one image", "none: all 16 perturbations of one image"}
    assert table.loc[table["perturbation"].str.startswith("noise"), "floor"].notna().all()
    assert table.loc[~table["perturbation"].str.startswith("noise"), "floor"].isna().all()
    assert pd.api.types.is_integer_dtype(table["seen"])
