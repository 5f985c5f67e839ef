"""Correlations of infidelity with the quality of models, against scipy; how much of it is the map's doing, on tables of known make-up."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata, sem, spearmanr, t

from idsds.studies.infidelity_sensitivity.correlations import (
    CONTROL,
    GIVEN,
    LEVELS,
    WITHIN,
    beside_random,
    correlations,
    map_part,
    study_table,
)
from idsds.studies.infidelity_sensitivity.findings import spread_said
from tests.studies.infidelity_sensitivity.tables import table_of


def test_the_studys_rows_give_its_unprinted_correlation(study, theirs):
    assert len(study) == 4 * 75
    study, theirs = (table[table["method"] == "Guided Backprop"] for table in (study, theirs))
    pooled = theirs[theirs["level"] == "all models"].set_index(["measure", "quality"])
    for measure, quality, rounded in [
        ("raw", "weighted_precision", 0.45),
        ("raw", "weighted_f1", 0.56),
        ("sensitivity", "weighted_precision", 0.09),
    ]:
        row = pooled.loc[(measure, quality)]
        assert row["spearman"] == pytest.approx(spearmanr(study[measure], study[quality]).statistic, abs=1e-12)
        assert row["spearman"] == pytest.approx(rounded, abs=0.005)
        assert row["low"] < row["spearman"] < row["high"]
        assert (row["models"], row["groups"]) == (75, 15)
        assert row["interval"] == "95 % jackknife over 15 groups of models (Student's t on Fisher's z scale)"
    within = theirs[(theirs["level"] == list(LEVELS)[-1]) & (theirs["measure"] == "raw") & (theirs["quality"] == "weighted_f1")]
    cells = [spearmanr(rows["raw"], rows["weighted_f1"]).statistic for _, rows in study.groupby(["dataset", "model"])]
    low, high = t.interval(0.95, len(cells) - 1, np.mean(cells), sem(cells))
    assert within[["spearman", "low", "high"]].to_numpy()[0] == pytest.approx([np.mean(cells), max(low, -1), min(high, 1)], abs=1e-9)
    assert within["interval"].item() == "95 % t interval over 15 groups of models"


def pick(found, method, measure, quality, level):
    row = found[(found["method"] == method) & (found["measure"] == measure) & (found["quality"] == quality) & (found["level"] == level)]
    return row.iloc[0]


def test_what_raw_says_beyond_the_logits_scale():
    """The partial rank correlation: of what straight lines through the ranks of the change leave of the other two."""
    table = table_of()
    row = pick(correlations(table), "IxG", "raw", f"accuracy{GIVEN}", "all models")
    part = table[table["method"] == "IxG"]
    raw, accuracy, change = (rankdata(part[name]) for name in ("raw", "accuracy", "change"))
    left = [values - np.polyval(np.polyfit(change, values, 1), change) for values in (raw, accuracy)]
    assert row["spearman"] == pytest.approx(np.corrcoef(*left)[0, 1], abs=1e-9)
    assert (row["models"], row["groups"]) == (24, 4)


def test_two_groups_have_a_correlation_but_no_interval():
    ours = correlations(table_of()[lambda table: table["dataset"] == "d"])
    assert ours["low"].isna().all()
    row = pick(ours, "IxG", "raw", "accuracy", "all models")
    assert np.isfinite(row["spearman"])
    assert row["interval"] == "no interval: 2 groups of models"


def test_a_few_groups_have_a_jackknife():
    table = table_of()
    row = pick(correlations(table), "IxG", "relative", "accuracy", "all models")
    part = table[table["method"] == "IxG"]
    cells = [(dataset, model) for dataset in "de" for model in ("mini_resnet8", "mini_densenet")]
    without = [part[(part["dataset"] != dataset) | (part["model"] != model)] for dataset, model in cells]
    z = np.arctanh([spearmanr(rows["relative"], rows["accuracy"]).statistic for rows in without])
    half = t.ppf(0.975, 3) * np.sqrt(3 / 4 * ((z - z.mean()) ** 2).sum())
    centre = np.arctanh(spearmanr(part["relative"], part["accuracy"]).statistic)
    assert (row["low"], row["high"]) == pytest.approx((np.tanh(centre - half), np.tanh(centre + half)), abs=1e-9)
    assert row["interval"] == "95 % jackknife over 4 groups of models (Student's t on Fisher's z scale)"


def test_groups_that_all_agree_are_no_certainty():
    table = table_of().assign(raw=lambda each: each["accuracy"] ** 3)
    row = pick(correlations(table), "IxG", "raw", "accuracy", WITHIN)
    assert row["spearman"] == pytest.approx(1)
    assert np.isnan(row["low"])
    assert row["interval"] == "no interval: 4 groups of models, all agree"


def test_a_missing_value_costs_its_own_pairs_only():
    table = table_of()
    table.loc[table.index[table["method"] == "IxG"][0], "relative"] = np.nan
    ours = correlations(table).query("method == 'IxG' and quality == 'accuracy' and level == 'all models'").set_index("measure")
    assert ours["dropped"].to_dict() == {"raw": 0, "normalised": 0, "relative": 1, "sensitivity": 0, "change": 0}
    rest = table[table["method"] == "IxG"].iloc[1:]
    assert ours.loc["relative", "spearman"] == pytest.approx(spearmanr(rest["relative"], rest["accuracy"]).statistic)


def test_a_method_is_held_against_a_map_that_knows_nothing(theirs):
    """Differences of relative infidelity on the same models, Student's t over the groups' means."""
    table = table_of()
    of = {name: table["method"] == name for name in ("Gradient", "IxG", CONTROL)}
    noise = np.random.default_rng(6).normal(0, 0.01, 24)
    table.loc[of["Gradient"], "relative"] = table.loc[of[CONTROL], "relative"].to_numpy() - 0.3 + noise
    found = beside_random(table).set_index("method")
    cells = table[of[CONTROL]].assign(gap=noise - 0.3).groupby(["dataset", "model"])["gap"].mean()
    half = t.ppf(0.975, 3) * sem(cells)
    expected = [cells.mean(), cells.mean() - half, cells.mean() + half]
    assert found.loc["Gradient", ["difference", "low", "high"]].tolist() == pytest.approx(expected)
    assert found.loc["IxG", "difference"] == pytest.approx(0)
    assert found["verdict"].to_dict() == {"Gradient": "supported", "IxG": "not supported"}


def made_of(factors):
    rows = [
        {"dataset": dataset, "model": model, "fraction": 1.0, "seed": seed, "method": method, "raw": 2.0**seed * factor, "family": family}
        for dataset in ("d", "e")
        for model in ("a", "b")
        for seed in range(3)
        for (method, factor), family in zip(factors.items(), ("gradient", "gradient", "control"), strict=False)
    ]
    return pd.DataFrame(rows)


def test_what_only_models_differ_by_and_what_methods_differ_by():
    (same, *each) = map_part(made_of({"IG": 1.0, "IxG": 1.0, "Random": 50.0})).to_dict("records")
    assert [row["architecture"] for row in (same, *each)] == ["all", "a", "b"]
    assert (same["models"], same["methods"], same["median_spread"]) == (12, 2, 0), "the control is left out"
    assert same["between_models"] == pytest.approx(1)
    (twice, *_) = map_part(made_of({"IG": 1.0, "IxG": 2.0})).to_dict("records")
    assert twice["median_spread"] == pytest.approx(1)
    # Logarithms of 1, 2, 4 and of 1, 2 in units of log 2: variances of 2/3 and 1/4.
    assert [twice[name] for name in ("between_models", "between_methods", "rest")] == pytest.approx([8 / 11, 3 / 11, 0], abs=1e-9)


def test_on_the_studys_models_the_map_plays_little_part_but_not_for_densenet():
    found = map_part(study_table()).set_index("architecture")
    assert found.loc["all", "models"] > 65
    assert found.loc["all", "between_models"] == pytest.approx(0.95, abs=0.01)
    assert found.loc["all", "between_methods"] < 0.02
    assert 0.05 < found.loc["all", "median_spread"] < 0.08
    assert found.loc["efficientnet_b0", "median_spread"] < 0.05
    assert found.loc["densenet121", "median_spread"] > 0.5
    said = spread_said(found.reset_index().assign(models_of="the study's", sigma=0.003))
    assert "the study's at sigma 0.003 1.07 (not supported)" in said
    assert np.isfinite(found["low"]).all()
