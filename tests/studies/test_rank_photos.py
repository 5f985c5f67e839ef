"""The ranking on real photos and a pretrained net from packages, end to end at a small size."""

import pandas as pd
import pytest

import idsds
from idsds.common.packaged import packaged_file
from idsds.datasets.photos import photo
from idsds.models.packaged import SQUEEZENET
from idsds.studies.finetune import Finetune
from idsds.studies.rank_methods import RankMethods

METHODS = ["Gradient", "Saliency", "Grad-CAM", "Random", "Center"]


@pytest.fixture(autouse=True)
def packages():
    try:
        photo(0), packaged_file(*SQUEEZENET)
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))


def test_a_ranking_of_a_net_that_was_tuned_without_labels_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("idsds.datasets.photos.POOL", 1)
    changes = {"models": ["squeezenet1_1"], "checkpoints": {"squeezenet1_1": "pretrained"}, "epochs": 1, "batch_size": 20}
    shared = {"dataset": "photos20", "methods": METHODS, "images": 6}
    tuned = Finetune(**shared, **changes, ranked_images=6, output=str(tmp_path / "finetune"))
    result = tuned.run(progress=False)
    ranking = result.tables["ranking"].iloc[0]
    assert ranking["methods"] == 3
    assert ranking["images"] == 6
    assert ranking["largest_drop_before"] > 0
    assert ranking["low"] <= ranking["rho"] <= ranking["high"]
    assert (result.table["count"] == 6).all()

    records = idsds.load_records(tmp_path / "finetune" / "after_0")
    assert records["distilled"].all()
    assert {"group", "distilled"} <= set(records)
    units = result.table["groups"] if "groups" in result.table else result.table["count"]
    assert (units == records["group"].nunique()).all(), "crops of a photo count once in an interval"

    plain = RankMethods(models=["squeezenet1_1"], protocol="single_deletion", output=str(tmp_path / "plain"), **shared)
    result = plain.run(progress=False)
    assert "distilled" not in result.records
    assert "score" not in result.table
    means = result.table.set_index("method")["mean"]
    assert means["Grad-CAM"] > means["Gradient"]
    assert (result.table["interval"].str.contains("group")).all()
    figures = result.save(result.plot())
    assert all(file.is_file() for file in figures)


def test_the_name_of_the_score_follows_the_training():
    from idsds.studies.base import named_score

    assert named_score(pd.DataFrame({"distilled": [False, True]}), "IDSDS") == "IDSDS (distilled)"
    assert named_score(pd.DataFrame({"score": [1.0]}), "IDSDS") == "IDSDS"
