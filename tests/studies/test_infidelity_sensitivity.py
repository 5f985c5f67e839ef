"""What is said of infidelity and the quality of models: scipy for the correlations, closed forms for the readings."""

import numpy as np
import pandas as pd
import pytest
import torch
from captum.attr import GuidedBackprop, Saliency
from scipy.stats import rankdata, sem, spearmanr, t

from idsds import create_method, create_model
from idsds.methods.guided import no_relu
from idsds.plots import infidelity_sensitivity
from idsds.plots.infidelity_sensitivity import _shown
from idsds.studies.infidelity_sensitivity.correlations import CONTROL, GIVEN, LEVELS, WITHIN, beside_random, correlations, study_table
from idsds.studies.infidelity_sensitivity.findings import CLAIMS, claims, findings
from idsds.studies.infidelity_sensitivity.study import ZERO, per_model


@pytest.fixture(scope="module")
def study():
    return study_table()


@pytest.fixture(scope="module")
def theirs(study):
    return correlations(study)


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


def records():
    """Three images, two models: p is the change that a map predicts, c that of the logit, one perturbation each: all values are known."""
    pairs = {"net_020_s0": ([1.0, 2.0, 0.0], [2.0, 2.0, 1.0]), "net_100_s0": ([3.0, 0.5, 1.0], [1.0, 4.0, np.nan])}
    rows = []
    for name, (p, c) in pairs.items():
        for image, (predicted, change) in enumerate(zip(p, c, strict=True)):
            for method, value in (("IG", predicted), ("IG x10", 10 * predicted), (ZERO, 0.0)):
                family = "own" if method == ZERO else "gradient"
                row = {"dataset": "d", "name": name, "method": method, "image_id": image, "family": family, "protocol": "infidelity"}
                raw = (value - change) ** 2
                normalised = change**2 if method == ZERO else change**2 / (2 + image)
                rows.append({**row, "raw": raw, "normalised": normalised, "score": raw})
            rows.append({**row, "method": "IG", "family": "gradient", "protocol": "max_sensitivity", "score": 0.1 + image})
    return pd.DataFrame(rows)


def test_readings_of_a_model():
    table = per_model(records()).set_index("name")
    first = table.loc["net_020_s0"]
    assert first["raw"] == pytest.approx((1 + 0 + 1) / 3)
    assert first["raw_x10"] == pytest.approx((8**2 + 18**2 + 1) / 3)
    assert first["change"] == pytest.approx((4 + 4 + 1) / 3)
    assert first["forecast"] == pytest.approx((1 + 4 + 0) / 3), "the mean of p^2"
    assert first["relative"] == pytest.approx((4 / 2 + 4 / 3 + 1 / 4) / 9)
    assert first["sensitivity"] == pytest.approx(1.1)
    assert (first["images"], first["nan"], first["family"]) == (3, 0, "gradient")
    for name in ("raw", "relative", "sensitivity"):
        assert first[f"{name}_low"] < first[name] < first[f"{name}_high"], "BCa over three images"
    assert first["interval"] == "95 % BCa bootstrap over images"


def test_an_undefined_image_is_counted_and_left_out_of_every_mean():
    second = per_model(records()).set_index("name").loc["net_100_s0"]
    assert (second["images"], second["nan"]) == (2, 1)
    assert second["forecast"] == pytest.approx((9 + 0.25) / 2)
    assert second["relative"] == pytest.approx((1 / 2 + 16 / 3) / 17)


def test_the_interval_of_a_mean_is_that_of_many_images():
    """300 images of known spread: near Student's t."""
    rng = np.random.default_rng(7)
    raw = rng.uniform(1, 2, 300)
    frames = [{"method": method, "raw": raw * factor, "normalised": raw / 4} for method, factor in (("IG", 1), ("IG x10", 100), (ZERO, 2))]
    rows = pd.concat([pd.DataFrame({**frame, "image_id": range(300), "protocol": "infidelity"}) for frame in frames])
    rows = rows.assign(score=rows["raw"], family="gradient", dataset="d", name="net")
    found = per_model(rows).iloc[0]
    half = t.ppf(0.975, 299) * sem(raw)
    assert (found["raw_low"], found["raw_high"]) == pytest.approx((raw.mean() - half, raw.mean() + half), abs=0.1 * half)
    assert (found["relative_low"], found["relative_high"]) == pytest.approx((1 / 8, 1 / 8)), "the two change alike"
    assert np.isnan(found["sensitivity"])


def table_of(models=24):
    """Models whose raw infidelity is their logits' scale and no more, and whose scale grows with their accuracy."""
    rng = np.random.default_rng(2)
    accuracy = rng.uniform(0.3, 1, models)
    change = np.exp(4 * accuracy + rng.normal(size=models) / 5)
    rows = {"dataset": np.repeat(["d", "e"], models // 2), "model": np.tile(["mini_resnet8", "mini_densenet"], models // 2)}
    rows |= {
        "fraction": np.tile([0.2, 0.6, 1.0], models // 3),
        "seed": np.arange(models) // 6 % 2,
        "accuracy": accuracy,
        "macro_f1": accuracy**2,
    }
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
    ours = correlations(table)
    silent = ours[(ours["method"] == "Random") & (ours["measure"] == "sensitivity")]
    assert silent["spearman"].isna().all(), "a control that never changes has no correlation, not one of 0"
    judged = claims(table, ours, theirs)
    said = findings(judged, theirs)
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
    assert "raw +0.4" in said.sentences[2]
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


def test_the_studys_method_is_drawn_where_every_model_has_it():
    table = table_of().replace({"method": {"IxG": "Guided Backprop"}})
    assert _shown(table) == "Guided Backprop"
    assert _shown(table.drop(index=table.index[table["method"] == "Guided Backprop"][0])) == "Gradient"


@pytest.mark.filterwarnings("ignore:Setting backward hooks")
def test_guided_backprop_of_a_net_without_relus_is_captums_plain_gradient():
    """What the study's rows of EfficientNet show, and why our scatter draws another method than Guided Backprop there."""
    net = create_model("mini_efficientnet")
    assert no_relu(create_model("efficientnet_b0", num_classes=2)), "torchvision's has SiLUs alone"
    with pytest.raises(ValueError, match="does not apply"):
        create_method("Guided Backprop", net)
    images, targets = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 5])
    guided = GuidedBackprop(net).attribute(images.clone().requires_grad_(), target=targets)
    gradient = Saliency(net).attribute(images.clone().requires_grad_(), target=targets, abs=False)
    assert gradient.abs().max() > 0
    torch.testing.assert_close(guided, gradient, rtol=0, atol=0)
