"""Options of methods from a params file: they reach the methods, move no other address, and a mistake is named before any work."""

import pytest

from idsds.common.settings import SettingsError
from idsds.evaluation.job import make_method
from idsds.evaluation.nets import skeleton
from idsds.methods.base import TENFOLD
from idsds.studies.augmentation_robustness import AugmentationRobustness
from idsds.studies.base import resolve
from idsds.studies.infidelity_sensitivity import InfidelitySensitivity
from idsds.studies.score_vs_metrics import ScoreVsMetrics

SHARED = {"models": ["mini_resnet8"], "methods": ["Saliency", "IG"], "images": 4, "device": "cpu"}
STUDIES = {
    ScoreVsMetrics: {"dataset": "digits"},
    AugmentationRobustness: {"dataset": "digits"},
    InfidelitySensitivity: {"datasets": ["digits"], "fractions": [1.0]},
}


OTHERS = {"captum/Occlusion": {"grid": 2}, "Rollout": {"start_block": 0}, "RISE": {"probability": 0.5}}


def made(study, tmp_path, **more):
    return study(**SHARED, **STUDIES[study], output=str(tmp_path / "x"), **more)


@pytest.mark.parametrize("study", STUDIES)
def test_they_reach_the_methods_of_every_run(study, tmp_path):
    for run in made(study, tmp_path, method_settings={"IG": {"steps": 25}}).runs().values():
        methods = {
            name: make_method(name, given, skeleton("mini_resnet8"), 0) for name, given in run["methods"].items() if not callable(given)
        }
        steps = {name: method.options.get("steps") for name, method in methods.items() if not name.startswith("Saliency")}
        assert set(steps) <= {"IG", f"IG{TENFOLD}"}
        assert set(steps.values()) == {25}
        assert methods["IG"].passes == (25, 25)


def test_only_the_address_of_that_method_moves(tmp_path):
    def addresses(**changes):
        plan = resolve(**(made(ScoreVsMetrics, tmp_path).runs()["infidelity"] | changes))
        return {unit.methods: unit.address for unit in plan.units(plan.jobs[0], addressed=True)}

    plain = addresses()
    assert plain == addresses(methods=SHARED["methods"])  # as they were before there were such settings
    changed = addresses(methods=made(ScoreVsMetrics, tmp_path, method_settings={"IG": {"steps": 25}}).with_settings())
    assert {methods for methods in plain if plain[methods] != changed[methods]} == {("IG",)}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"IGG": {"steps": 25}}, "unknown method with settings 'IGG'. Did you mean 'IG'?"),
        ({"IG": {"step": 25}}, "unknown option of method 'IG' 'step'. Did you mean 'steps'?"),
        ({"IG": {"steps": 0}}, "method_settings.IG.steps must be a whole number of at least 1, not 0"),
        ({"IG": {"steps": 2.5}}, "not 2.5"),
        ({"IG": {"steps": True}}, "not True"),
        ({"IG": {"baseline": "uniforn"}}, "unknown baseline of integrated gradients 'uniforn'. Did you mean 'uniform'"),
        ({"Gradient-SG": {"sigma": -1}}, "method_settings.Gradient-SG.sigma must be a number above 0, not -1"),
        ({"Gradient-SG": {"relative": 1}}, "method_settings.Gradient-SG.relative must be true or false, not 1"),
        ({"GradientSHAP": {"baselines": "x"}}, "method_settings.GradientSHAP.baselines is an array"),
        ({"Grad-CAM": {"channels": "frist"}}, "unknown channels 'frist'. Did you mean 'first'?"),
        ({"captum/Occlusion": {"grid": 0}}, "method_settings.captum/Occlusion.grid must be a whole number of at least 1, not 0"),
        ({"Rollout": {"start_block": -1}}, "method_settings.Rollout.start_block must be a whole number of at least 0, not -1"),
        ({"RISE": {"probability": 1.5}}, "method_settings.RISE.probability must be a number above 0 and below 1, not 1.5"),
        ({"Grad-CAM": {"layer": 3}}, "method_settings.Grad-CAM.layer must be a name, not 3"),
    ],
)
def test_a_mistake_is_named(settings, said, tmp_path):
    values = SHARED | {"methods": ["IG", "Gradient-SG", "GradientSHAP", "Grad-CAM", *OTHERS], "dataset": "digits"}
    with pytest.raises(SettingsError) as raised:
        ScoreVsMetrics(**values, method_settings=settings, output=str(tmp_path / "x"))
    assert said in str(raised.value)


def test_options_without_a_default_pass(tmp_path):
    settings = OTHERS | {"Grad-CAM": {"channels": "first"}}
    values = SHARED | {"methods": list(settings), "dataset": "digits"}
    assert ScoreVsMetrics(**values, method_settings=settings, output=str(tmp_path / "x")).method_settings == settings
