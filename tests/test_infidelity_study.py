"""What is said of infidelity and the quality of models: scipy for the correlations, closed forms for the readings."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from idsds.infidelity_study import LEVELS, ZERO, correlations, findings, per_model, spearman, study_table
from idsds.plots import infidelity_sensitivity


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
    assert within["spearman"].item() == pytest.approx(np.mean(cells), abs=0.02)  # ties in F1 weigh a little differently


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
    assert f"correlation of {found:+.2f} to {found:+.2f} over 2 methods" in said[0]
    assert f"raw infidelity {'follows' if found > 0.8 else 'does not follow'}" in said[0].replace("Raw", "raw")
    assert "+0.45 [" in said[-2]
    assert "+0.56 [" in said[-1]
    figure = infidelity_sensitivity(table, ours, study, theirs, shown="Gradient")
    texts = [axes.get_ylabel() for part in figure.subfigs for axes in part.axes] + [
        axes.get_xlabel() for part in figure.subfigs for axes in part.axes
    ]
    assert any("lower is better" in text for text in texts)
    assert any("higher is better" in text for text in texts)
    below = figure.subfigs[1].axes
    assert [axes.get_title() for axes in below] == list(LEVELS)
    assert [label.get_text() for label in below[0].get_yticklabels()][:4] == ["Gradient", "IxG", "Random", "the study"]


def test_a_few_models_have_a_correlation_but_no_interval():
    ours = correlations(table_of(6)[lambda table: table["dataset"] == "d"], resamples=20)
    assert ours["low"].isna().all()
    assert ours.loc[(ours["method"] == "IxG") & (ours["level"] == "all models"), "spearman"].notna().all()
