"""Models on shares of the training images, from settings to the table; the full-size params on tiny folders."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
import yaml
from scipy import stats
from scipy.io import savemat
from sklearn.metrics import classification_report, top_k_accuracy_score
from torch import nn

from idsds.common.settings import SettingsError
from idsds.datasets import create_dataset
from idsds.models import MODELS, create_model, register_model
from idsds.models.weights import hash_file, save_checkpoint
from idsds.plots import confusions as confusion_figure
from idsds.plots import train_fractions as plot
from idsds.statistics.classification import EXCESS
from idsds.studies.base import resolve
from idsds.studies.infidelity_sensitivity import InfidelitySensitivity
from idsds.studies.train_fractions import TrainFractions, findings
from idsds.training import checkpoints as stages
from idsds.training.checkpoints import plan_training

from ..datasets.conftest import write_classes

PARAMS = Path(__file__).resolve().parents[2] / "params"


class Small(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv, self.norm, self.act, self.fc = nn.Conv2d(3, 8, 5, stride=4), nn.BatchNorm2d(8), nn.ReLU(), nn.Linear(8 * 49, num_classes)

    def forward(self, x):
        return self.fc(self.act(self.norm(self.conv(x))).flatten(1))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty cache, and a model that the registry forgets again."""
    monkeypatch.setenv("IDSDS_HOME", str(tmp_path))
    register_model("small_study", family="test", num_classes=10, input_size=32, training={"epochs": 2})(Small)
    yield tmp_path
    MODELS.remove("small_study")


def settings(**changes):
    given = {
        "datasets": ["digits"],
        "models": ["small_study"],
        "fractions": [0.2, 1.0],
        "device": "cpu",
        "output": "runs/x/train_fractions",
    }
    return TrainFractions(**{**given, **changes})


def test_the_addresses_of_all_images_are_those_before_there_were_shares(monkeypatch):
    """A fraction of 1 leaves the address as it was, for the training loop and the torch of that time."""
    monkeypatch.setattr(stages, "versions", lambda: {"torch": "2.6.0"})
    monkeypatch.setattr(stages, "LOOP", 2)
    trained = plan_training("mini_resnet8", "digits", deletion=None, device="cpu")
    tuned = plan_training("mini_resnet8", "digits", device="cpu", fraction=1.0)
    assert (trained.key, tuned.key) == ("3b87a85f14cdb5e7a23c", "879a6e632322c42e096b")
    keys = {
        plan_training("mini_resnet8", "digits", deletion=None, device="cpu", fraction=f, seed=s).key for f in (0.2, 0.4) for s in (0, 1)
    }
    assert len(keys | {trained.key}) == 5


def test_a_share_is_what_every_stage_trains_on_and_no_other_split_is_cut():
    stage = plan_training("mini_resnet8", "digits", device="cpu", fraction=0.2)
    whole = create_dataset("digits", "train")
    for part in (stage, stage.start):
        train = part.split("train")
        assert len(train) == part.train_images == pytest.approx(0.2 * len(whole), abs=5)  # ten classes, each rounded by itself
        assert set(train.image_ids) < set(whole.image_ids)
    for split in ("val", "test"):
        assert stage.split(split).image_ids == create_dataset("digits", split).image_ids


def test_from_settings_to_the_table(home, monkeypatch):
    asked = settings(seeds=[0, 1])
    plan = asked.plan_table()
    assert not plan["cached"].any()
    assert (plan["images_left"] == 2 * plan["train_images"]).all()
    table = asked.run(progress=False).table
    assert len(table) == 4
    assert asked.plan_table()["images_left"].sum() == 0
    member = asked.members()[1]
    test = create_dataset("digits", "test", normalisation=member.stage.split("test").normalisation)
    model = create_model("small_study", num_classes=10, checkpoint=member.stage.path)
    with torch.no_grad():
        logits = model(torch.stack([item[0] for item in test]))
    predictions = logits.argmax(1)
    report = classification_report(test.targets, predictions, output_dict=True, zero_division=0)
    row = table[(table["fraction"] == 1.0) & (table["seed"] == 0)].iloc[0]
    assert row["accuracy"] == pytest.approx(report["accuracy"])
    assert row["macro_f1"] == pytest.approx(report["macro avg"]["f1-score"])
    assert row["weighted_precision"] == pytest.approx(report["weighted avg"]["precision"])
    assert row["weighted_f1"] == pytest.approx(report["weighted avg"]["f1-score"])
    assert row["top5"] == pytest.approx(top_k_accuracy_score(test.targets, logits, k=5))
    confusions, classes = asked.classes()
    mine = classes[(classes["fraction"] == 1.0) & (classes["seed"] == 0)]
    assert mine["f1"].tolist() == pytest.approx([report[str(number)]["f1-score"] for number in mine["class"]])
    assert len(confusion_figure(confusions).axes) == 2, "one matrix and its scale"
    epochs = json.loads(member.stage.path.with_suffix(".json").read_text())["epochs"]
    assert row["val_accuracy"] == max(epoch["val_accuracy"] for epoch in epochs) == epochs[row["best_epoch"] - 1]["val_accuracy"]
    assert row["count"] == len(test)
    assert (home / "runs/x/train_fractions/quality.csv").is_file()

    def never(*_, **__):
        raise AssertionError("it is cached")

    monkeypatch.setattr(stages, "_run", never)
    monkeypatch.setattr("idsds.studies.train_fractions.predicted", never)
    assert asked.run(progress=False).table.equals(table)

    # Other weights under the same name are other predictions, and a damaged file is no reason to compute any.
    monkeypatch.undo()
    monkeypatch.setenv("IDSDS_HOME", str(home))
    path = member.stage.path
    kept = [each.read_bytes() for each in (path, hash_file(path))]
    save_checkpoint(create_model("small_study", num_classes=10), path)
    other = asked.quality(progress=False)
    changed = [i for i in other.index if other["accuracy"][i] != table["accuracy"][i]]
    assert changed == [place for place, each in enumerate(asked.members()) if each.stage.key == member.stage.key]
    for each, content in zip((path, hash_file(path)), kept, strict=True):
        each.write_bytes(content)

    said = findings(table)
    gains = 100 * (cells := table.pivot_table(index="seed", columns="fraction", values="accuracy"))[1.0].sub(cells[0.2])
    (gain,) = said.verdicts.to_dict("records")
    half = stats.t.ppf(0.975, 1) * gains.std() / 2**0.5
    assert (gain["gain in points"], gain["low"], gain["high"]) == pytest.approx((gains.mean(), gains.mean() - half, gains.mean() + half))
    assert gain["verdict"] == ("supported" if gain["low"] > 0 else "not supported")
    assert gain["steps that lower it"] == (gains < 0).sum()
    assert f"from 20% to 100% of the training images: {gains.mean():+.1f} points" in said.sentences[0]
    excess = [int((table[f"precision_excess_{end}"] * sign > 0).sum()) for end, sign in (("low", 1), ("high", -1))]
    assert f"({excess[0]} intervals above 0, {excess[1]} below)" in said.sentences[1]
    assert "Between 2 training seeds" in said.sentences[2]
    figure = plot(table)
    labels, near = [axes.get_ylabel() for axes in figure.axes], f"{table['top5'].min():.3f} to {table['top5'].max():.3f}"
    assert any("accuracy" in label and "higher is better" in label for label in labels)
    assert [text for axes in figure.axes if (text := axes.get_title())] == [f"digits, n = {len(test)}\ntop-5: {near}"]


def test_fewer_test_images_are_the_first_of_the_fixed_order():
    asked = settings(fractions=[1.0])
    assert asked.quality(40, progress=False)["count"].tolist() == [40]


def test_a_dry_run_measures_and_trains_nothing(home):
    table = settings(dry_run=True).plan_table()
    assert {"images_per_second", "hours", "memory_gb"} <= set(table.columns)
    assert (table["hours"] > 0).all()
    assert table["hours"].iloc[1] / table["hours"].iloc[0] == pytest.approx(table["images_left"].iloc[1] / table["images_left"].iloc[0])
    assert not list((home / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"fractions": [0.2, 1.2]}, "fractions"),
        ({"fractions": [0.2, 0.2]}, "more than once"),
        ({"datasets": ["digit"]}, "Did you mean 'digits'"),
        ({"models": ["resnet18"]}, "needs weights to start from on 'digits'"),
        ({"models": ["resnet18"], "checkpoints": {"resnet18": "nowhere.pth"}}, "no file"),
        ({"checkpoints": {"smal_study": "pretrained"}}, "small_study"),
        ({"checkpoints": {"small_study": "pretrained"}}, "give a file"),
        ({"epoch": 3}, "Did you mean 'epochs'"),
    ],
)
def test_faults_are_named_before_any_work(changes, named):
    with pytest.raises(SettingsError, match=named):
        settings(**changes)


def _write_folders(root):
    """The real layouts of the five data sets, with two classes of eight training images each."""
    train, test = {"b": 8, "a": 8}, {"b": 1, "a": 1}
    write_classes(root / "stanford_dogs" / "Images", {"n02085620-Chihuahua": 12, "n02085782-Japanese_spaniel": 12})
    for name, folders in {
        "plants99": ("Plant_Data/Plant_Data/train", "Plant_Data/Plant_Data/valid", "Plant_Data/Plant_Data/test"),
        "edible_plants": ("datasets/dataset", None, "datasets/dataset-test"),
        "marvel": ("marvel/train", None, "marvel/valid"),
    }.items():
        for folder, counts in zip(folders, (train, test, test), strict=True):
            if folder:
                write_classes(root / name / folder, counts)
    food = root / "food101" / "food-101"
    write_classes(food / "images", {"b": 9, "a": 9})
    names = {key: [f"{key}/{path.stem}" for path in sorted((food / "images" / key).glob("*.jpg"))] for key in ("a", "b")}
    (food / "meta").mkdir()
    for half, some in (("train", slice(0, 8)), ("test", slice(8, None))):
        (food / "meta" / f"{half}.json").write_text(json.dumps({key: found[some] for key, found in names.items()}))


def test_the_dogs_are_divided_by_the_official_lists_or_as_in_the_study(home, monkeypatch):
    """The division reaches training, its test images and those that are explained; the address without it is what it was."""
    folders = {"n02085620-Chihuahua": 10, "n02085782-Japanese_spaniel": 10}
    photos = home / "data" / "stanford_dogs" / "Images"
    write_classes(photos, folders)
    for half, some in (("train", slice(0, 6)), ("test", slice(6, None))):
        chosen = [f"{name}/{path.name}" for name in folders for path in sorted((photos / name).iterdir())[some]]
        cells = np.empty((len(chosen), 1), dtype=object)
        cells[:, 0] = chosen
        savemat(photos.parent / f"{half}_list.mat", {"file_list": cells, "labels": np.ones((len(chosen), 1))})
    monkeypatch.setenv("IDSDS_DATA", str(home / "data"))
    shared = {"datasets": ["stanford_dogs"], "models": ["resnet18"], "fractions": [1.0], "checkpoints": {"resnet18": "pretrained"}}
    shared |= {"device": "cpu", "methods": ["Gradient"], "images": 2, "output": "x"}
    for study_80_20, images in ((False, 8), (True, 4)):
        study = InfidelitySensitivity(**shared, **({"dogs": "80/20"} if study_80_20 else {}))
        (member,) = study.members()
        test = member.stage.split("test")
        assert len(test) == images
        plan = resolve(**study.runs()["stanford_dogs, infidelity"])
        assert {plan.jobs[0].dataset.image_ids[index] for index in plan.jobs[0].indices} <= set(test.image_ids)
        assert len(plan.jobs[0].dataset) == images
        assert not set(test.image_ids) & set(member.stage.split("train").image_ids)
    both = shared | {
        "models": ["resnet18", "squeezenet1_1"],
        "checkpoints": dict.fromkeys(("resnet18", "squeezenet1_1"), "pretrained"),
        "other_sigmas": [0.2],
        "dogs": "80/20",
    }
    runs = InfidelitySensitivity(**both).runs()
    assert len(runs) == 6
    assert len({run["output"] for run in runs.values()}) == 6
    for run in runs.values():
        for job in resolve(**run).jobs:
            model = job.model.removesuffix("_100_s0")
            assert job.dataset.normalisation == MODELS[model].normalisation, "as in training"
    (plain,) = InfidelitySensitivity(**shared).members()
    key = plan_training("resnet18", "stanford_dogs", None, device="cpu", weights="pretrained").key
    assert plain.stage.key == key != member.stage.key
    with pytest.raises(SettingsError, match="must be 'official' or '80/20'"):
        InfidelitySensitivity(**shared, dogs="80-20")


def test_the_full_size_params_on_tiny_folders(home, monkeypatch):
    """Every data set and every architecture once, and one of the models through the metrics; published weights stand in as fresh ones."""
    _write_folders(home / "data")
    monkeypatch.setenv("IDSDS_DATA", str(home / "data"))
    fetch = torchvision.models.get_model
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights, **options: fetch(name, weights=None, **options))
    given = {**yaml.safe_load((PARAMS / "imagenet" / "train_fractions.yaml").read_text()), "epochs": 1, "workers": 0, "device": "cpu"}
    assert len(given["datasets"]) * len(given["models"]) * len(given["fractions"]) == 75
    *others, last = given["datasets"]
    small = {"datasets": others, "models": ["resnet18"], "checkpoints": {"resnet18": "pretrained"}, "fractions": [0.2]}
    everywhere = TrainFractions(**{**given, **small}).run(progress=False).table
    assert everywhere["dataset"].tolist() == others
    assert (everywhere["train_images"] <= 4).all()
    assert (everywhere["train_images"] >= 2).all()
    one = {**given, "datasets": [last], "fractions": [0.2]}
    table = TrainFractions(**one).run(progress=False).table
    assert table["model"].tolist() == given["models"]
    assert table["count"].tolist() == [2] * 3

    metrics = yaml.safe_load((PARAMS / "imagenet" / "infidelity_sensitivity.yaml").read_text())
    recipe = ("checkpoints", "weight_decay", "lr", "momentum", "batch_size", "step_epochs", "step_factor", "models", "datasets", "seeds")
    assert {name: metrics[name] for name in recipe} == {name: given[name] for name in recipe}, "the same models, so that they are cached"
    methods = [name for name in metrics["methods"] if name not in ("IG", "GradientSHAP")]  # too slow for a test
    metrics |= {"epochs": 1, "workers": 0, "device": "cpu", "datasets": [last], "fractions": [0.2], "models": ["resnet18"]}
    metrics |= {"checkpoints": {"resnet18": "pretrained"}, "methods": methods, "images": 2, "samples": 2, "method_settings": {}}
    judged = InfidelitySensitivity(**metrics).judge(progress=False)
    assert judged["method"].tolist() == methods
    assert (judged["nan"] == 0).all()
    assert judged["accuracy"].tolist() == [table["accuracy"].iloc[0]] * len(methods)


def test_the_gain_is_told_for_five_guesses_too():
    rows = [
        {
            "dataset": "d",
            "model": "m",
            "fraction": fraction,
            "seed": seed,
            "accuracy": fraction,
            "top5": 0.9 + fraction / 20,
            "macro_f1": 0.1,
        }
        for fraction in (0.2, 1.0)
        for seed in (0, 1, 2)
    ]
    ends = dict.fromkeys((EXCESS, f"{EXCESS}_low", f"{EXCESS}_high"), 0.0)
    assert findings(pd.DataFrame(rows).assign(**ends)).verdicts["gain in points, top-5"].item() == pytest.approx(4.0)
