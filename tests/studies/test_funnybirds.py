"""The study of FunnyBirds: its summaries from records whose means are known, and a run on the real layout, drawn by the test."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from idsds import published
from idsds.common.settings import SettingsError
from idsds.datasets import create_dataset
from idsds.models import create_model
from idsds.models.weights import save_checkpoint
from idsds.plots.funnybirds import PANELS
from idsds.plots.style import PUBLISHED
from idsds.protocols.parts import THRESHOLDS
from idsds.studies.funnybirds import MEASURES, Funnybirds, nets_of, table_of
from tests.datasets.test_funnybirds import write_birds

mpl.use("agg")
ROOT = Path(__file__).resolve().parents[2]


def records(images=6):
    """CSDC, PC, DC and D of .9 from threshold 10 on in the first half of the images, from 40 on in the second; .3 elsewhere."""
    rows = []
    for method, family in (("IG", "gradient"), ("Random", "control")):
        for number in range(images):
            curve = np.full(80, 0.3)
            curve[slice(10, 20) if number < images // 2 else slice(40, 50)] = 0.9 if method == "IG" else 0.4
            undefined = number == 1
            rows.append(
                {
                    **{"image_id": f"i{number}", "seed": 0, "model": "net", "method": method, "family": family},
                    **dict.fromkeys(("csdc", "pc", "dc", "distractibility"), curve),
                    **{"single_deletion": np.nan if undefined else 0.5, "target_sensitivity": number % 2, "shapley": 0.0},
                    **{
                        "correct": float(number > 0),
                        "top5": 1.0,
                        "background_independence": [1, 0.5][number % 2],
                        "objects": 1 + number % 2 * 3,
                    },
                }
            )
    return pd.DataFrame(rows)


def test_thresholds_and_summaries():
    table, apart = table_of(records(), resamples=200)
    wide = table.pivot(index="method", columns="measure", values="value")
    # At the best threshold, the first that suits one half of the images, half of them have .9 and half .3.
    assert table["threshold"].unique() == pytest.approx([float(THRESHOLDS[10])])
    assert wide.loc["IG", ["csdc", "distractibility", "completeness"]].to_list() == pytest.approx([0.6] * 3)
    assert wide.loc["IG", ["correctness", "contrastivity", "mean"]].to_list() == pytest.approx([0.5, 0.5, (0.6 + 1) / 3])
    assert table.query("method == 'IG' and measure == 'single_deletion'")[["count", "nan"]].to_numpy().tolist() == [[5, 1]]
    assert apart["difference"].to_list() == pytest.approx([(0.6 - 0.35) / 3])
    assert set(table["chosen_on"]) == {"the images that are scored, as in the paper"}


def test_thresholds_chosen_on_other_images_do_not_see_those_that_are_scored():
    table, _ = table_of(records(), threshold_images=3, resamples=200)
    assert table["threshold"].unique() == pytest.approx([float(THRESHOLDS[40])])
    assert table.query("method == 'IG' and measure == 'csdc'")["value"].to_list() == pytest.approx([0.3])
    assert set(table["chosen_on"]) == {"3 other images"}


def test_background_independence_is_the_share_of_all_objects():
    found = nets_of(records(), resamples=200).set_index("measure")["value"]
    assert found.to_dict() == pytest.approx({"accuracy": 5 / 6, "top5": 1, "background_independence": (3 * 1 + 3 * 2) / 15})
    with pytest.raises(ValueError, match=r"the records lack 'top5'.*run the study again"):
        nets_of(records().drop(columns="top5"))


def test_training_seeds_are_drawn_with_the_images():
    """Two nets, of which the second always scores .2 less: two nets cannot tell what a third would score."""
    one = records().assign(single_deletion=0.5)
    two = pd.concat([one, one.assign(seed=1, single_deletion=0.3, correct=0.0)])
    for found, interval in ((one, "over images, thr"), (two, "over training seeds and images, thr")):
        table = table_of(found, resamples=200)[0]
        assert table["interval"].str.contains(interval).all()
        assert (table["count"] == 6).all()
    row = table.query("method == 'IG' and measure == 'correctness'").iloc[0]
    assert (row["value"], row["low"], row["high"]) == pytest.approx((0.4, 0.3, 0.5))
    net = nets_of(two, resamples=200).set_index("measure").loc["accuracy"]
    assert (net["value"], net["low"]) == pytest.approx((5 / 12, 0))
    assert net["high"] > 5 / 6


def test_methods_are_paired_by_image_and_seed_in_any_order_of_the_records():
    """The two methods differ by the same on every image: the interval of the difference has no width, unless images are mixed up."""
    rows = records(images=12)
    curves = [np.full(80, 0.1 + 0.05 * int(row.image_id[1:]) + 0.2 * (row.method == "IG")) for row in rows.itertuples()]
    flat = rows.assign(**dict.fromkeys(("csdc", "pc", "dc", "distractibility"), curves), single_deletion=0.5, target_sensitivity=1.0)
    both = pd.concat([flat, flat.assign(seed=1)], ignore_index=True)
    for found in (both, both.sample(frac=1, random_state=0)):
        row = table_of(found, resamples=200)[1].iloc[0]
        assert (row["low"], row["high"]) == pytest.approx((row["difference"],) * 2)


def test_an_image_without_a_value_for_one_of_the_seeds_is_counted_as_undefined():
    two = pd.concat([records(), records().assign(seed=1, single_deletion=0.3)])
    row = table_of(two, resamples=200)[0].query("method == 'IG' and measure == 'single_deletion'").iloc[0]
    assert (row["count"], row["nan"]) == (5, 1)


@pytest.fixture
def birds(tmp_path, monkeypatch):
    write_birds(tmp_path / "data" / "funnybirds")
    monkeypatch.setenv("IDSDS_DATA", str(tmp_path / "data"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = create_model("resnet18", num_classes=4)
    net.fc.bias.data[0] += 100  # it says class 0 of everything
    save_checkpoint(net, tmp_path / "resnet18.safetensors")
    return tmp_path


def test_a_run_on_the_layout_of_the_zip_beside_published_values(birds, monkeypatch):
    printed = [
        ("resnet18", "IxG", "pc", 0.6),
        ("resnet18", "IxG", "accuracy", 0.9),
        ("resnet50", "IxG", "pc", 0.1),
        ("resnet18", "IG", "pc", 0.2),
    ]
    theirs = pd.DataFrame(printed, columns=["model", "method", "measure", "published"]).assign(source="printed")
    monkeypatch.setattr(published, "funnybirds", lambda: theirs)
    given = {"dataset": "funnybirds", "models": ["resnet18"], "methods": ["IxG", "Random"], "images": 8, "image_size": 64, "device": "cpu"}
    study = Funnybirds(**given, checkpoints={"resnet18": str(birds / "resnet18.safetensors")}, output=str(birds / "run"))
    plan = study.plan_table()
    images = create_dataset("funnybirds", "test")
    objects = sum(map(images.parts.count, images.image_ids))  # one pass each
    assert objects > 0
    assert plan.loc[plan["work"] == "deletions", "forward"].to_list() == [8 * 32 + objects]
    result = study.run(progress=False)
    assert len(result.records) == 16
    assert (result.records["correct"] == (result.records["target"] == 0)).all()
    values = result.table.pivot(index="measure", columns="method", values="value")
    assert values.loc["pc"].to_list() == [1, 1], values
    assert values.loc["dc"].to_list() == [0, 0]  # the prediction never changes
    assert values.loc["contrastivity"].isna().all()  # and no net that tells the rivals apart
    assert "No method has a mean" in result.findings.sentences[0]
    assert set(result.table["method"]) == {"IxG", "Random"}
    # Published values of other nets and methods are not compared.
    shown = result.tables["published"].set_index("measure")
    assert set(shown.index) == {"pc", "accuracy"}
    assert shown.loc["pc", ["value", "published", "difference"]].to_list() == pytest.approx([1, 0.6, 0.4])
    figure = result.plot()
    marks = {axes.texts[0].get_text(): [line for line in axes.lines if line.get_color() == PUBLISHED] for axes in figure.axes}
    assert [line.get_xdata()[0] for line in marks.pop(PANELS["pc"])] == [0.6]
    assert not any(marks.values())
    assert "published" in [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.parametrize("profile", ["imagenet", "imagenette"])
def test_nets_and_methods_of_the_params_of_full_size_have_published_values(profile):
    given = yaml.safe_load((ROOT / "params" / profile / "funnybirds.yaml").read_text())
    theirs = published.funnybirds()
    assert given["dataset"] == "funnybirds"
    assert len(theirs[theirs["model"].isin(given["models"]) & theirs["method"].isin(given["methods"]) & theirs["measure"].isin(MEASURES)])


@pytest.mark.parametrize("profile", ["imagenet", "imagenette"])
def test_the_params_of_full_size_plan(birds, profile):
    given = yaml.safe_load((ROOT / "params" / profile / "funnybirds.yaml").read_text())
    given |= {"images": 2, "output": str(birds / "run"), "models": ["resnet18"], "device": "cpu"}
    study = Funnybirds(**{**given, "checkpoints": {"resnet18": str(birds / "resnet18.safetensors")}})
    plan = study.plan_table()
    assert {name for work in plan["work"] for name in work.split(", ")} == {"deletions", *study.methods}
    assert study.reference == (profile == "imagenette")


def test_what_cannot_be_is_refused(tmp_path):
    given = {"dataset": "sprites", "models": ["mini_resnet8"], "methods": ["IG"], "images": 4, "output": str(tmp_path / "run")}
    with pytest.raises(SettingsError, match="threshold_images=4 leaves none of images=4"):
        Funnybirds(**given, threshold_images=4)
    with pytest.raises(SettingsError, match="image_size: 'sprites' has one size, 64"):
        Funnybirds(**given, image_size=32)
