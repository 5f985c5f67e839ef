"""Probability against metrics: the joined table against the net itself, and correlations that are known."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from idsds.datasets import create_dataset
from idsds.datasets.base import first
from idsds.models import MODELS, register_model
from idsds.studies import base, score_vs_metrics
from idsds.studies.score_vs_metrics import ScoreVsMetrics, correlations


class Small(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.act, self.fc = nn.Conv2d(3, 4, 5, stride=4), nn.ReLU(), nn.Linear(4 * 49, num_classes)

    def forward(self, x):
        return self.fc(self.act(self.conv(x)).flatten(1))


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_HOME", str(tmp_path))
    register_model("small_score", family="test", num_classes=10, input_size=32, training={"epochs": 1})(Small)
    monkeypatch.setattr(base, "trains_from_scratch", lambda *_: True)
    monkeypatch.setattr("idsds.evaluation.nets.trains_from_scratch", lambda *_: True)
    yield
    MODELS.remove("small_score")


@pytest.mark.parametrize("target", ["prediction", "label"])
def test_the_probability_is_that_of_the_explained_class(tmp_path, target):
    settings = {"dataset": "digits", "models": ["small_score"], "methods": ["Gradient", "Random"], "images": 6, "samples": 2}
    study = ScoreVsMetrics(**settings, target=target, device="cpu", output=str(tmp_path / "x"))
    result = study.run(progress=False)
    images = result.records
    assert len(images) == 2 * 2 * 6
    (job,) = base.resolve(**study.runs()["infidelity"]).jobs
    data = first(job.dataset, 6)
    with torch.no_grad():
        shares = job.load()(torch.stack([item[0] for item in data])).softmax(1)
    said, labels = shares.argmax(1), torch.tensor(data.targets)
    known = pd.DataFrame({"known": shares[range(6), said if target == "prediction" else labels]}, index=data.image_ids)
    both = images.join(known, on="image_id")
    assert both["probability"].to_numpy() == pytest.approx(both["known"].to_numpy(), abs=1e-6)
    assert images.drop_duplicates("image_id")["correct"].sum() == (said == labels).sum()
    assert result.plot().axes[0].get_yscale() == "log"
    assert create_dataset("digits").name == data.name


def test_correlations_against_scipy():
    rng = np.random.default_rng(1)
    probability = rng.random(80)
    facts = {"model": "m", "method": "a", "metric": "infidelity", "seed": 0, "image_id": np.arange(80)}
    table = pd.DataFrame({**facts, "probability": probability, "score": 1 - probability})
    noisy = table.assign(method="b", score=rng.random(80))
    constant = table.assign(method="c", score=0.0)
    noisy.loc[3, "score"] = np.nan
    found = correlations(pd.concat([table, noisy, constant]), resamples=200).set_index("method")
    assert found.loc["a", ["rho", "verdict"]].tolist() == [pytest.approx(-1), "supported"]
    part = noisy.dropna()
    assert found.loc["b", "rho"] == pytest.approx(spearmanr(part["probability"], part["score"]).statistic)
    assert found.loc["b", ["count", "nan", "verdict"]].tolist() == [79, 1, "not supported"]
    assert found.loc["b", "low"] < found.loc["b", "rho"] < found.loc["b", "high"]
    assert found.loc["c", ["rho", "low"]].isna().all()
    # Two training seeds that disagree: the mean of their correlations, and an interval as wide as they are apart.
    two = pd.concat([table, table.assign(seed=1, score=probability + rng.random(80))])
    row = correlations(two, resamples=200).iloc[0]
    other = spearmanr(probability, two.loc[two["seed"] == 1, "score"]).statistic
    assert (row["rho"], row["count"], row["verdict"]) == (pytest.approx((other - 1) / 2), 80, "not supported")
    assert row["low"] == pytest.approx(-1)
    assert row["high"] > other - 0.1
    assert score_vs_metrics.METRICS.keys() == {"infidelity", "max_sensitivity"}
