import numpy as np
import pandas as pd
import pytest
from scipy import stats

from idsds.statistics import covers_seeds, seed_interval
from idsds.studies.roar import retraining_areas, retraining_curves
from idsds.studies.roar.curves import claims_of, sentences


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
    facts = {
        "count": 200,
        "undefined": 2,
        "constant": 1,
        "explained": 900,
        "explained_accuracy": 0.95,
        "explained_top5": 1.0,
        "chance": 0.12,
    }
    return table.assign(agreement=table["accuracy"] + 0.01, top5=0.5 + table["accuracy"] / 2, **facts)


def with_masks(table, **telling):
    """Also masks alone, of the shares 0.1 and 0.9: right by chance, or as ``telling`` says by method and share."""
    masks = table[table["kind"] == "remove"].assign(kind="mask", accuracy=0.1)
    for method, found in telling.items():
        for share, value in found.items():
            masks.loc[(masks["method"] == method) & (masks["share"] == share), "accuracy"] = value
    return pd.concat([table, masks], ignore_index=True)


def three_seeds(**losses):
    """Both kinds, shares 0.1 and 0.9, three seeds: a method's accuracy lies this much below Random's, give or take some 0.001."""
    rows = accuracies().query("method == 'Random' and seed == 0")
    parts = []
    for number, (method, loss) in enumerate({"Random": 0.0, **losses}.items()):
        for seed, jitter in enumerate((-0.001, 0.0, 0.001)):
            parts.append(rows.assign(method=method, seed=seed, accuracy=0.5 - loss - number * jitter))
    return pd.concat(parts, ignore_index=True)


def test_areas_by_hand():
    areas = retraining_areas(accuracies()).set_index(["kind", "method"])
    assert areas.loc[("remove", "IG"), "area"] == pytest.approx(0.15)
    expected = stats.ttest_1samp([0.1, 0.2], 0).confidence_interval()
    assert areas.loc[("remove", "IG"), ["low", "high"]].tolist() == pytest.approx([expected.low, expected.high])
    assert areas.loc[("keep", "IG"), ["area", "low", "high"]].tolist() == pytest.approx([0.3] * 3)
    assert areas.loc[("remove", "Edges"), "area"] == 0
    assert "Random" not in areas.index.get_level_values("method")
    assert areas.loc[("keep", "IG"), ["seeds", "positive", "undefined", "constant", "explained"]].tolist() == [2, 2, 2, 1, 900]
    with pytest.raises(ValueError, match=r"the records hold no 'Center' to compare with, only Random, IG, Edges"):
        retraining_areas(accuracies(), control="Center")


def test_curves_by_hand():
    curves = retraining_curves(accuracies()).set_index(["method", "kind", "share"])
    assert curves.loc[("IG", "remove", 0.1), "mean"] == pytest.approx(0.35)
    assert (curves["seeds"] == 2).all()
    assert (curves["count"] == 200).all()
    assert curves.loc[("IG", "remove", 0.1), "agreement"] == pytest.approx(0.36)
    assert curves.loc[("IG", "remove", 0.1), "top5"] == pytest.approx(0.5 + 0.35 / 2)
    areas = retraining_areas(accuracies())
    assert areas["area_top5"].to_numpy() == pytest.approx(areas["area"].to_numpy() / 2)
    assert set(curves["interval"]) == {"95 % t interval over 2 training seeds, cut at 0 and 1"}
    one = retraining_curves(accuracies()[lambda table: table["seed"] == 0])
    assert one["low"].isna().all()


def test_masks_have_a_curve_and_no_area():
    """A mask at chance and one that tells, with the p of scipy's exact test and Holm's correction by hand."""
    table = with_masks(accuracies(), IG={0.9: 0.16, 0.1: 0.5})
    found, without = (retraining_areas(rows).drop(columns=["leaking", "confounded"]) for rows in (table, accuracies()))
    pd.testing.assert_frame_equal(found, without)
    curves = retraining_curves(table).set_index(["kind", "method", "share"])
    assert curves.loc[["remove", "keep"], ["p", "p_holm"]].isna().all(axis=None)
    p = {share: stats.binomtest(right, 200, 0.12, alternative="greater").pvalue for share, right in ((0.9, 32), (0.1, 100))}
    assert curves.loc[("mask", "IG", 0.9), "p"] == pytest.approx(p[0.9])
    assert curves.loc[("mask", "IG", 0.9), "p_holm"] == pytest.approx(5 * p[0.9])  # six masks, the second smallest p
    assert curves.loc[("mask", "IG", 0.1), "p_holm"] == pytest.approx(6 * p[0.1])
    assert p[0.9] < 0.06 < 5 * p[0.9]


def test_intervals_of_accuracies_end_where_accuracies_do():
    """Three seeds, 0, 0 and 0.3: t's interval would reach below 0 (as Edges' did at 90 %), and of 0.99, 0.99, 0.6 above 1."""
    one = accuracies().query("kind == 'remove' and share == 0.1 and method == 'IG' and seed == 0")
    for values in ((0.0, 0.0, 0.3), (0.99, 0.99, 0.6)):
        (row,) = retraining_curves(pd.concat([one.assign(seed=n, accuracy=v, agreement=v) for n, v in enumerate(values)])).itertuples()
        free = stats.ttest_1samp(values, 0).confidence_interval()
        assert free.low < 0 or free.high > 1
        for low, high in ((row.low, row.high), (row.agreement_low, row.agreement_high)):
            assert (low, high) == pytest.approx((max(free.low, 0), min(free.high, 1)))
        assert row.interval == "95 % t interval over 3 training seeds, cut at 0 and 1"


def test_verdicts_are_corrected_for_all_comparisons():
    """Per comparison IG's p of 0.03 would do; Holm doubles it, where there are two."""
    table = three_seeds(IG=0.02, Edges=0.0)
    at = table["method"] == "IG"
    table.loc[at, "accuracy"] = 0.5 - table.loc[at, "seed"].map({0: 0.014, 1: 0.02, 2: 0.026})
    table = table[table["kind"] == "remove"]
    areas = retraining_areas(table).set_index("method")
    p = stats.ttest_1samp([0.014, 0.02, 0.026], 0).pvalue
    assert 0.025 < p < 0.05
    assert areas.loc["IG", ["p", "p_holm"]].tolist() == pytest.approx([p, 2 * p])
    assert areas.loc["IG", "low"] > 0
    assert areas.loc["IG", "verdict"] == "not supported"
    assert retraining_areas(table[table["method"] != "Edges"])["verdict"].tolist() == ["supported"]


def test_areas_without_any_spread():
    """That a few seeds agree to the last digit is no certainty about the next one."""
    areas = retraining_areas(three_seeds().assign(accuracy=0.5).pipe(lambda t: pd.concat([t, t.assign(method="Same")])))
    assert areas["p"].isna().all()
    areas = retraining_areas(three_seeds().pipe(lambda t: pd.concat([t, t.assign(method="Less", accuracy=0.25)])))
    assert areas["p"].isna().all()
    assert areas["verdict"].tolist() == ["not supported", "not supported"]


def test_several_controls_and_each_pair_once():
    areas = retraining_areas(three_seeds(IG=0.1, Edges=0.3), ["Random", "Edges"])
    assert areas[["control", "kind", "method"]].to_numpy().tolist() == [
        ["Random", "remove", "Edges"],
        ["Random", "remove", "IG"],
        ["Random", "keep", "IG"],
        ["Random", "keep", "Edges"],
        ["Edges", "remove", "IG"],
        ["Edges", "keep", "IG"],
    ]
    np.testing.assert_allclose(areas["area"], [0.3, 0.1, -0.1, -0.3, -0.2, 0.2], atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "loss", "leaking", "confounded"),
    [
        ("remove", 0.2, "IG", False),  # the accuracy falls although the mask tells the class
        ("remove", -0.2, "IG", True),  # it stays up, which the mask alone would do
        ("keep", -0.2, "IG", True),
        ("keep", 0.2, "IG", False),
        ("remove", 0.2, "Random", True),  # it is the control's that stays up
        ("remove", -0.2, "Random", False),
        ("keep", 0.2, "Random", True),
        ("keep", -0.2, "Random", False),
        ("keep", -0.2, "", False),
    ],
)
def test_leakage_confounds_what_it_would_bring_about(kind, loss, leaking, confounded):
    table = three_seeds(IG=loss).query("kind == @kind")
    masks = with_masks(table.assign(kind="remove"), **({leaking: {0.1: 0.6}} if leaking else {})).query("kind == 'mask'")
    (row,) = retraining_areas(pd.concat([table, masks])).itertuples()
    assert (row.leaking, row.confounded) == (leaking, confounded)
    assert row.verdict == ("supported" if (loss > 0) == (kind == "remove") else "contradicted")


def test_the_mask_of_kar_is_that_of_the_rest():
    """The mask of the top 90 % shows what KAR replaces at 10 %, and nothing of what ROAR replaces at the shares that were asked for."""
    table = three_seeds(IG=-0.2).query("share == 0.1")
    table = pd.concat([table, table.assign(share=0.0, accuracy=0.5)])
    masks = with_masks(three_seeds(IG=-0.2), IG={0.9: 0.6}).query("kind == 'mask'")
    areas = retraining_areas(pd.concat([table, masks])).set_index("kind")
    assert areas["leaking"].to_dict() == {"remove": "", "keep": "IG"}


def test_the_claim_is_judged_part_by_part():
    """IG keeps the accuracy above Random's, Gradient below it, and both above Edges'."""
    table = three_seeds(IG=-0.2, Gradient=0.1, Edges=0.3)
    key, random, edges = ["kind", "claim", "method"], "no better than Random", "worse than Edges"
    found = claims_of(retraining_areas(table, ["Random", "Edges"])).set_index(key)["verdict"]
    assert len(found) == 2 * 2 * 2
    roar = {(random, "IG"): "supported", (random, "Gradient"): "contradicted"} | {(edges, name): "supported" for name in ("IG", "Gradient")}
    assert found["ROAR"].to_dict() == roar
    leaking = claims_of(retraining_areas(with_masks(table, IG={0.1: 0.9}), ["Random", "Edges"])).set_index(key)
    assert leaking.loc["ROAR", "verdict"].to_dict() == roar | {(random, "IG"): "not supported", (edges, "IG"): "not supported"}
    assert leaking.loc["ROAR", "confounded"].to_dict() == {pair: pair[1] == "IG" for pair in roar}
    noisy = table.assign(accuracy=table["accuracy"] + table["seed"].map({0: -1, 1: 0, 2: 1}) * (table["method"] != "Random"))
    assert set(claims_of(retraining_areas(noisy))["verdict"]) == {"not supported"}
    assert claims_of(retraining_areas(three_seeds(Edges=0.1))).empty, "none of the claimed methods is there"


def test_the_leakage_is_told_by_masks_alone():
    """Half of 200 images right where the most frequent class is 0.12; intervals over images are scipy's."""
    table = with_masks(accuracies(), IG={0.1: 0.5})
    table.loc[(table["kind"] == "mask") & (table["method"] == "IG"), "agreement"] = 0.75
    curves = retraining_curves(table)
    row = curves.set_index(["kind", "method", "share"]).loc[("mask", "IG", 0.1)]
    right, same = (stats.binomtest(count, 200).proportion_ci(method="wilson") for count in (100, 150))
    assert row[["images_low", "images_high"]].tolist() == pytest.approx([right.low, right.high])
    assert row[["agreement_images_low", "agreement_images_high"]].tolist() == pytest.approx([same.low, same.high])
    told = sentences(retraining_areas(table), curves)
    assert told[0].startswith("ROAR, area against Random: IG on m +0.150 [")
    assert told[-1] == "The positions of the replaced pixels alone reveal the class for 1 of 6 masks (IG; Holm-corrected)."


def test_an_accuracy_above_that_on_untouched_images_is_no_leakage():
    """An undertrained net does better with fewer pixels, too: without masks alone nothing is said of places."""
    table = accuracies()
    untouched = table[table["share"] == 0.1].assign(share=0.0, accuracy=0.2, agreement=0.21)
    table = pd.concat([table, untouched])
    told = sentences(retraining_areas(table), retraining_curves(table))
    assert told[-1] == "Whether the positions of the replaced pixels reveal the class was not tested."


def test_one_seed_has_no_verdict_but_its_masks_do():
    table = with_masks(accuracies(), IG={0.1: 0.5})[lambda rows: rows["seed"] == 0]
    areas = retraining_areas(table)
    assert areas["p_holm"].isna().all()
    assert set(areas["verdict"]) == {"not supported"}
    assert retraining_curves(table)["interval"].unique().tolist() == ["one training seed: no interval"]
    assert sentences(areas, retraining_curves(table))[-1].endswith("for 1 of 6 masks (IG; Holm-corrected)."), "the test is over images"


@pytest.mark.parametrize("function", [retraining_curves, retraining_areas])
def test_records_without_top5_are_to_be_made_again(function):
    with pytest.raises(ValueError, match=r"the records lack 'top5'.*run the study again"):
        function(accuracies().drop(columns=["top5"]))
