"""How much of infidelity is the map's doing: on tables of known make-up, and on the study's digitised models."""

import numpy as np
import pandas as pd
import pytest

from idsds.studies.infidelity_sensitivity.correlations import study_table
from idsds.studies.infidelity_sensitivity.findings import spread_said
from idsds.studies.infidelity_sensitivity.map_part import map_part


def table_of(factors):
    rows = [
        {"dataset": dataset, "model": model, "fraction": 1.0, "seed": seed, "method": method, "raw": 2.0**seed * factor, "family": family}
        for dataset in ("d", "e")
        for model in ("a", "b")
        for seed in range(3)
        for (method, factor), family in zip(factors.items(), ("gradient", "gradient", "control"), strict=False)
    ]
    return pd.DataFrame(rows)


def test_what_only_models_differ_by_and_what_methods_differ_by():
    (same, *each) = map_part(table_of({"IG": 1.0, "IxG": 1.0, "Random": 50.0})).to_dict("records")
    assert [row["architecture"] for row in (same, *each)] == ["all", "a", "b"]
    assert (same["models"], same["methods"], same["median_spread"]) == (12, 2, 0), "the control is left out"
    assert same["between_models"] == pytest.approx(1)
    (twice, *_) = map_part(table_of({"IG": 1.0, "IxG": 2.0})).to_dict("records")
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
