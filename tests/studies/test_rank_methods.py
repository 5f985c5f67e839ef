import io
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from idsds.statistics import paired_differences, rank
from idsds.studies import rank_methods as findings


def records(scores: dict[tuple[str, str], float], n: int = 60) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    families = {"BagNet": "intrinsic", "Random": "control"}
    frames = [
        pd.DataFrame(
            {
                "model": model,
                "method": method,
                "family": families.get(method, "gradient"),
                "seed": 0,
                "image_id": [str(i) for i in range(n)],
                "score": mean + 0.1 * rng.standard_normal(n),
            }
        )
        for (model, method), mean in scores.items()
    ]
    return pd.concat(frames, ignore_index=True)


SCORES = {
    ("mini_resnet8", "IG"): 0.7,
    ("mini_resnet8", "IG abs"): 0.4,
    ("mini_resnet8", "IG-SG"): 0.9,
    ("mini_resnet8", "Random"): 0.0,
    ("mini_resnet20", "IG"): 0.5,
    ("mini_vgg11", "IG"): 0.7,
    ("mini_bagnet", "BagNet"): 0.95,
    ("mini_bagnet", "IG"): 0.3,
}


def verdicts(found: pd.DataFrame) -> dict:
    return {(row.finding, row.higher, row.lower): row.verdict for row in found.itertuples()}


def test_each_finding_is_compared_where_the_records_allow():
    found = verdicts(findings.published_findings(records(SCORES)))
    assert found == {
        ("intrinsic explanations score best", "mini_bagnet BagNet", "mini_resnet8 IG-SG"): "shows",
        ("intrinsic explanations score best", "mini_bagnet BagNet", "mini_resnet20 IG"): "shows",
        ("intrinsic explanations score best", "mini_bagnet BagNet", "mini_vgg11 IG"): "shows",
        ("intrinsic explanations score best", "mini_bagnet BagNet", "mini_bagnet IG"): "shows",
        ("absolute values impair", "mini_resnet8 IG", "mini_resnet8 IG abs"): "shows",
        ("SmoothGrad impairs", "mini_resnet8 IG", "mini_resnet8 IG-SG"): "reversed",
        ("deeper is lower", "mini_resnet8 IG", "mini_resnet20 IG"): "shows",
        ("VGG is above ResNet", "mini_vgg11 IG", "mini_resnet8 IG"): "undecided",
        ("VGG is above ResNet", "mini_vgg11 IG", "mini_resnet20 IG"): "shows",
    }


def test_the_interval_is_that_of_the_paired_difference():
    data = records({("m", "IG"): 0.5, ("m", "IG abs"): 0.45})
    row = findings.published_findings(data).iloc[0]
    wide = data.pivot(index="image_id", columns="method", values="score")
    assert row.difference == pytest.approx((wide["IG"] - wide["IG abs"]).mean())
    same = paired_differences(data, pairs=[("IG", "IG abs")]).iloc[0]
    assert (row.low, row.high) == pytest.approx((same.low, same.high), abs=0.01)


def test_undefined_scores_are_counted():
    data = records({("m", "IG"): 0.5, ("m", "IG abs"): 0.4})
    data.loc[:4, "score"] = np.nan
    row = findings.published_findings(data).iloc[0]
    assert (row["count"], row["nan"]) == (55, 5)


def test_records_without_any_comparison_give_an_empty_table():
    found = findings.published_findings(records({("m", "IG"): 0.5, ("m", "Random"): 0.0}))
    assert found.empty
    assert list(found.columns) == findings.COLUMNS
    assert findings.markdown(found).startswith("\n| finding")


def test_an_intrinsic_explanation_without_a_rival_is_not_compared():
    assert findings.published_findings(records({("mini_bagnet", "BagNet"): 0.5})).empty
    only = findings.published_findings(records({("mini_bagnet", "BagNet"): 0.5, ("mini_resnet8", "IG"): 0.4}))
    assert only["lower"].tolist() == ["mini_resnet8 IG"]


def test_the_headline_names_each_models_best_and_counts_the_findings():
    data = records({("m", "IG"): 0.5, ("m", "IG abs"): 0.3, ("other", "IG"): 0.1})
    table, found = rank(data), findings.published_findings(data)
    text = findings.headline(table, found)
    assert text.startswith(f"Best of each model: IG on m ({table['mean'].max():.2f} [")
    assert "IG on other (" in text
    assert text.endswith("absolute values impair in 1 of 1 comparisons.")


def committed(path: str) -> str:
    root = Path(__file__).resolve().parents[2]
    return subprocess.run(["git", "show", f"HEAD:{path}"], cwd=root, capture_output=True, text=True, check=True).stdout


def test_the_readme_says_what_the_committed_run_found():
    # What is committed, and not what lies in the tree: `make rank` writes there, and another machine rounds otherwise.
    found = pd.read_csv(io.StringIO(committed("figures/mnist5k/rank_methods_findings.csv")))
    assert findings.markdown(found) in committed("README.md")


def test_only_the_block_between_the_markers_is_rewritten(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{findings.START}\nold\n{findings.END}\nafter\n")
    findings.update_readme(readme, findings.published_findings(records(SCORES)))
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith(f"{findings.END}\nafter\n")
    assert "old" not in text
    assert "shows in" in text
