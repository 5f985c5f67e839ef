import numpy as np
import pandas as pd
import pytest
from scipy import stats

from idsds.statistics import covers_seeds, mask_finding, retraining_areas, retraining_curves, retraining_findings, seed_interval


def test_the_interval_over_seeds_is_scipys():
    values = [0.91, 0.87, 0.93]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert seed_interval(values, 0.9) == pytest.approx((np.mean(values), expected.low, expected.high))
    mean, low, high = seed_interval([0.4])
    assert mean == 0.4
    assert np.isnan([low, high]).all()
    assert np.isnan(seed_interval([0.4, np.nan])).all()
    assert covers_seeds(3) == "95 % t interval over 3 training seeds"
    assert covers_seeds(1) == "one training seed: no interval"
    with pytest.raises(ValueError, match="one number per seed"):
        seed_interval([])
    with pytest.raises(ValueError, match="confidence must lie strictly between 0 and 1"):
        seed_interval(values, 95)


def accuracies():
    """Two seeds; IG loses 0.1 and 0.2 more than Random under ROAR, and keeps 0.3 more under KAR; Edges are as Random."""
    rows = []
    for seed, loss in ((0, 0.1), (1, 0.2)):
        for share in (0.9, 0.1):  # not in order
            for kind, gain in (("remove", -loss), ("keep", 0.3)):
                for method, family, change in (("Random", "control", 0), ("IG", "gradient", gain), ("Edges", "control", 0)):
                    rows.append(("m", method, family, kind, share, seed, 0.5 + change))
    table = pd.DataFrame(rows, columns=["model", "method", "family", "kind", "share", "seed", "accuracy"])
    return table.assign(count=200, undefined=2, constant=1, explained=900)


def test_areas_by_hand():
    areas = retraining_areas(accuracies()).set_index(["kind", "method"])
    assert areas.loc[("remove", "IG"), "area"] == pytest.approx(0.15)
    expected = stats.ttest_1samp([0.1, 0.2], 0).confidence_interval()
    assert areas.loc[("remove", "IG"), ["low", "high"]].tolist() == pytest.approx([expected.low, expected.high])
    assert areas.loc[("keep", "IG"), ["area", "low", "high"]].tolist() == pytest.approx([0.3] * 3)
    assert areas.loc[("remove", "Edges"), "area"] == 0
    assert "Random" not in areas.index.get_level_values("method")
    assert areas.loc[("keep", "IG"), ["seeds", "positive", "undefined", "constant", "explained"]].tolist() == [2, 2, 2, 1, 900]
    remove, keep = retraining_findings(retraining_areas(accuracies()))
    assert keep.startswith("KAR on m, area against Random [95 % t interval over 2 training seeds]: IG +0.300 [+0.300, +0.300], Edges")
    assert keep.endswith("better than Random: IG; worse: none.")
    assert remove.endswith("better than Random: none; worse: none.")
    with pytest.raises(ValueError, match=r"the records hold no 'Center' to compare with, only Random, IG, Edges"):
        retraining_areas(accuracies(), control="Center")


def test_curves_by_hand():
    curves = retraining_curves(accuracies()).set_index(["method", "kind", "share"])
    assert curves.loc[("IG", "remove", 0.1), "mean"] == pytest.approx(0.35)
    assert (curves["seeds"] == 2).all()
    assert (curves["count"] == 200).all()
    assert set(curves["interval"]) == {"95 % t interval over 2 training seeds"}
    one = retraining_curves(accuracies()[lambda table: table["seed"] == 0])
    assert one["low"].isna().all()


def test_removals_that_leave_more_than_there_was_are_named():
    table = accuracies()
    untouched = table[table["share"] == 0.1].assign(share=0.0, accuracy=0.45)
    sentence = mask_finding(pd.concat([table, untouched]))
    assert sentence.startswith("Untouched images give an accuracy of 0.450 on m; ")
    assert "(paired differences, 95 % t interval over 2 training seeds)" in sentence
    listed = "for: Edges at 90% (0.500, +0.050 [+0.050, +0.050]), Edges at 10% (0.500, +0.050 [+0.050, +0.050])."
    assert sentence.endswith(listed)  # IG falls to 0.35
    with pytest.raises(ValueError, match="the records lack the share 0"):
        mask_finding(table)


def test_removals_are_compared_seed_by_seed():
    """Seeds differ by 0.4, and the removal adds 0.01 to each: only paired differences can tell."""
    one = accuracies().query("kind == 'remove' and share == 0.1 and method == 'Edges' and seed == 0")
    before, after = (0.3, 0.7, 0.5), (0.31, 0.712, 0.511)
    untouched = pd.concat([one.assign(seed=seed, share=0.0, accuracy=value) for seed, value in enumerate(before)])
    removed = pd.concat([one.assign(seed=seed, accuracy=value) for seed, value in enumerate(after)])
    found = stats.ttest_1samp([0.01, 0.012, 0.011], 0).confidence_interval()
    sentence = mask_finding(pd.concat([untouched, removed]))
    assert sentence.endswith(f"for: Edges at 10% (0.511, +0.011 [{found.low:+.3f}, {found.high:+.3f}]).")
    uneven = removed.assign(accuracy=[0.9, 0.7, 0.5])  # a large gain of one seed alone
    assert mask_finding(pd.concat([untouched, uneven])).endswith("for: no method.")


def test_one_seed_supports_no_claim():
    table = accuracies()[lambda rows: rows["seed"] == 0]
    sentence = mask_finding(pd.concat([table, table[table["share"] == 0.1].assign(share=0.0, accuracy=0.1)]))
    assert sentence.endswith("one training seed does not tell whether removals leave a higher one.")
