"""The paper's params without the paper's data: each file plans and says what it costs, and the whole path runs on a tiny folder."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import papermill
import pytest
import yaml
from PIL import Image

from idsds import create_model, designs, evaluate, finetune, tradeoff
from idsds.settings import RankingSettings
from tests.models.golden import filled, study_file

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
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IDSDS_DATA", str(root))
        yield root


@files
def test_a_params_file_of_full_size_plans_and_says_what_it_costs(path, data, tmp_path):
    given = {**yaml.safe_load(path.read_text()), "output": str(tmp_path / "run"), "images": 2}
    for model, start in given["checkpoints"].items():
        if start != "pretrained":
            (tmp_path / f"{model}.pth.tar").touch()  # a plan asks whether it is there, not what is in it
            given["checkpoints"][model] = str(tmp_path / f"{model}.pth.tar")
    if path.stem == "finetune":
        settings = finetune.FineTuneSettings(**given)
        # Planned, not rehearsed: the nets of this file need hours where a stage takes a GPU seconds.
        stages = [settings.stage(model, seed) for model in settings.models for seed in settings.seeds]
        assert all((stage.missing and stage.train_images == 2 * len(WNIDS)) or stage.train_images > 0 for stage in stages)
        return
    if path.stem.startswith("design_choice"):
        plan = designs.measure(designs.DesignSettings(**given), dry_run=True)
    elif path.stem == "accuracy_tradeoff":
        plan = tradeoff.measure(tradeoff.TradeoffSettings(**{**given, "accuracy_images": 2}), dry_run=True)
    else:
        plan = evaluate(**RankingSettings(**given).run(), dry_run=True)
    assert set(plan["model"].str.split(",").str[0]) == set(given["models"])
    deletions = plan[plan["work"] == "deletions"]
    assert (deletions["forward"] == 2 * 17).all()
    applied = {name for work in plan.loc[plan["note"] == "", "work"] for name in work.split(", ")}
    assert set(given["methods"]) <= applied
    assert (plan["epochs"].isna()).all(), "nothing is trained where checkpoints are given"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Files as the authors' training script saves them, with their prefix, of the two cheapest nets that differ in a choice."""
    folder = tmp_path_factory.mktemp("weights")
    found = {}
    for name in ("resnet18", "resnet50"):
        state = filled(create_model(name).state_dict(), name)
        found[name] = str(study_file({f"module.{key}": value for key, value in state.items()}, folder / f"{name}.pth.tar"))
    return found


def run(notebook, stem, changes, tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_HOME", str(tmp_path))
    given = yaml.safe_load((ROOT / "params" / "imagenet" / f"{stem}.yaml").read_text())
    papermill.execute_notebook(
        ROOT / "notebooks" / f"{notebook}.ipynb", tmp_path / "out.ipynb", parameters={**given, **changes}, progress_bar=False
    )
    text = json.loads((tmp_path / "out.ipynb").read_text())
    printed = "".join("".join(output.get("text", "")) for cell in text["cells"] for output in cell.get("outputs", []))
    return tmp_path / "figures" / "imagenet" / stem, printed


def test_the_ranking_runs_on_a_folder_of_imagenet_with_the_authors_files(data, weights, tmp_path, monkeypatch):
    changes = {"models": ["resnet18"], "methods": ["IxG", "Grad-CAM", "Random"], "images": 3, "device": "cpu"}
    stem, printed = run(
        "rank_methods", "rank_methods", {**changes, "checkpoints": {"resnet18": weights["resnet18"]}}, tmp_path, monkeypatch
    )
    table, compared = pd.read_csv(f"{stem}.csv"), pd.read_csv(f"{stem}_published.csv")
    assert sorted(table["method"]) == ["Grad-CAM", "IxG", "Random"]
    assert compared[["model", "method", "published"]].to_numpy().tolist() == [["resnet18", "IxG", 0.097]]
    assert "ours / published / difference" in printed
    assert b"/FontFile2" in Path(f"{stem}.pdf").read_bytes() or b"/Type42" in Path(f"{stem}.pdf").read_bytes()


def test_a_design_choice_runs_on_a_folder_of_imagenet_with_the_authors_files(data, weights, tmp_path, monkeypatch):
    changes = {
        "models": ["resnet18", "resnet50"],
        "chains": [],
        "methods": ["IxG", "Layer-CAM"],
        "images": 2,
        "device": "cpu",
        "columns": 1,
    }
    stem, printed = run("design_choice", "design_choice_depth", {**changes, "checkpoints": weights}, tmp_path, monkeypatch)
    differences = pd.read_csv(f"{stem}_differences.csv")
    assert differences[["higher", "lower"]].drop_duplicates().to_numpy().tolist() == [["resnet18", "resnet50"]]
    assert "deeper is lower: holds for" in printed
    assert pd.read_csv(f"{stem}_published.csv")["inferred"].tolist() == [False, True] * 2
    assert (pd.read_csv(f"{stem}.csv")["count"] <= 2).all()
