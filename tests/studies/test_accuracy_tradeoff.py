"""Both axes of the trade-off: the pick that does not flatter itself, the front, and the settings."""

import numpy as np
import pandas as pd
import pytest
import torch

from idsds import create_dataset, create_model
from idsds.datasets import fixed_order
from idsds.studies import accuracy_tradeoff as tradeoff
from idsds.studies.accuracy_tradeoff import AccuracyTradeoff


def noise(models=("a",), methods=20, n=60, family="gradient"):
    """Records of methods that are all alike: every score is drawn around 0."""
    rng = np.random.default_rng(1)
    rows = [
        pd.DataFrame(
            {"model": m, "method": f"m{i}", "family": family, "seed": 0, "image_id": np.arange(n), "score": rng.standard_normal(n)}
        )
        for m in models
        for i in range(methods)
    ]
    return pd.concat(rows, ignore_index=True)


def test_the_pick_does_not_flatter_itself():
    data = noise()
    means = data.groupby("method")["score"].mean()
    assert means.max() > 0.15, "the best of twenty, judged on its own images, looks good"
    found = tradeoff.best(data)
    assert len(found) == 60
    assert sorted(found["image_id"]) == list(range(60))
    first = data[data["image_id"] % 2 == 0].groupby("method")["score"].mean().idxmax()
    assert set(found.loc[found["image_id"] % 2 == 1, "method"]) == {first}
    assert found["score"].mean() < means.max()


def test_controls_are_never_the_best():
    data = pd.concat([noise(methods=2), noise(methods=1, family="control").assign(method="Random", score=0.9)])
    assert "Random" not in set(tradeoff.best(data)["method"])


def test_the_front_is_what_none_dominates():
    values = np.array([[0.9, 0.1], [0.8, 0.5], [0.7, 0.4], [0.8, 0.5], [0.9, 0.05], [0.1, 0.9]])
    assert tradeoff.on_front(values).tolist() == [True, True, False, True, False, True]


def test_table_and_correlation():
    n = 200
    image = np.arange(n)
    levels = {"a": (0.95, 0.1), "b": (0.80, 0.4), "c": (0.60, 0.7), "d": (0.55, 0.3)}
    rng = np.random.default_rng(0)
    parts, right = [], []
    for model, (share, score) in levels.items():
        facts = {"model": model, "seed": 0, "image_id": image}
        parts.append(pd.DataFrame({**facts, "method": "IG", "family": "gradient", "score": score + 0.1 * rng.standard_normal(n)}))
        right.append(pd.DataFrame({**facts, "correct": image < share * n}))
    records, correct = pd.concat(parts, ignore_index=True), pd.concat(right, ignore_index=True)
    table = tradeoff.tradeoff(records, correct, resamples=50).set_index("model")
    assert table["front"].to_dict() == {"a": True, "b": True, "c": True, "d": False}
    assert table.loc["a", "front_share"] == 1.0
    assert table.loc["b", "accuracy"] == 0.8
    low, high = 0.7390, 0.8496  # Wilson (1927) for 160 of 200: (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    assert table.loc["b", ["accuracy_low", "accuracy_high"]].tolist() == pytest.approx([low, high], abs=2e-4)
    found = tradeoff.correlation(records, correct, resamples=50)
    assert found["rho"] == pytest.approx(-0.4)
    assert found["low"] <= found["rho"] <= found["high"]
    said = tradeoff.findings(table.reset_index(), found)
    assert said.sentences[0].startswith("Accuracy and best IDSDS correlate by -0.40 (Spearman over 4 models")
    assert said.sentences[1] == "Pareto front: a, b, c."
    assert said.verdicts["verdict"].item() == ("supported" if found["high"] < 0 else "not supported")


def test_training_seeds_are_drawn_with_the_images():
    """One net of three reverses the order of the models; intervals over images alone would be far from there."""
    n, parts, right = 60, [], []
    for seed, sign in enumerate((1, 1, -1)):
        for number, model in enumerate("abcd"):
            facts = {"model": model, "seed": seed, "image_id": np.arange(n)}
            score = 0.5 + 0.1 * sign * number + 0.001 * np.random.default_rng(seed).standard_normal(n)
            parts.append(pd.DataFrame({**facts, "method": "IG", "family": "gradient", "score": score}))
            right.append(pd.DataFrame({**facts, "correct": np.arange(n) < (0.9 - 0.1 * number) * n + (6 - 6 * seed)}))
    records, correct = pd.concat(parts, ignore_index=True), pd.concat(right, ignore_index=True)
    found = tradeoff.correlation(records, correct, resamples=200)
    assert (found["rho"], found["low"], found["high"]) == pytest.approx((-1, -1, 1))
    table = tradeoff.tradeoff(records, correct, resamples=50).set_index("model")
    assert table.loc["d", "idsds_low"] < 0.35
    assert table.loc["d", "idsds_high"] > 0.79
    shares = correct[correct["model"] == "d"].groupby("seed")["correct"].mean()  # each seed's accuracy lies within
    assert table.loc["d", "accuracy_low"] < shares.min()
    assert table.loc["d", "accuracy_high"] > shares.max()
    assert (table["interval"] == "95 % percentile bootstrap over training seeds and images").all()


@pytest.mark.parametrize(("ends", "verdict"), [((-0.9, -0.1), "supported"), ((-0.9, 0.1), "not supported"), ((0.1, 0.9), "contradicted")])
def test_the_verdict_is_that_of_the_interval(ends, verdict):
    table = pd.DataFrame({"model": ["a"], "front": [True]})
    found = tradeoff.findings(table, {"rho": 0.0, "low": ends[0], "high": ends[1], "p": 0.5, "models": 4})
    assert found.verdicts["verdict"].tolist() == [verdict]


def test_accuracy_is_that_of_the_net_on_intact_test_images(tmp_path, checkpoint):
    study = AccuracyTradeoff(
        dataset="mnist5k",
        models=["mini_resnet8"],
        methods=["IxG"],
        images=2,
        accuracy_images=30,
        output=str(tmp_path),
        checkpoints={"mini_resnet8": str(checkpoint)},
        device="cpu",
    )
    found = study.correct()
    data = create_dataset("mnist5k", "test")
    chosen = fixed_order(data.image_ids)[:30]
    model = create_model("mini_resnet8", checkpoint=checkpoint)
    with torch.inference_mode():
        right = [model(data[i][0][None]).argmax().item() == data.targets[i] for i in chosen]
    assert found["image_id"].tolist() == [data.image_ids[i] for i in chosen]
    assert found["correct"].tolist() == right


def test_published_points_trade_off():
    points = tradeoff.published_points().set_index("model")
    assert len(points) == 10
    assert points.loc["vgg16", ["idsds", "method"]].tolist() == [0.577, "XGrad-CAM"]
    assert points["accuracy"].corr(points["idsds"], method="spearman") < -0.5


def test_crops_of_a_photo_are_one_unit():
    """Copies of every image as crops of one photo tell nothing new: intervals, halves and draws stay those of the photos."""
    models = ("a", "b", "c")
    once = noise(models, methods=3, n=12)
    right = once[once["method"] == "m0"].assign(correct=lambda rows: rows["score"] > -0.5)
    crops = [rows.assign(group=rows["image_id"]) for rows in (once, right)]
    three = [pd.concat([rows.assign(image_id=rows["image_id"] * 3 + crop) for crop in range(3)], ignore_index=True) for rows in crops]
    columns = ["accuracy", "accuracy_low", "accuracy_high", "method", "idsds", "front"]
    single, triple = tradeoff.tradeoff(once, right, resamples=5), tradeoff.tradeoff(*three, resamples=5)
    pd.testing.assert_frame_equal(single[columns], triple[columns])
    np.testing.assert_allclose(single[["idsds_low", "idsds_high"]], triple[["idsds_low", "idsds_high"]], atol=0.05)
    ends = [[tradeoff.correlation(*data, resamples=400)[end] for end in ("low", "high")] for data in ((once, right), three)]
    np.testing.assert_allclose(*ends, atol=0.15)
