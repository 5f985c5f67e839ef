import numpy as np
import pandas as pd
import pytest
from scipy import stats

import idsds
from idsds.common.settings import SettingsError
from idsds.studies import stability
from idsds.studies.stability import Stability

METHODS = ["IxG", "Gradient", "Random"]


def settings(output, **changes):
    fields = {"dataset": "mnist5k", "models": ["mini_resnet8"], "methods": METHODS, "images": 8, "seeds": [0, 1]}
    fields |= {"baselines": ["zeros", "blur"], "grids": [4, 2], "counts": [4, 8], "output": str(output)}
    return Stability(**{**fields, **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory, checkpoint):
    """All variants on one untrained net."""
    names = ("seed 1", "baseline blur", "grid 2")
    folder = tmp_path_factory.mktemp("stability")
    given = settings(folder, checkpoints={"mini_resnet8": str(checkpoint)}, variant_checkpoints=dict.fromkeys(names, str(checkpoint)))
    return given, given.records(progress=False)


def synthetic(seeds=3, images=60, methods=("a", "b", "c", "Random"), noise=0.2):
    """Records with known means: every kind has the same ranking, but grid 2 reverses it."""
    rows, truth = [], dict(zip(methods, (0.2, 0.5, 0.8, 0.0), strict=True))
    variants = [("seed", str(s), s) for s in range(seeds)] + [("baseline", "zeros", 0), ("baseline", "blur", 0)]
    for kind, variant, seed in [*variants, ("grid", "4", 0), ("grid", "2", 0), ("images", "10", 0), ("images", "60", 0)]:
        # The reference is the same records in all kinds.
        fixed = variant in ("0", "zeros", "4", "10", "60")
        rng = np.random.default_rng(99 if fixed else 10 * seed + len(variant))
        for method, mean in truth.items():
            sign = -1 if (kind, variant) == ("grid", "2") else 1
            for image, value in enumerate(sign * mean + noise * rng.standard_normal(images)):
                if variant != "10" or image < 10:
                    family = "control" if method == "Random" else "gradient"
                    rows.append((kind, variant, "net", method, family, seed, f"i{image:03d}", value))
    return pd.DataFrame(rows, columns=["kind", "variant", "model", "method", "family", "seed", "image_id", "score"])


def test_one_thing_at_a_time_is_varied(tmp_path):
    given = settings(tmp_path)
    reference = given.runs()["reference"]
    assert (reference["seed"], reference["baseline"], reference["grid"]) == ([0], "zeros", 4)
    for name, changed in (("seed 1", {"seed": [1]}), ("baseline blur", {"baseline": "blur"}), ("grid 2", {"grid": 2})):
        found = given.runs()[name]
        differing = {key: value for key, value in found.items() if value != reference[key] and key != "output"}
        assert differing == changed
    assert len({given.runs()[name]["output"] for name in given.variants()}) == 4


def test_each_variant_is_fine_tuned_in_its_own_domain(tmp_path):
    """The stages of training that the engine plans have the variant's own baseline, grid and seed."""
    from idsds.evaluation.arguments import Arguments, make_plan

    given = settings(tmp_path)
    for name in given.variants():
        values = given.runs()[name]
        deletion = {key: values[key] for key in ("grid", "baseline")}
        shared = {"checkpoints": {}, "device": "cpu", "precision": "32-true", "batch_size": None, "shard": 8, "settings": deletion}
        (job,) = make_plan(Arguments(values["models"], METHODS, "mnist5k", "idsds", 8, values["seed"], **shared)).jobs
        assert job.source.deletion.model_dump() == deletion
        assert [job.source.seed] == values["seed"]


def test_records_are_the_engines_and_the_reference_is_in_every_kind(run):
    given, records = run
    counts = records.groupby(["kind", "variant"], sort=False)["image_id"].nunique()
    wanted = {("seed", "0"): 8, ("seed", "1"): 8, ("baseline", "zeros"): 8, ("baseline", "blur"): 8, ("grid", "4"): 8, ("grid", "2"): 8}
    assert counts.to_dict() == {**wanted, ("images", "4"): 4, ("images", "8"): 8}
    weights = given.checkpoints
    for kind, variant, change in (("grid", "2", {"grid": 2}), ("baseline", "blur", {"baseline": "blur"}), ("images", "4", {"images": 4})):
        alone = idsds.evaluate(["mini_resnet8"], METHODS, **{"images": 8, **change}, checkpoints=weights, progress=False)
        rows = records[(records["kind"] == kind) & (records["variant"] == variant)]
        assert list(rows["image_id"]) == list(alone["image_id"])
        np.testing.assert_allclose(rows["score"], alone["score"], atol=1e-6, equal_nan=True)
    lengths = records.groupby(["kind", "variant"])["drops"].first().map(len)
    assert (lengths["grid", "2"], lengths["grid", "4"]) == (4, 16)


def test_means_are_those_of_rank_and_the_nested_bootstrap():
    records = synthetic()
    table = stability.means(records, resamples=300)
    one = records[(records["kind"] == "baseline") & (records["variant"] == "blur")]
    wanted = idsds.rank(one, resamples=300).set_index("method")
    found = table[(table["kind"] == "baseline") & (table["variant"] == "blur")].set_index("method")
    pd.testing.assert_frame_equal(found[["mean", "low", "high"]], wanted[["mean", "low", "high"]], check_like=True)
    every = table[table["variant"] == "all"].set_index("method")
    by_seed = records[records["kind"] == "seed"].groupby(["method", "seed"])["score"].mean().unstack()
    np.testing.assert_allclose(every["mean"], by_seed.mean(axis=1)[every.index])
    np.testing.assert_allclose(every["seed_sd"], by_seed.std(axis=1)[every.index])
    assert every["interval"].str.contains("over training seeds and images").all()


def test_agreement_finds_the_reversed_grid_and_leaves_the_control_out():
    records = synthetic()
    table = stability.agreement(records, draws=50, resamples=100)
    assert (table["methods"] == 3).all()
    pairs = table[table["first"] != table["second"]].set_index(["kind", "first", "second"])
    assert pairs.loc[("grid", "4", "2"), ["tau", "tau_high"]].tolist() == [-1, -1]
    assert pairs.loc[("baseline", "zeros", "blur"), ["tau", "tau_low"]].tolist() == [1, 1]
    assert len(pairs.loc["seed"]) == 3


def test_subsets_agree_as_scipy_says_and_half_of_the_images_must_be_left():
    table = stability.agreement(synthetic(noise=2.0), draws=400, resamples=10)
    few = table[table["kind"] == "images"].set_index("first")
    assert np.isnan(few.loc["60", "tau"])
    records = synthetic(noise=2.0)
    reference = records[(records["kind"] == "seed") & (records["variant"] == "0") & (records["method"] != "Random")]
    scores = reference.pivot_table(index="image_id", columns="method", values="score").to_numpy()
    rng = np.random.default_rng(5)
    taus = []
    for _ in range(400):
        order = rng.permutation(len(scores))
        taus.append(stats.kendalltau(scores[order[:10]].mean(0), scores[order[10:]].mean(0)).statistic)
    # Both are means of 400 draws of a value in [-1, 1] with SD below 0.7: the difference has an SD below 0.05.
    assert few.loc["10", "tau"] == pytest.approx(np.mean(taus), abs=0.2)


def test_findings_judge_every_pair_and_name_the_worst():
    records = synthetic()
    table, agreed = stability.means(records, resamples=100), stability.agreement(records, draws=50, resamples=100)
    found = stability.findings(table, agreed)
    pairs = found.verdicts.set_index(["varied", "ranking with", "ranks alike with"])
    assert pairs.loc["seed", "verdict"].tolist() == ["supported"] * 3
    assert pairs.loc[("grid", "4", "2"), "verdict"] == "contradicted"
    assert pairs["less than halves of the images do"].to_dict()["grid", "4", "2"]
    assert not pairs.loc["seed", "less than halves of the images do"].any()
    assert "grids -1.00 [-1.00, -1.00]" in found.sentences[0]
    means = table[(table["kind"] == "grid")].pivot(index="method", columns="variant", values="mean")
    spreads = stability.spreads(table).set_index(["kind", "method"])["spread"]
    assert spreads["grid"].to_dict() == pytest.approx((means["4"] - means["2"]).abs().to_dict())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0]}, "seeds"),
        ({"models": ["mini_resnet8", "mini_vgg11"]}, "models"),
        ({"models": ["mini_resnet9"]}, r"Did you mean 'mini_resnet8'"),
        ({"grids": [4, 7]}, "grid 7 does not divide images of 32 x 32"),
        ({"grids": [2]}, "grids lacks the reference 4"),
        ({"baselines": ["zeros", "zeros"]}, "baselines lists zeros more than once"),
        ({"baselines": ["zeros", "blurr"]}, r"Did you mean 'blur'"),
        ({"counts": [4, 9]}, r"counts must lie between 2 and images=8, not \[9\]"),
        ({"variant_checkpoints": {"seed 7": "x"}}, r"unknown variant with a checkpoint 'seed 7'"),
        ({"dataset": "imagenette"}, r"no in-domain weights of 'mini_resnet8' for 'seed 1', 'baseline blur', 'grid 2'"),
    ],
)
def test_wrong_settings_are_named(tmp_path, changes, message):
    with pytest.raises(SettingsError, match=message):
        settings(tmp_path, **changes)


def test_crops_of_a_photo_are_on_one_side():
    """With copies of an image on both sides the two rankings would agree too well."""
    once = synthetic(noise=2.0)
    five = pd.concat([once.assign(image_id=once["image_id"] + f"/{crop}", group=once["image_id"]) for crop in range(5)])
    five["variant"] = five["variant"].where(five["kind"] != "images", five["variant"].map({"10": "50", "60": "300"}))
    few = [stability.agreement(records, draws=400, resamples=10).query("kind == 'images'")["tau"].iloc[0] for records in (once, five)]
    assert few[0] == pytest.approx(few[1], abs=0.1)


def test_the_share_of_patches_above_noise_is_that_of_each_variant(run):
    given, records = run
    result = given.run(progress=False)
    table = result.table.set_index(["kind", "variant", "method"])["share_above_noise"]

    def share(rows):
        drops = np.stack(rows.drop_duplicates(["seed", "image_id"])["drops"].to_list())
        return (drops > 0.05 * np.abs(drops).max(axis=1, keepdims=True)).mean()

    for kind, variant in (("grid", "4"), ("grid", "2"), ("baseline", "blur")):
        rows = records[(records["kind"] == kind) & (records["variant"] == variant)]
        assert table.loc[kind, variant].tolist() == [pytest.approx(share(rows))] * len(METHODS)
    every = share(records[records["kind"] == "seed"])
    assert table.loc["seed", "all"].iloc[0] == pytest.approx(every)
    assert result.findings.sentences[-1] == f"Patches whose drop is above 5% of their image's largest: mini_resnet8 {every:.0%}."
