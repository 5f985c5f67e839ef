import numpy as np
import pandas as pd
import pytest
from scipy import stats

import idsds
from idsds.common.settings import SettingsError
from idsds.models import create_model
from idsds.models.weights import save_checkpoint
from idsds.statistics import rank_each
from idsds.studies import compare_protocols as comparing
from idsds.studies.compare_protocols import RULES, CompareProtocols

from ..datasets.conftest import write_classes

METHODS = ["IxG", "IxG abs", "Gradient", "Random"]


def settings(output, **changes):
    fields = {"dataset": "mnist5k", "models": ["mini_resnet8"], "methods": METHODS, "images": 6, "update_images": 3}
    return CompareProtocols(**{**fields, "accuracy_images": 20, "steps": 4, "output": str(output), **changes})


@pytest.fixture(scope="module")
def run(tmp_path_factory, checkpoint):
    """All protocols on untrained nets: one before, another after the fine-tuning that never took place."""
    import torch

    folder = tmp_path_factory.mktemp("compare")
    with torch.random.fork_rng():
        torch.manual_seed(1)
        plain = save_checkpoint(create_model("mini_resnet8"), folder / "plain.safetensors")
    given = settings(folder, checkpoints={"mini_resnet8": str(checkpoint)}, plain_checkpoints={"mini_resnet8": str(plain)})
    return given, given.records(progress=False)


def test_every_protocol_judges_every_method_and_each_on_its_net(run):
    given, records = run
    assert list(dict.fromkeys(records["label"])) == list(RULES)
    counts = records.groupby("label", sort=False)["image_id"].nunique()
    assert counts.tolist() == [6, 6, 6, 6, 3, 3]
    assert set(records["method"]) == set(METHODS)
    for label, weights in (("IDSDS", given.checkpoints), ("SDS", given.plain_checkpoints)):
        alone = idsds.evaluate(["mini_resnet8"], METHODS, protocol="idsds", images=6, checkpoints=weights, progress=False)
        rows = records[records["label"] == label]
        np.testing.assert_allclose(rows["score"], alone["score"], atol=1e-6)


def test_higher_is_better_in_all_of_them(run):
    _, records = run
    for label, sign in (("IDSDS", 1), ("ID least first", 1), ("ID most first", -1), ("ID most first, updated", -1)):
        rows = records[records["label"] == label]
        np.testing.assert_array_equal(rows["score"], sign * rows["raw"])


def test_an_update_is_no_update_for_the_first_point_and_the_same_for_a_map_that_does_not_change(run):
    _, records = run
    both = [records[records["label"] == f"ID least first{end}"].set_index(["method", "image_id"]) for end in ("", ", updated")]
    rows = both[1].index
    first = [np.stack(table.loc[rows, "curve"].to_list())[:, 0] for table in both]
    np.testing.assert_allclose(*first, atol=1e-6)
    assert not np.allclose(both[0].loc[rows, "score"], both[1]["score"], atol=1e-9)


def test_agreement_leaves_the_controls_out_and_is_scipys(run):
    _, records = run
    table = comparing.agreement(records, resamples=50)
    assert (table["methods"] == len(METHODS) - 1).all()
    row = table[(table["first"] == "IDSDS") & (table["second"] == "ID most first")].iloc[0]
    means = records[records["family"] != "control"].groupby(["label", "method"])["score"].mean()
    wanted = stats.kendalltau(means["IDSDS"], means["ID most first"]).statistic
    assert row["tau"] == pytest.approx(wanted)


def test_scores_can_be_repeated_and_a_change_is_seen(run):
    given, records = run
    given = given.model_copy(update={"protocols": ["IDSDS", "ID most first"]})
    # A pixel whose attribution differs by rounding may go a step earlier: single curves move in the third digit, rank correlations rarely.
    assert (given.repeatability(records, images=4)["largest difference"] < 5e-3).all()
    changed = records.assign(raw=records["raw"] + 0.25)
    np.testing.assert_allclose(given.repeatability(changed, images=4)["largest difference"], 0.25, atol=5e-3)


def test_accuracies_are_those_of_the_nets_on_the_same_images(run):
    import torch

    given, _ = run
    table = given.accuracies()
    assert list(table["stage"]) == ["before", "before", "after", "after"]
    assert (table["count"] == 20).all()
    data = idsds.create_dataset("mnist5k", "test")
    from idsds.datasets import fixed_order

    chosen = fixed_order(data.image_ids)[:20]
    images, targets = torch.stack([data[i][0] for i in chosen]), torch.tensor([data[i][1] for i in chosen])
    for stage, weights in (("before", given.plain_checkpoints), ("after", given.checkpoints)):
        with torch.inference_mode():
            right = (create_model("mini_resnet8", 10, checkpoint=weights["mini_resnet8"])(images).argmax(1) == targets).sum()
        row = table[(table["stage"] == stage) & (table["images"] == "intact")].iloc[0]
        assert row["accuracy"] == pytest.approx(int(right) / 20)
        interval = stats.binomtest(int(right), 20).proportion_ci(method="wilson")
        assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))


def test_properties_have_an_answer_and_evidence_in_every_cell(run):
    given, records = run
    agreed, shares = comparing.agreement(records, resamples=20), given.accuracies()
    repeated = pd.DataFrame({"label": given.protocols, "largest difference": 0.0})
    table = given.properties(records, agreed, shares, repeated)
    assert not table.duplicated(["property", "protocol"]).any()
    assert table.map(lambda cell: isinstance(cell, str) and bool(cell)).all(axis=None)
    cells = table.set_index(["property", "protocol"])
    asked = cells[cells["poster"] != "not asked"].index
    assert {name for name, _ in asked} == set(comparing.POSTER)
    assert {"IDSDS", "SDS", "ID", "ROAR", "FunnyBirds"} <= {protocol for _, protocol in asked}
    assert (cells.loc[[(comparing.POSTER[2], "ID"), (comparing.POSTER[2], "SDS")], "poster"] == "N/A").all()
    assert cells.loc[("natural data", "FunnyBirds"), "answer"] == "no"
    assert cells.loc[("resolution", "IDSDS"), "evidence"] == "a patch of 8 x 8 pixels"
    assert "6 of 6 images" in cells.loc[("no class information in what is deleted", "SDS"), "evidence"]
    # By hand: 17 deletions, and one gradient (forward and backward) for IxG, its absolute value and Gradient together.
    assert cells.loc[("cost in passes", "IDSDS"), "answer"] == str(17 + 2)
    # Four points for each of four methods, and the same maps.
    assert cells.loc[("cost in passes", "ID"), "answer"] == str(4 * 4 + 2)
    # Each of three steps explains the image anew for each of IxG, IxG abs and Gradient.
    assert cells.loc[("cost in passes", "ID updated"), "answer"] == str(4 * 4 + 3 * 3 * 2)
    drops = np.stack(records[records["label"] == "IDSDS"].drop_duplicates("image_id")["drops"].to_list())
    assert f"{100 * (drops < 0).mean():.0f} %" in cells.loc[("sign of the attribution counts", "IDSDS"), "evidence"]
    found = comparing.findings(records, agreed, shares)
    assert found.verdicts["ranks as IDSDS does"].tolist() == list(RULES)[1:]
    means = records[records["method"] == "Random"].groupby("label")["raw"].mean()
    means = means.map("{:.2f}".format)
    wanted = f"The mean score of a random map is {means['IDSDS']} by IDSDS and {means['ID least first']} by ID least first"
    assert found.sentences[1].startswith(wanted)
    assert f"scores {means['SDS']} on mini_resnet8" in cells.loc[("comparable between models", "SDS"), "evidence"]


def test_the_cost_is_the_engines_plan_for_each_protocol(run):
    given, _ = run
    table = given.plan_table()
    assert list(dict.fromkeys(table["label"])) == list(RULES)
    assert table[table["label"] == "ID least first, updated"]["images"].max() == 3


def test_a_verdict_needs_the_whole_interval():
    rows = [("net", "IDSDS", name, 0.5, low, high, 4, 10) for name, low, high in (("SDS", 0.1, 1), ("A", -0.1, 1), ("B", -1, -0.2))]
    agreed = pd.DataFrame(rows, columns=["model", "first", "second", "tau", "tau_low", "tau_high", "methods", "count"])
    shares = pd.DataFrame(
        [("net", s, k, a, 10) for s, k, a in (("before", "intact", 0.9), ("before", "one patch deleted", 0.5), ("after", "intact", 0.9))]
        + [("net", "after", "one patch deleted", 0.8, 10)],
        columns=["model", "stage", "images", "accuracy", "count"],
    )
    records = pd.DataFrame({"model": ["net"], "method": ["Random"], "label": ["SDS"], "raw": [0.25]})
    found = comparing.findings(records, agreed, shares)
    assert found.verdicts["verdict"].tolist() == ["supported", "not supported", "contradicted"]
    assert "costs 40.0 points of accuracy before in-domain fine-tuning and 10.0 after" in found.sentences[0]
    assert len(found.sentences) == 1, "neither IDSDS nor ID was run with a control"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocols": ["IDSDS", "SDSS"]}, r"unknown protocol 'SDSS'\. Did you mean 'SDS'"),
        ({"protocols": ["IDSDS", "IDSDS"]}, "protocols lists IDSDS more than once"),
        ({"protocols": ["IDSDS"]}, "protocols"),
        (
            {"plain_checkpoints": {"mini_resnet9": "x"}},
            r"unknown model with a plain checkpoint 'mini_resnet9'\. Did you mean 'mini_resnet8'",
        ),
        ({"plain_checkpoints": {"mini_resnet8": "pretrained"}}, "no weights of 'mini_resnet8' are published"),
        ({"steps": 0}, "steps"),
        ({"update_imges": 3}, r"Did you mean 'update_images'"),
    ],
)
def test_wrong_settings_are_named(tmp_path, changes, message):
    with pytest.raises(SettingsError, match=message):
        settings(tmp_path, **changes)


def test_published_weights_are_planned_and_not_fetched(tmp_path, monkeypatch):
    def never(*_, **__):
        raise AssertionError("nothing is to be downloaded for a plan")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", never)
    weights = tmp_path / "resnet18.pth.tar"
    weights.touch()
    monkeypatch.setenv("IDSDS_DATA", str(tmp_path))
    for split in ("train", "val"):
        write_classes(tmp_path / "imagenet" / split, {"n01440764": 3, "n02102040": 3})
    changes = {"dataset": "imagenet", "models": ["resnet18"], "protocols": ["IDSDS", "SDS"], "checkpoints": {"resnet18": str(weights)}}
    given = settings(tmp_path, **changes, plain_checkpoints={"resnet18": "pretrained"}, images=2, device="cpu")
    assert set(given.plan_table()["label"]) == {"IDSDS", "SDS"}


def test_the_figure_table_has_a_place_for_every_method_and_protocol(run):
    _, records = run
    table = rank_each(records, "label", resamples=20)
    assert len(table) == len(RULES) * len(METHODS)
    assert (table.groupby("label")["place"].sum() == 1 + 2 + 3 + 4).all()


def test_the_share_of_patches_above_noise_stands_beside_the_rankings_by_single_patches(run):
    given, records = run
    result = given.run(progress=False)
    shares = result.table.groupby("label")["share_above_noise"].first()
    assert set(shares.dropna().index) == {"IDSDS", "SDS"}
    drops = np.stack(records[records["label"] == "SDS"].drop_duplicates("image_id")["drops"].to_list())
    assert shares["SDS"] == pytest.approx((drops > 0.05 * np.abs(drops).max(axis=1, keepdims=True)).mean())
    assert result.findings.sentences[-1].startswith("Patches whose drop is above 5% of their image's largest: mini_resnet8")
