"""What is said of infidelity and the quality of models: scipy for the correlations, closed forms for the readings."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import sem, spearmanr, t

from idsds.infidelity_study import LEVELS, WITHIN, ZERO, correlations, findings, per_model, spearman, study_table
from idsds.plots import infidelity_sensitivity
from idsds.plots.infidelity import _shown


@pytest.fixture(scope="module")
def study():
    return study_table()


@pytest.fixture(scope="module")
def theirs(study):
    return correlations(study, resamples=60)


def test_one_group_is_scipys_coefficient():
    values = np.random.default_rng(0).normal(size=(23, 3)).round(1)  # with ties
    assert spearman(values, [0] * 23) == pytest.approx(spearmanr(values).statistic, abs=1e-12)


def test_within_groups_of_equal_size_it_is_the_mean_of_theirs():
    rng = np.random.default_rng(1)
    groups = np.repeat(["a", "b", "c", "d"], 7)
    values = rng.normal(size=(28, 2)) + 10 * (groups == "b")[:, None]  # a difference between groups plays no part
    found = spearman(values, groups)[0, 1]
    assert found == pytest.approx(np.mean([spearmanr(values[groups == name]).statistic for name in "abcd"]), abs=1e-12)
    assert abs(found - spearmanr(values).statistic) > 0.1


def test_the_studys_rows_give_its_unprinted_correlation(study, theirs):
    assert len(study) == 75
    pooled = theirs[theirs["level"] == "all models"].set_index(["measure", "quality"])
    for measure, quality, rounded in [
        ("raw", "weighted_precision", 0.45),
        ("raw", "macro_f1", 0.56),
        ("sensitivity", "weighted_precision", 0.09),
    ]:
        row = pooled.loc[(measure, quality)]
        assert row["spearman"] == pytest.approx(spearmanr(study[measure], study[quality]).statistic, abs=1e-12)
        assert row["spearman"] == pytest.approx(rounded, abs=0.005)
        assert row["low"] < row["spearman"] < row["high"]
        assert (row["models"], row["groups"]) == (75, 15)
    within = theirs[(theirs["level"] == list(LEVELS)[-1]) & (theirs["measure"] == "raw") & (theirs["quality"] == "macro_f1")]
    cells = [spearmanr(rows["raw"], rows["macro_f1"]).statistic for _, rows in study.groupby(["dataset", "model"])]
    low, high = t.interval(0.95, len(cells) - 1, np.mean(cells), sem(cells))
    assert within[["spearman", "low", "high"]].to_numpy()[0] == pytest.approx([np.mean(cells), max(low, -1), min(high, 1)], abs=1e-9)
    assert within["interval"].item() == "95 % t interval over 15 groups of models"


def records():
    """Two images, two models: p is what a map foretells and c what the logit does, so that every reading is known."""
    foretold = {"net_020_s0": ([1.0, 2.0], [2.0, 2.0]), "net_100_s0": ([3.0, 0.5], [1.0, 4.0])}
    rows = []
    for name, (p, c) in foretold.items():
        for image, (predicted, change) in enumerate(zip(p, c, strict=True)):
            for method, value in (("IG", predicted), ("IG x10", 10 * predicted), (ZERO, 0.0)):
                family = "own" if method == ZERO else "gradient"
                row = {"dataset": "d", "name": name, "method": method, "image_id": image, "family": family, "protocol": "infidelity"}
                raw = (value - change) ** 2
                rows.append({**row, "raw": raw, "normalised": change**2 if method == ZERO else 0.25, "score": raw})
            rows.append({**row, "method": "IG", "family": "gradient", "protocol": "max_sensitivity", "score": 0.1 + image})
    return pd.DataFrame(rows)


def test_readings_of_a_model():
    table = per_model(records()).set_index("name")
    first = table.loc["net_020_s0"]
    assert first["raw"] == pytest.approx((1 + 0) / 2)
    assert first["raw_x10"] == pytest.approx((8**2 + 18**2) / 2)
    assert first["change"] == pytest.approx(4)
    assert first["relative"] == pytest.approx(0.25 / 4)
    assert first["sensitivity"] == pytest.approx(0.6)
    assert (first["images"], first["nan"], first["family"]) == (2, 0, "gradient")
    assert table.loc["net_100_s0", "relative"] == pytest.approx(0.25 / 8.5)


def table_of(models=24):
    """Models whose raw infidelity is their logits' scale and no more, and whose scale grows with their accuracy."""
    rng = np.random.default_rng(2)
    accuracy = rng.uniform(0.3, 1, models)
    change = np.exp(4 * accuracy + rng.normal(size=models) / 5)
    rows = {"dataset": np.repeat(["d", "e"], models // 2), "model": np.tile(["mini_resnet8", "mini_densenet"], models // 2)}
    rows |= {"fraction": np.tile([0.2, 0.6, 1.0], models // 3), "seed": 0, "accuracy": accuracy, "macro_f1": accuracy**2}
    relative = rng.uniform(0.2, 0.9, models)
    rows |= {"weighted_precision": accuracy**0.9, "change": change, "relative": relative, "normalised": relative * change}
    rows |= {
        "raw": relative * change * 1.1,
        "raw_x10": 80 * change,
        "normalised_x10": relative * change,
        "sensitivity": rng.uniform(0.1, 1, models),
    }
    frames = [pd.DataFrame(rows).assign(method=name, family="gradient") for name in ("Gradient", "IxG")]
    return pd.concat([*frames, pd.DataFrame(rows).assign(method="Random", family="control", sensitivity=0.0)], ignore_index=True)


def test_what_is_said_is_computed(study, theirs):
    table = table_of()
    ours = correlations(table, resamples=60)
    silent = ours[(ours["method"] == "Random") & (ours["measure"] == "sensitivity")]
    assert silent["spearman"].isna().all(), "a control that never changes has no correlation, not one of 0"
    said = findings(table, ours, theirs)
    found = spearmanr(table_of()["raw"][:24], table_of()["change"][:24]).statistic
    assert found > 0.8
    assert "for 2 of 2 methods (Spearman correlation above 0.8" in said[0]
    assert f"These correlations are {found:+.2f} to {found:+.2f}" in said[0]
    assert "over all models (no intervals; 24 models in 4 groups)" in said[1]
    assert "of 2 intervals without 0; 24 models in 4 groups)" in said[1]
    assert "+0.45 [" in said[-2]
    assert "+0.56 [" in said[-1]
    figure = infidelity_sensitivity(table, ours, study, theirs)
    assert figure.subfigs[0].axes[0].get_title() == "d, Gradient", "without the study's method it is the first"
    texts = [axes.get_ylabel() for part in figure.subfigs for axes in part.axes] + [
        axes.get_xlabel() for part in figure.subfigs for axes in part.axes
    ]
    assert any("lower is better" in text for text in texts)
    assert any("higher is better" in text for text in texts)
    below = figure.subfigs[1].axes
    assert [axes.get_title().splitlines()[0] for axes in below] == list(LEVELS)
    assert below[0].get_title().splitlines()[1:] == ["ours: 24 models in 4 groups,", "the study: 75 in 15"]
    assert {text.get_text() for text in below[2].texts} == {"constant"}, "a control that never changes is said to be so"
    assert [label.get_text() for label in below[0].get_yticklabels()][:4] == ["Gradient", "IxG", "Random", "the study"]


def test_a_few_models_have_a_correlation_but_no_interval():
    ours = correlations(table_of(6)[lambda table: table["dataset"] == "d"], resamples=20)
    assert ours["low"].isna().all()
    assert ours.loc[(ours["method"] == "IxG") & (ours["level"] == "all models"), "spearman"].notna().all()


def test_pooled_levels_of_a_few_groups_have_no_interval():
    ours = correlations(table_of(), resamples=20)
    assert ours.loc[ours["level"] != WITHIN, "low"].isna().all()
    assert set(ours.loc[ours["level"] != WITHIN, "interval"]) == {"no interval: 4 groups of models"}


def test_groups_that_all_agree_are_no_certainty():
    table = table_of().assign(raw=lambda each: each["accuracy"] ** 3)
    row = correlations(table, resamples=20).query("method == 'IxG' and measure == 'raw' and quality == 'accuracy' and level == @WITHIN")
    assert row["spearman"].item() == pytest.approx(1)
    assert np.isnan(row["low"].item())
    assert row["interval"].item() == "no interval: all 4 groups of models agree"


def test_a_missing_value_costs_its_own_pairs_only():
    table = table_of()
    table.loc[table.index[table["method"] == "IxG"][0], "relative"] = np.nan
    ours = (
        correlations(table, resamples=20).query("method == 'IxG' and quality == 'accuracy' and level == 'all models'").set_index("measure")
    )
    assert ours["dropped"].to_dict() == {"raw": 0, "normalised": 0, "relative": 1, "sensitivity": 0, "change": 0}
    rest = table[table["method"] == "IxG"].iloc[1:]
    assert ours.loc["relative", "spearman"] == pytest.approx(spearmanr(rest["relative"], rest["accuracy"]).statistic)


def test_methods_are_judged_one_by_one(theirs):
    table = table_of()
    table.loc[table["method"] == "IxG", "raw"] = np.random.default_rng(5).uniform(size=24)
    rho = spearmanr(table.loc[table["method"] == "IxG", ["raw", "change"]]).statistic
    said = findings(table, correlations(table, resamples=20), theirs)[0]
    assert "for 1 of 2 methods" in said
    assert f"; not for IxG ({rho:+.2f})." in said


def test_the_studys_method_is_drawn_where_every_model_has_it():
    table = table_of().replace({"method": {"IxG": "Guided Backprop"}})
    assert _shown(table) == "Guided Backprop"
    assert _shown(table.drop(index=table.index[table["method"] == "Guided Backprop"][0])) == "Gradient"
