import pytest
import yaml

from idsds.common import paths
from idsds.common.devices import chosen_device
from idsds.common.settings import SettingsError
from idsds.studies.base import RunSettings
from idsds.training.recipes import PAPER, Recipe

GOOD = {"dataset": "mnist5k", "models": ["mini_resnet8"], "methods": ["IG", "IG abs"], "images": 10, "output": "runs/x/y"}


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
        RunSettings(**{**GOOD, **change})


def test_all_faults_are_named_at_once():
    with pytest.raises(SettingsError) as caught:
        RunSettings(**{**GOOD, "models": ["resnet8"], "images": -1, "bogus": 1})
    assert str(caught.value).startswith("3 fault(s) in RunSettings")


def test_a_missing_key_is_named():
    with pytest.raises(SettingsError, match="output: missing"):
        RunSettings(**{key: value for key, value in GOOD.items() if key != "output"})


def test_an_unwritable_output_is_named(tmp_path):
    blocker = tmp_path / "file"
    blocker.write_text("")
    with pytest.raises(SettingsError, match=r"cannot write to the output folder .*file/run"):
        RunSettings(**{**GOOD, "output": str(blocker / "run")})


def test_settings_are_frozen():
    settings = RunSettings(**GOOD)
    with pytest.raises(ValueError, match="frozen"):
        settings.images = 3


def test_a_params_key_that_papermill_only_warns_of_is_refused_and_other_variables_are_not():
    namespace = {**GOOD, "In": ["", "images: int = 3", "# Parameters\nimages = 10\n"], "Out": {}, "files": ["x"], "paths": paths}
    assert RunSettings.from_notebook(namespace) == RunSettings(**GOOD)
    namespace |= {"In": ["", "# Parameters\nmodles = ['mini_resnet8']\n"], "modles": ["mini_resnet8"]}
    with pytest.raises(SettingsError, match=r"unknown key 'modles'\. Did you mean 'models'"):
        RunSettings.from_notebook(namespace)


def test_yaml_scientific_notation_without_a_point_is_refused():
    with pytest.raises(SettingsError, match="lr: Input should be a valid number"):
        Recipe(**yaml.safe_load("lr: 1e-3"))
    assert Recipe(**yaml.safe_load("lr: 1.0e-3")).lr == 1e-3


def test_the_papers_recipe():
    assert (PAPER.epochs, PAPER.batch_size, PAPER.lr, PAPER.momentum, PAPER.weight_decay) == (30, 256, 1e-3, 0.9, 1e-4)
    assert (PAPER.optimizer, PAPER.schedule, PAPER.step_epochs, PAPER.step_factor) == ("sgd", "step", 10, 0.1)


def test_evaluate_takes_what_the_settings_give():
    arguments = RunSettings(**{**GOOD, "seeds": [0, 1]}).evaluate()
    assert arguments["seed"] == [0, 1]
    assert "seeds" not in arguments


def test_auto_is_a_device_that_is_there():
    assert chosen_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(SettingsError, match="unknown device 'tpu'"):
        chosen_device("tpu")


def test_figures_go_beside_the_profile_of_the_run(tmp_path):
    assert paths.figures_of("runs/mnist5k/rank_methods") == paths.root() / "figures" / "mnist5k"
    assert paths.figures_of(tmp_path / "a" / "b") == tmp_path / "a" / "b" / "figures"
