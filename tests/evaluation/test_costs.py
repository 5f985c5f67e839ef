"""What a run is said to cost beforehand, and that a dry run ends there."""

import pandas as pd
import pytest

from idsds.evaluation import costs
from idsds.studies.base import NotebookSettings

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
    words = costs.spell_cost(PLAN)
    assert words == "2,010 forward and 5 backward passes, 1 training stage(s) that are not cached, about 1.0 hours left, 3.5 MB on disk"
    assert costs.spell_cost(PLAN[["model", "forward", "backward"]]) == "2,010 forward and 5 backward passes"
    trained = pd.DataFrame({"images_left": [100, 1000], "hours": [0.5, 1.0], "epochs": [2, 2]})
    assert costs.spell_cost(trained) == "1,100 images forward and backward in training, about 1.5 hours left"


def test_a_training_that_several_runs_need_is_done_once():
    one = PLAN.assign(checkpoint=["net.safetensors", "", ""], run="first")
    twice = pd.concat([one, one.assign(run="second")])
    assert costs.spell_cost(twice).startswith("4,020 forward and 10 backward passes, 1 training stage(s)")
    assert costs.once(twice)["seconds_left"].sum() == 30 + 2 * (60 + 3510)


def test_it_is_shown_and_the_run_goes_on(capsys, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    costs.announce(PLAN, NotebookSettings())
    assert shown[0].loc["b", "forward"] == 2000
    assert shown[0].loc["a", "epochs"] == 3
    assert "disk_mb" in shown[0]
    assert "In all: 2,010 forward" in capsys.readouterr().out


def test_a_dry_run_ends_there(capsys, monkeypatch):
    monkeypatch.setattr("IPython.display.display", lambda _: None)
    with pytest.raises(SystemExit) as end:
        costs.announce(PLAN, NotebookSettings(dry_run=True), by=["model", "work"])
    assert end.value.code == 0
    assert "nothing was computed" in capsys.readouterr().out
    assert NotebookSettings(dry_run=True).planning == "measure"
    assert NotebookSettings().planning is True
