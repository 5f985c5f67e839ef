"""The readings of each model, from records whose values are known."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import sem, t

from idsds.studies.infidelity_sensitivity.study import ZERO, per_model


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
