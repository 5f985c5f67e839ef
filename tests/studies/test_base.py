import importlib
import re

import pandas as pd
import pytest
import yaml
from matplotlib.text import Text

from idsds.common import paths
from idsds.common.settings import SettingsError
from idsds.evaluation.evaluate import evaluate
from idsds.models import create_model
from idsds.models.weights import save_checkpoint
from idsds.studies.base import STUDIES, EvaluationStudy, Findings, Plan, Result, read_params, run_file, study_class
from idsds.studies.rank_methods import RankMethods
from idsds.training.recipes import PAPER, Recipe

GOOD = {"dataset": "mnist5k", "models": ["mini_resnet8"], "methods": ["IG", "IG abs"], "images": 10, "output": "runs/x/y"}


class Minimal(EvaluationStudy):
    def _run(self, progress):
        records = self.records(progress)
        table = records.groupby("method", as_index=False)["score"].mean()
        return Result(self.stem, {"": table, "empty": table.head(0)}, Findings(["One.", "Two."], table), lambda: None, records)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": ["mini_resnet9"]}, "unknown model 'mini_resnet9'. Did you mean 'mini_resnet8'"),
        ({"methods": ["IG-V"]}, "unknown method 'IG-V'. Did you mean 'IG-U'"),
        ({"methods": ["IGG abs"]}, "unknown method 'IGG abs'. Did you mean 'IG abs'"),
        ({"dataset": "mnist"}, "unknown data set 'mnist'. Did you mean 'mnist5k'"),
        ({"baseline": "zero"}, "unknown baseline 'zero'. Did you mean 'zeros'"),
        ({"precision": "bf16"}, "unknown precision 'bf16'. Did you mean 'bf16-mixed'"),
        ({"device": "gpu"}, "unknown device 'gpu'.*Allowed: auto, cpu, cuda, mps"),
        ({"grid": 5}, "grid 5 does not divide images of 32 x 32 pixels.*nearest: 4"),
        ({"imags": 5}, "unknown key 'imags'. Did you mean 'images'"),
        ({"images": "100"}, r"images: Input should be a valid integer.*given: '100'"),
        ({"images": 0}, r"images: .*greater than 0.*given: 0"),
        ({"images": 1.5}, "images: Input should be a valid integer"),
        ({"models": "mini_resnet8"}, "models: Input should be a valid list"),
        ({"models": []}, "models: List should have at least 1 item"),
        ({"methods": ["IG", "IG"]}, "methods lists IG more than once"),
        ({"seeds": [0, True]}, r"seeds\.1: Input should be a valid integer"),
        ({"checkpoints": {"vgg16": "x.pth"}}, "unknown model with a checkpoint 'vgg16'"),
    ],
)
def test_each_fault_is_named_with_what_is_allowed(change, message):
    with pytest.raises(SettingsError, match=message):
        Minimal(**{**GOOD, **change})


def test_all_faults_are_named_at_once():
    with pytest.raises(SettingsError) as caught:
        Minimal(**{**GOOD, "models": ["resnet8"], "images": -1, "bogus": 1})
    assert str(caught.value).startswith("3 fault(s) in Minimal")


def test_a_missing_key_is_named():
    with pytest.raises(SettingsError, match="output: missing"):
        Minimal(**{key: value for key, value in GOOD.items() if key != "output"})


def test_an_unwritable_output_is_named(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(SettingsError, match=r"cannot write to the output folder .*file/run"):
        Minimal(**{**GOOD, "output": str(blocker / "run")})


def test_settings_are_frozen():
    settings = Minimal(**GOOD)
    with pytest.raises(ValueError, match="frozen"):
        settings.images = 3


def test_a_params_key_that_papermill_only_warns_of_is_refused_and_other_variables_are_not():
    namespace = {**GOOD, "In": ["", "images: int = 3", "# Parameters\nimages = 10\n"], "Out": {}, "files": ["x"], "paths": paths}
    assert Minimal.from_notebook(namespace) == Minimal(**GOOD)
    namespace |= {"In": ["", "# Parameters\nmodles = ['mini_resnet8']\n"], "modles": ["mini_resnet8"]}
    with pytest.raises(SettingsError, match=r"unknown key 'modles'\. Did you mean 'models'"):
        Minimal.from_notebook(namespace)


def test_yaml_scientific_notation_without_a_point_is_refused():
    with pytest.raises(SettingsError, match="lr: Input should be a valid number"):
        Recipe(**yaml.safe_load("lr: 1e-3"))
    assert Recipe(**yaml.safe_load("lr: 1.0e-3")).lr == 1e-3


def test_the_papers_recipe():
    assert (PAPER.epochs, PAPER.batch_size, PAPER.lr, PAPER.momentum, PAPER.weight_decay) == (30, 256, 1e-3, 0.9, 1e-4)
    assert (PAPER.optimizer, PAPER.schedule, PAPER.step_epochs, PAPER.step_factor) == ("sgd", "step", 10, 0.1)


def test_evaluate_takes_what_the_settings_give():
    arguments = Minimal(**{**GOOD, "seeds": [0, 1]}).arguments()
    assert arguments["seed"] == [0, 1]
    assert "seeds" not in arguments


def test_figures_go_beside_the_profile_of_the_run(tmp_path):
    assert paths.figures_of("runs/mnist5k/rank_methods") == paths.root() / "figures" / "mnist5k"
    assert paths.figures_of(tmp_path / "a" / "b") == tmp_path / "a" / "b" / "figures"


PLAN = pd.DataFrame(
    {
        "model": ["a", "a", "b"],
        "work": ["train", "maps", "maps"],
        "epochs": [3, None, None],
        "forward": [None, 10, 2000],
        "backward": [None, 5, 0],
        "seconds_left": [30.0, 60.0, 3510.0],
        "disk_mb": [0.0, 1.0, 2.5],
    }
)


def test_a_cost_in_words():
    words = Plan(PLAN).total
    assert words == "2,010 forward and 5 backward passes, 1 training stage(s) that are not cached, about 1.0 hours left, 3.5 MB on disk"
    assert Plan(PLAN[["model", "forward", "backward"]]).total == "2,010 forward and 5 backward passes"
    trained = pd.DataFrame({"model": "a", "images_left": [100, 1000], "hours": [0.5, 1.0], "epochs": [2, 2]})
    assert Plan(trained).total == "1,100 images forward and backward in training, about 1.5 hours left"


def test_a_training_that_several_runs_need_is_planned_once():
    one = PLAN.assign(checkpoint=["net.safetensors", "", ""], label="first")
    twice = Plan(pd.concat([one, one.assign(label="second")]))
    assert twice.total.startswith("4,020 forward and 10 backward passes, 1 training stage(s)")
    assert twice.table["seconds_left"].sum() == 30 + 2 * (60 + 3510)


def test_a_plan_is_shown_with_its_sums_and_its_total(capsys, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    Plan(PLAN)._ipython_display_()
    assert shown[0].loc["b", "forward"] == 2000
    assert shown[0].loc["a", "epochs"] == 3
    assert "disk_mb" in shown[0]
    assert "In all: 2,010 forward" in capsys.readouterr().out


@pytest.fixture
def minimal(tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_HOME", str(tmp_path))

    def fake(dry_run=False, progress=True, **arguments):
        assert "columns" not in arguments
        if dry_run:
            return pd.DataFrame({"model": arguments["models"], "forward": 3, "backward": 0, "mode": str(dry_run)})
        return pd.DataFrame({"method": arguments["methods"], "score": 0.5})

    monkeypatch.setattr("idsds.studies.base.evaluate", fake)
    return Minimal(**GOOD)


def test_a_study_plans_runs_and_saves(minimal, tmp_path):
    assert minimal.plan().total == "3 forward and 0 backward passes"
    assert set(minimal.plan().table["mode"]) == {"True"}
    result = minimal.run(progress=False)
    assert result.table["score"].tolist() == [0.5, 0.5]
    assert (
        result.findings.markdown()
        == f"- One.\n- Two.\n\n| method | score |\n| --- | --- |\n| IG | 0.50 |\n| IG abs | 0.50 |\n\n{minimal.scope}"
    )
    from matplotlib.figure import Figure

    names = [path.name for path in result.save(Figure())]
    assert names == ["y.png", "y.pdf", "y.csv", "y.md"], "an empty table is not saved"


def test_a_study_says_what_its_claims_are_about(minimal):
    assert minimal.scope.startswith("One net per model: the claims are about these nets")
    three = minimal.model_copy(update={"seeds": [0, 1, 2]})
    assert three.run(progress=False).findings.scope == "Intervals are over 3 training seeds and images."


def test_a_dry_run_measures_and_ends_before_the_work(minimal, capsys):
    dry = minimal.model_copy(update={"dry_run": True})
    assert set(dry.plan().table["mode"]) == {"measure"}
    with pytest.raises(SystemExit) as end:
        dry.run()
    assert end.value.code == 0
    assert "nothing was computed" in capsys.readouterr().out


def test_every_study_is_found_by_the_name_of_its_notebook():
    assert issubclass(study_class("rank_methods"), EvaluationStudy)
    with pytest.raises(ValueError, match=r"unknown study 'rank_method'\. Did you mean 'rank_methods'"):
        study_class("rank_method")
    assert len(set(STUDIES)) == len(STUDIES)


def test_a_params_file_is_read_with_changes(tmp_path, capsys):
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump(GOOD))
    assert read_params(file, ["images=3", "methods=[IG]"]) == GOOD | {"images": 3, "methods": ["IG"]}
    with pytest.raises(SettingsError, match="a change is key=value, not 'images'"):
        read_params(file, ["images"])
    file.write_text("- a\n- b\n")
    with pytest.raises(SettingsError, match="must hold settings"):
        read_params(file)


def test_a_study_runs_from_a_file_without_its_notebook(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("IDSDS_HOME", str(tmp_path))
    file = tmp_path / "a.yaml"
    file.write_text(yaml.safe_dump({**GOOD, "models": ["mini_resnet8"], "methods": ["IG", "Random"], "images": 2, "dry_run": True}))
    with pytest.raises(SystemExit):
        run_file("rank_methods", file)
    assert "In all: " in capsys.readouterr().out


def test_a_study_on_a_large_run_reads_what_it_needs(tmp_path, monkeypatch, checkpoint):
    """Above so many records `evaluate` hands back the folder; a study's tables are the same, and patch sums stay on the disk."""
    given = GOOD | {"dataset": "digits", "methods": ["IxG", "Random"], "images": 4, "checkpoints": {"mini_resnet8": str(checkpoint)}}
    study = RankMethods(**given | {"output": str(tmp_path)})
    small = study.run(progress=False)
    monkeypatch.setattr("idsds.evaluation.evaluate.LARGE", 5)
    large = study.run(progress=False)
    assert "patch_sums" in small.records
    assert "patch_sums" not in large.records
    for name, table in small.tables.items():
        pd.testing.assert_frame_equal(table, large.tables[name], check_dtype=False, check_categorical=False)


@pytest.mark.parametrize("name", ["hyperparameter_sensitivity", "metric_sanity"])
def test_a_study_of_several_large_runs_reads_their_folders(name, tmp_path, monkeypatch, checkpoint):
    monkeypatch.setattr("idsds.evaluation.evaluate.LARGE", 1)
    given = {"dataset": "digits", "models": ["mini_resnet8"], "methods": ["IG"], "images": 3, "sweeps": {"IG": {"steps": [2, 4]}}}
    if name == "metric_sanity":
        given |= {"methods": ["IxG", "Random"], "protocols": ["single_deletion"], "known_images": 2}
        del given["sweeps"]
    study = study_class(name)(**given, checkpoints={"mini_resnet8": str(checkpoint)}, output=str(tmp_path / "run"))
    assert len(study.run(progress=False).tables[""]) == 1


@pytest.mark.parametrize(
    "function",
    ["rank_methods.published_findings", "rank_methods.beside_controls", "rank_methods.drops_of", "leaderboard.standing",
     "accuracy_tradeoff.best", "design_choice.ranked", "metric_sanity.study.against_controls"],
)  # fmt: skip
def test_what_reads_records_reads_a_folder_as_well(function, tmp_path, checkpoint):
    given = {"protocol": "single_deletion", "images": 4, "checkpoints": {"mini_resnet8": str(checkpoint)}, "progress": False}
    records = evaluate(["mini_resnet8"], ["IxG", "IxG-SG", "Random"], "digits", **given, output=tmp_path)
    module, name = function.rsplit(".", 1)
    read = getattr(importlib.import_module(f"idsds.studies.{module}"), name)
    more = {"ranked": [[["mini_resnet8"]]], "against_controls": [True]}.get(name, [])
    found, expected = (
        pd.DataFrame(pd.Series(got) if isinstance(got, dict) else got) for got in (read(tmp_path, *more), read(records, *more))
    )
    assert len(expected)
    pd.testing.assert_frame_equal(
        found[expected.columns.drop("patch_sums", errors="ignore")],
        expected.drop(columns="patch_sums", errors="ignore"),
        check_dtype=False,
        check_categorical=False,
    )


SCORED = {
    "accuracy_tradeoff": {"accuracy_images": 40, "models": ["mini_resnet8", "mini_vgg11"]},
    "compare_protocols": {"protocols": ["IDSDS", "SDS"], "accuracy_images": 4, "update_images": 2, "steps": 4},
    "design_choice": {"choice": "softmax"},
    "hyperparameter_sensitivity": {"methods": ["IG", "Grad-CAM"], "sweeps": {"IG": {"steps": [2, 4]}}},
    "leaderboard": {"passes": 4},
    "rank_methods": {},
    "stability": {"baselines": ["zeros", "blur"], "grids": [4, 2], "counts": [2, 4], "seeds": [0, 1]},
}


@pytest.mark.parametrize("name", SCORED)
def test_a_score_on_nets_that_were_tuned_without_labels_is_called_so(name, tmp_path, checkpoint, monkeypatch):
    """In every sentence, table and text of the figure."""
    monkeypatch.setattr("idsds.evaluation.plan.Job.distilled", True)
    given = {"dataset": "mnist5k", "models": ["mini_resnet8"], "methods": ["IxG", "Saliency", "Random"], "images": 4} | SCORED[name]
    other = save_checkpoint(create_model("mini_vgg11"), tmp_path / "other.safetensors")
    files = {model: str({"mini_resnet8": checkpoint}.get(model, other)) for model in given["models"]}
    if name == "stability":
        given["variant_checkpoints"] = dict.fromkeys(("seed 1", "baseline blur", "grid 2"), str(checkpoint))
    if name == "compare_protocols":
        given["plain_checkpoints"] = files
    if name == "leaderboard":
        del given["methods"]
    result = study_class(name)(**given, checkpoints=files, output=str(tmp_path / "run")).run(progress=False)
    figures = result.plot()
    texts = [text.get_text() for figure in (figures if isinstance(figures, list) else [figures]) for text in figure.findobj(Text)]
    frames = [*result.tables.values(), result.findings.verdicts]
    cells = [str(cell) for table in frames if table is not None for cell in [*table.columns, *table.to_numpy().ravel()]]
    plain = re.compile(r"IDSDS(?! \(distilled\))")
    assert not [text for text in [*texts, *cells, *result.findings.sentences] if plain.search(text)]
    assert any("IDSDS (distilled)" in text for text in texts)


def test_the_name_of_the_score_follows_the_training():
    from idsds.studies.base import named_score

    assert named_score(pd.DataFrame({"distilled": [False, True]}), "IDSDS") == "IDSDS (distilled)"
    assert named_score(pd.DataFrame({"score": [1.0]}), "IDSDS") == "IDSDS"
