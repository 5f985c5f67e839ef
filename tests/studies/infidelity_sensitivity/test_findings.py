"""What is said of infidelity and the quality of models: scipy for the correlations, closed forms for the readings."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from idsds.plots import infidelity_sensitivity
from idsds.studies.infidelity_sensitivity.correlations import LEVELS, WITHIN, correlations, map_part
from idsds.studies.infidelity_sensitivity.findings import CLAIMS, claims, findings
from tests.studies.infidelity_sensitivity.tables import table_of


def test_what_is_said_is_computed(study, theirs):
    table = table_of()
    ours = correlations(table)
    silent = ours[(ours["method"] == "Random") & (ours["measure"] == "sensitivity")]
    assert silent["spearman"].isna().all(), "a control that never changes has no correlation, not one of 0"
    judged = claims(table, ours, theirs)
    said = findings(judged, map_part(table).assign(models_of="ours", sigma=0.1))
    found = spearmanr(table_of()["raw"][:24], table_of()["change"][:24]).statistic
    assert found > 0.8
    rows = judged.set_index(["claim", "models", "level"])
    follows = rows.loc[next(claim for *_, claim, _ in CLAIMS), "ours", "all models"]
    assert follows[["lowest", "highest"]].tolist() == pytest.approx([found, found])
    assert follows[["nets", "methods", "supported", "contradicted"]].tolist() == [24, 2, 2, 0]
    assert rows.loc["better models have a lower infidelity", "ours", "all models"]["contradicted"] == 2
    known = ours.query("method == 'Random' and measure == 'normalised' and quality == 'accuracy' and level == 'all models'").iloc[0]
    control = rows.loc["better models have a lower infidelity, with the scale of the map removed", "ours, Random", "all models"]
    assert control["lowest"] == control["highest"] == known["spearman"]
    printed = rows.xs(("better models have a lower infidelity", "all models"), level=("claim", "level"))
    assert printed.loc["the study's, weighted_precision", "methods"] == 4
    for name in ("weighted_precision", "weighted_f1"):
        known = [spearmanr(part["raw"], part[name], nan_policy="omit").statistic for _, part in study.groupby("method")]
        assert printed.loc[f"the study's, {name}", ["lowest", "highest"]].tolist() == pytest.approx([min(known), max(known)])
    assert len(said.sentences) == 3
    assert set(said.verdicts["models"]) == {"ours", "the study's, weighted_precision"}
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
    assert [label.get_text() for label in below[0].get_yticklabels()][:4] == ["Gradient", "IxG", "Random", "study: Guided Backprop"]


def judged(table, theirs, claim, models="ours", level="all models"):
    rows = claims(table, correlations(table), theirs).set_index(["claim", "models", "level"])
    return rows.loc[claim, models, level]


def test_methods_are_judged_one_by_one(theirs):
    table = table_of()
    table.loc[table["method"] == "IxG", "raw"] = np.random.default_rng(5).uniform(size=24)
    rho = spearmanr(table.loc[table["method"] == "IxG", ["raw", "change"]]).statistic
    row = judged(table, theirs, CLAIMS[0][2])
    assert row["lowest"] == pytest.approx(rho)
    assert (row["supported"], row["not supported"]) == (1, 1)


def test_models_at_chance_are_named_and_left_out(theirs):
    table = table_of().assign(accuracy_low=lambda each: each["accuracy"] - 0.05, chance=0.1)
    worst = np.sort(table["accuracy"].unique())[:3]
    table.loc[table["accuracy"].isin(worst), "accuracy_low"] = 0.08
    row = judged(table, theirs, "better models have a lower infidelity", "ours above chance")
    assert row["nets"] == 21
    rest = table[(table["method"] == "IxG") & ~table["accuracy"].isin(worst)]
    assert row["lowest"] == pytest.approx(spearmanr(rest["raw"], rest["accuracy"]).statistic)


def test_images_and_the_scale_of_the_logits_go_together(theirs):
    table = table_of().assign(epochs=2)
    table["train_images"] = table.groupby(["method", "dataset", "model"])["change"].rank()
    row = judged(table, theirs, "the change of the logit grows with the number of training images", level=WITHIN)
    assert row["lowest"] == pytest.approx(1)
    assert row["not supported"] == 1, "groups that all agree have no interval"


def test_a_claim_is_supported_by_intervals_on_its_side(theirs):
    table = table_of()
    table["relative"] = 1 - table["accuracy"] ** 2 + np.tile(np.random.default_rng(8).normal(0, 0.05, 24), 3)
    better = judged(table, theirs, "better models have a lower relative infidelity")
    assert (better["supported"], better["contradicted"]) == (2, 0)
    neither = judged(table, theirs, "better models have a lower max-sensitivity")
    assert neither["not supported"] == neither["methods"] == 2
