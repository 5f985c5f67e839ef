"""The paper's params without the paper's data: each file plans and says what it costs, and the whole path runs on a tiny folder."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
import torch
import yaml
from PIL import Image

from idsds import create_dataset, create_model, deletion_drops, evaluate, list_models, load_records
from idsds.common.settings import SettingsError
from idsds.datasets import fixed_order
from idsds.models import authors
from idsds.studies import accuracy_tradeoff as tradeoff
from idsds.studies import compare_protocols as comparing
from idsds.studies import design_choice as designs
from idsds.studies import finetune, stability
from idsds.studies.augmentation_robustness import AugmentationRobustness
from idsds.studies.how_idsds_works import HowIdsdsWorks
from idsds.studies.how_infidelity_works import HowInfidelityWorks
from idsds.studies.hyperparameter_sensitivity import HyperparameterSensitivity
from idsds.studies.leaderboard import Leaderboard
from idsds.studies.metric_sanity import MetricSanity
from idsds.studies.rank_methods import RankMethods
from idsds.studies.roar import study as retraining
from idsds.studies.sanity_checks import SanityChecks
from idsds.studies.score_vs_metrics import ScoreVsMetrics
from tests.models.golden import filled, study_file
from tests.notebooks.test_notebooks import touched

ROOT = Path(__file__).resolve().parents[2]
WNIDS = ("n01440764", "n02102040", "n03888257")
FILES = [path for profile in ("imagenet", "imagenette") for path in sorted((ROOT / "params" / profile).glob("*.yaml"))]
OURS = ("rank_methods", "design_choice", "accuracy_tradeoff", "gallery", "finetune")
files = pytest.mark.parametrize(
    "path", [path for path in FILES if path.stem.startswith(OURS)], ids=lambda path: f"{path.parent.name}/{path.stem}"
)


def photos(folder, train=2, val=2):
    """train/<wnid> and val/<wnid> with a few JPEG files each, of different shapes."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for wnid in WNIDS:
            (folder / split / wnid).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)
                picture = Image.fromarray(pixels).resize((300 - 20 * number, 240), Image.Resampling.BICUBIC)
                picture.save(folder / split / wnid / f"{wnid}_{number}.JPEG")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    photos(root / "imagenet")
    photos(root / "imagenette", train=8)  # of which one per class is held out for validation
    (root / "checkpoints").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IDSDS_DATA", str(root))
        patch.setenv("IDSDS_CHECKPOINTS", str(root / "checkpoints"))
        for name in list_models():  # empty: a plan asks whether a file is there, not what is in it
            authors.file_of(name).touch()
        yield root


@files
def test_a_params_file_of_full_size_plans_and_says_what_it_costs(path, data, tmp_path):
    given = {**yaml.safe_load(path.read_text()), "output": str(tmp_path / "run"), "images": 2}
    touched(given, tmp_path)
    if path.stem == "finetune":
        # Planned, not rehearsed: the nets of this file need hours where a stage takes a GPU seconds.
        stages = finetune.Finetune(**given).stages()
        assert all(stage.missing for stage in stages)
        # Of Imagenette's eight photos per class one is held out; ImageNet keeps both.
        assert {stage.train_images for stage in stages} == {len(WNIDS) * (2 if path.parent.name == "imagenet" else 7)}
        return
    if path.stem.startswith("design_choice"):
        plan = designs.DesignChoice(**given).plan_table()
    elif path.stem == "accuracy_tradeoff":
        plan = tradeoff.AccuracyTradeoff(**{**given, "accuracy_images": 2}).plan_table()
    else:
        plan = evaluate(**RankMethods(**given).arguments(), dry_run=True)
    assert set(plan["model"].str.split(",").str[0]) == set(given["models"])
    deletions = plan[plan["work"] == "deletions"]
    assert (deletions["forward"] == 2 * 17).all()
    applied = {name for work in plan.loc[plan["note"] == "", "work"] for name in work.split(", ")}
    assert set(given["methods"]) <= applied
    assert (plan["epochs"].isna()).all(), "nothing is trained where checkpoints are given"


def planned_idsds(given):
    return HowIdsdsWorks(**{**given, "images": 1}).plan_table()


def planned_infidelity(given):
    """That its settings hold, and its nets and methods can be had; its own plan is tested in test_infidelity_steps.py."""
    settings = HowInfidelityWorks(**{name: value for name, value in given.items() if name != "images"})
    names = {"methods": settings.methods, "dataset": settings.dataset, "checkpoints": settings.checkpoints}
    return evaluate([settings.model], **names, protocol="infidelity", images=settings.image + 1, dry_run=True)


# What plans each of the other params files; roar has a test of its own.
PLANNERS = {
    "compare_protocols": lambda given: comparing.CompareProtocols(**{**given, "update_images": 2, "accuracy_images": 2}).plan_table(),
    "stability": lambda given: stability.Stability(**{**given, "counts": [2]}).plan_table(),
    "how_idsds_works": planned_idsds,
    "how_infidelity_works": planned_infidelity,
    "augmentation_robustness": lambda given: AugmentationRobustness(**given).plan_table(),
    "metric_sanity": lambda given: MetricSanity(**given).plan_table(),
    "hyperparameter_sensitivity": lambda given: HyperparameterSensitivity(**given).plan_table(),
    "leaderboard": lambda given: Leaderboard(**given).plan_table(),
    "score_vs_metrics": lambda given: ScoreVsMetrics(**given).plan_table(),
    "sanity_checks": lambda given: SanityChecks(**given).plan_table(),
}
#: The others take data sets that are no folder of ImageNet's form.
ELSEWHERE = {"train_fractions", "infidelity_sensitivity", "datasets", "funnybirds"}


def test_every_params_file_of_full_size_is_planned_somewhere():
    rest = {path.stem for path in FILES if not path.stem.startswith(OURS)}
    assert rest == {*PLANNERS, "roar"} | ELSEWHERE


@pytest.mark.parametrize("path", [path for path in FILES if path.stem in PLANNERS], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_params_file_of_the_other_notebooks_plans(path, data, tmp_path):
    given = {**yaml.safe_load(path.read_text()), "output": str(tmp_path / "run"), "images": 2}
    touched(given, tmp_path)
    plan = PLANNERS[path.stem](given)
    nets = set(plan["model"].str.split(",").str[0]) - {"patches"}  # a model of metric_sanity's in closed form
    assert nets == set(given.get("models", [given.get("model")]))
    assert plan["forward"].sum() > 0
    assert plan["backward"].sum() > 0
    assert "epochs" not in plan or plan["epochs"].isna().all(), "nothing is trained where checkpoints are given"
    for kind in ("plain_checkpoints", "variant_checkpoints"):
        for name in given.get(kind, {}):  # a name that is none ends the run before any work
            with pytest.raises(SettingsError, match=f"{name}x"):
                PLANNERS[path.stem]({**given, kind: {**given[kind], f"{name}x": given[kind][name]}})


def test_roar_of_full_size_is_the_retrainings_that_its_params_say(data, tmp_path):
    """Planned, not rehearsed (that takes a CPU minutes), on the folder that has photos to hold out."""
    given = full_size("roar")
    settings = retraining.Roar(**{**given, "dataset": "imagenette", "images": 2, "device": "cpu", "output": str(tmp_path)})
    plan = retraining._Planned(settings, "resnet50")
    assert len(plan.data["train"]) == 7 * len(WNIDS)
    # Per seed every method, share above 0 and kind, and one net on untouched images.
    assert len({one.key for one in plan.retrainings()}) == 5 * (10 * 5 * 2 + 1)


def test_a_study_of_full_size_runs_on_a_folder_of_imagenet(data, weights, tmp_path, monkeypatch):
    changes = {"models": ["resnet18"], "methods": ["Saliency", "Random"], "images": 2, "groups": ["filters"], "device": "cpu"}
    changes |= {"threshold": 1.0, "method_settings": {}, "checkpoints": {"resnet18": weights["resnet18"]}}
    stem, _ = run("augmentation_robustness", "augmentation_robustness", changes, tmp_path, monkeypatch)
    table = pd.read_csv(f"{stem}.csv")
    assert sorted(set(table["method"])) == ["Random", "Saliency"]
    assert (table["count"] + table["nan"] == 2).all()
    still = table[(table["method"] == "Random") & (table["measure"] == "spearman")]
    assert still["mean"].min() > 0.999, "noise that is keyed by the image stays under a filter"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files as the authors' training script saves them, with their prefix, of the two cheapest nets that differ in a choice."""
    folder = tmp_path_factory.mktemp("weights")
    found = {}
    for name in ("resnet18", "resnet50"):
        state = filled(create_model(name).state_dict(), name)
        found[name] = str(study_file({f"module.{key}": value for key, value in state.items()}, folder / f"{name}.pth.tar"))
    return found


def full_size(stem):
    """What the params file of full size says."""
    return yaml.safe_load((ROOT / "params" / "imagenet" / f"{stem}.yaml").read_text())


def run(notebook, stem, changes, tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_HOME", str(tmp_path))
    given = {**full_size(stem), **changes}
    papermill.execute_notebook(ROOT / "notebooks" / f"{notebook}.ipynb", tmp_path / "out.ipynb", parameters=given, progress_bar=False)
    text = json.loads((tmp_path / "out.ipynb").read_text())
    printed = "".join("".join(output.get("text", "")) for cell in text["cells"] for output in cell.get("outputs", []))
    return tmp_path / "figures" / "imagenet" / stem, printed


def test_the_ranking_runs_on_a_folder_of_imagenet_with_the_authors_files(data, weights, tmp_path, monkeypatch):
    changes = {"models": ["resnet18"], "methods": ["IxG", "Grad-CAM", "Random"], "images": 3, "device": "cpu"}
    stem, _ = run("rank_methods", "rank_methods", {**changes, "checkpoints": {"resnet18": weights["resnet18"]}}, tmp_path, monkeypatch)
    table, compared = pd.read_csv(f"{stem}.csv"), pd.read_csv(f"{stem}_published.csv")
    assert sorted(table["method"]) == ["Grad-CAM", "IxG", "Random"]
    assert compared[["model", "method", "published"]].to_numpy().tolist() == [["resnet18", "IxG", 0.097]]
    assert b"/FontFile2" in Path(f"{stem}.pdf").read_bytes() or b"/Type42" in Path(f"{stem}.pdf").read_bytes()


def test_the_leaderboard_runs_on_a_folder_of_imagenet_and_says_its_cost_before(data, weights, tmp_path, monkeypatch):
    """All methods that apply are planned; a few run, of which Occlusion by the judging patches is a ceiling."""
    given = {**full_size("leaderboard"), **small(weights, also=[], passes=4), "output": str(tmp_path / "plan")}
    board = Leaderboard(**given)
    assert {"IxG", "Grad-CAM", "DeepLIFT"} <= set(board.chosen)
    left_out = board.left_out.set_index("method")["why"]
    assert "more than 4" in left_out["IG"]
    assert "Rollout" in left_out
    few = small(weights, also=[], methods=["IxG", "Grad-CAM", "Occlusion", "Random"], common=False)
    plan = Leaderboard(**{**given, **few, "dry_run": True}).plan_table()
    assert plan["seconds_left"].sum() > 0
    stem, _ = run("leaderboard", "leaderboard", few, tmp_path, monkeypatch)
    table = pd.read_csv(f"{stem}.csv").set_index("method")
    assert (table["count"] + table["nan"] == 2).all()
    assert table.index[table["ceiling"]].to_list() == ["Occlusion"]
    assert table.loc["Occlusion", "mean"] == pytest.approx(1)
    assert (table["milliseconds"] > 0).all()
    assert (table["forward"] > 0).sum() >= 3


def test_a_design_choice_runs_on_a_folder_of_imagenet_with_the_authors_files(data, weights, tmp_path, monkeypatch):
    changes = {
        "models": ["resnet18", "resnet50"],
        "chains": [],
        "methods": ["IxG", "Layer-CAM"],
        "images": 2,
        "device": "cpu",
        "columns": 1,
    }
    stem, _ = run("design_choice", "design_choice_depth", {**changes, "checkpoints": weights}, tmp_path, monkeypatch)
    differences = pd.read_csv(f"{stem}_differences.csv")
    assert differences[["higher", "lower"]].drop_duplicates().to_numpy().tolist() == [["resnet18", "resnet50"]]
    assert "deeper is lower: supported by" in Path(f"{stem}.md").read_text()
    assert pd.read_csv(f"{stem}_published.csv")["inferred"].tolist() == [False, True] * 2
    assert (pd.read_csv(f"{stem}.csv")["count"] <= 2).all()


def test_the_softmax_experiment_runs_on_a_folder_of_imagenet(data, weights, tmp_path, monkeypatch):
    changes = {"models": ["resnet50"], "methods": ["IxG"], "images": 2, "device": "cpu", "checkpoints": {"resnet50": weights["resnet50"]}}
    stem, _ = run("design_choice", "design_choice_softmax", changes, tmp_path, monkeypatch)
    table = pd.read_csv(f"{stem}_differences.csv")
    assert table[["higher", "lower"]].to_numpy().tolist() == [["resnet50, logit", "resnet50, probability"]]
    assert full_size("design_choice_softmax")["models"] == ["resnet50", "vgg16"]


def small(weights, **changes):
    """What makes a study of full size cheap: one small net, with the file of its weights, and two images."""
    return {"models": ["resnet18"], "checkpoints": {"resnet18": weights["resnet18"]}, "images": 2, "device": "cpu", **changes}


def test_the_judging_of_the_metrics_runs_on_a_folder_of_imagenet(data, weights, tmp_path, monkeypatch):
    protocols = ["idsds", "incremental_deletion", "max_sensitivity", "sanity_check", "hyperparameter_sensitivity"]
    changes = small(weights, methods=["IxG", "Random"], protocols=protocols, known_images=8)
    stem, _ = run("metric_sanity", "metric_sanity", changes, tmp_path, monkeypatch)
    table = pd.read_csv(f"{stem}.csv")
    assert list(dict.fromkeys(table["protocol"])) == protocols
    assert table.loc[~table["applies"], "protocol"].to_list() == ["hyperparameter_sensitivity"]
    above = table.groupby("protocol")["above_random"].first()
    assert above["idsds"] == 1
    assert above["sanity_check"] == 1
    assert above["max_sensitivity"] == 0
    # Randomised weights change what a gradient shows, and not noise that is keyed by the image.
    records = load_records(tmp_path / "runs" / "imagenet" / "metric_sanity" / "sanity_check")
    means = records.groupby("method")["score"].mean()
    assert means["Random"] == pytest.approx(1)
    assert means["IxG"] < 0.2


def test_the_steps_of_infidelity_run_on_a_photo_of_imagenet(data, weights, tmp_path, monkeypatch):
    changes = {"model": "resnet18", "methods": ["Gradient", "IxG", "Random"], "others": 1, "samples": 5, "device": "cpu"}
    changes |= {"grid": 2, "optimal_cells": 2, "checkpoints": {"resnet18": weights["resnet18"]}}
    stem, _ = run("how_infidelity_works", "how_infidelity_works", changes, tmp_path, monkeypatch)
    table = pd.read_csv(f"{stem}.csv")
    noises = [f"noise, sigma {sigma:g}" for sigma in full_size("how_infidelity_works")["sigmas"]]
    assert list(dict.fromkeys(table["perturbation"])) == [*noises, "square, 25% of side", "one patch"]
    by_patch = table[table["perturbation"] == "one patch"].set_index("map")
    assert (by_patch["perturbations"] == 2 * 2).all()
    optimal = by_patch["infidelity"].pop("optimal (2 x 2 cells)")
    assert optimal < 1e-6 * by_patch["map_of_zeros"].min()
    assert optimal < by_patch.loc[["Gradient", "IxG", "Random"], "infidelity"].min()
    # What is said to be taken away first is the patch whose deletion changes the logit most.
    photos = create_dataset("imagenet", "test")
    image, target, _ = photos[fixed_order(photos.image_ids)[0]]
    drops = deletion_drops(create_model("resnet18", checkpoint=weights["resnet18"]), image[None], torch.tensor([target]), grid=2)
    assert abs(by_patch["first_change"]).to_list() == pytest.approx([float(drops.abs().max())] * 4, rel=1e-3)


def test_the_sanity_checks_run_on_a_folder_of_imagenet(data, weights, tmp_path, monkeypatch):
    changes = small(weights, methods=["Gradient", "Guided Backprop", "Edges", "Random"], depths=2, draws=1)
    stem, _ = run("sanity_checks", "sanity_checks", changes, tmp_path, monkeypatch)
    table = pd.read_csv(f"{stem}.csv")
    assert (table["count"] == 2).all()
    assert table.loc[table["method"].isin(["Edges", "Random"]), "mean"].to_numpy() == pytest.approx(1)
    ranks = table[table["similarity"] == "spearman"].pivot_table(index=["check", "depth"], columns="method", values="mean")
    assert len(ranks) == 2 * 2
    assert (ranks["Gradient"] < 0.5).all()
    assert (ranks["Gradient"] < ranks["Guided Backprop"]).all()
    top = ranks.groupby("check").first()
    assert top.loc["cascading"].to_list() == pytest.approx(top.loc["independent"].to_list()), "the first group of layers is the same"


def test_the_sensitivity_to_hyperparameters_runs_on_a_folder_of_imagenet(data, weights, tmp_path, monkeypatch):
    sweep = {"samples": [2, 4], "sigma": [0.1, 1.0]}
    changes = small(weights, methods=["IxG-SG", "Grad-CAM"], sweeps={"IxG-SG": sweep})
    stem, _ = run("hyperparameter_sensitivity", "hyperparameter_sensitivity", changes, tmp_path, monkeypatch)
    scores = pd.read_csv(f"{stem}_settings.csv")
    found = scores.groupby(["method", "hyperparameter"], sort=False)["value"].agg(list).to_dict()
    layers = [f"layer{number}" for number in range(1, 5)]
    wanted = {("IxG-SG", option): list(map(str, values)) for option, values in sweep.items()}
    assert found == {**wanted, ("Grad-CAM", "layer"): layers}
    # The method as it is stands in both of its sweeps, and is one computation: the noise is keyed.
    own = scores[scores["default"] & (scores["method"] == "IxG-SG")]
    assert own["hyperparameter"].to_list() == ["samples", "sigma"]
    assert own["mean"].nunique() == 1
    spreads = pd.read_csv(f"{stem}.csv").set_index(["method", "hyperparameter"])
    assert list(spreads.index) == list(found)
    assert spreads["settings"].to_list() == list(map(len, found.values()))
    assert (spreads["spearman"] < 0.9).all()


def test_roar_runs_on_a_folder_of_photos(data, tmp_path, monkeypatch):
    """On the folder that has photos to hold out: one step of training per net."""
    state = filled(create_model("resnet18", num_classes=len(WNIDS)).state_dict(), "resnet18")
    file = study_file({f"module.{key}": value for key, value in state.items()}, tmp_path / "resnet18.pth.tar")
    recipe = full_size("roar")["recipe"] | {"epochs": 1, "batch_size": 4}
    changes = small({"resnet18": str(file)}, dataset="imagenette", methods=["Gradient", "Random"], shares=[0.0, 0.9], recipe=recipe)
    changes |= {"train_images": 4, "seeds": [0], "workers": 1}
    stem, _ = run("roar", "roar", changes, tmp_path, monkeypatch)
    areas = pd.read_csv(f"{stem}.csv")
    assert {("remove", "Gradient", 7), ("keep", "Gradient", 7)} <= set(areas[["kind", "method", "explained"]].itertuples(index=False))
    # The same addresses are found from here, and under them the photos have lost what their map calls most or least important.
    planned = retraining._Planned(retraining.Roar(**{**full_size("roar"), **changes}), "resnet18")
    retrained = {one.path: one for one in planned.retrainings()}
    assert set(retrained) == set((tmp_path / "cache" / "roar").glob("resnet18-*.json"))
    pixels = [one for one in retrained.values() if one.kind in ("remove", "keep")]
    assert len(pixels) == 1 + 2 * 2, "one net for untouched photos, and one for each method and kind"
    photo = planned.data["test"].read(0)
    for one in pixels:
        replaced = (one.split("test").read(0) != photo).any(dim=0)
        ranks = planned.ranks[one.method]["test"][0][0]
        places = ranks if one.kind == "remove" else ranks.max() - ranks
        assert torch.equal(replaced, places < round(one.share * 224 * 224))
