"""Nets that are trained side by side are those that are trained alone, and what goes wrong in one is said of it."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pandas as pd
import pytest
import torch

from idsds.common.files import DamagedFileError
from idsds.evaluation.costs import seconds_by_the_clock
from idsds.models import MODELS
from idsds.training import processes
from idsds.training.checkpoints import obtain, plan_training
from idsds.training.launch import Machine

#: Two nets of two stages each.
SCRIPT = """
from idsds.training import processes
from idsds.training.checkpoints import plan_training

if __name__ == "__main__":
    processes.START = -1e9
    processes.train([plan_training("mini_resnet8", "digits", seed=seed, fraction=0.1) for seed in (0, 1)])
"""


@pytest.fixture
def always(monkeypatch, tmp_path):
    """Two processes, however short the training is."""
    monkeypatch.setenv("IDSDS_PROCESSES", "2")
    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path / "beside"))
    monkeypatch.setattr(processes, "START", -1e9)


def nets():
    return [plan_training("mini_resnet8", "digits", seed=seed, fraction=0.1) for seed in (0, 1)]


def test_nets_side_by_side_are_those_trained_alone(always, monkeypatch, tmp_path, capsys):
    stages = [*nets(), last := plan_training("mini_resnet8", "digits", None, seed=2, fraction=0.02)]
    last.resume.parent.mkdir(parents=True)
    last.resume.write_bytes(b"damaged")
    with pytest.raises(DamagedFileError, match="cannot continue from") as caught:
        processes.train(stages)
    assert caught.value.__notes__ == ["This happened while 'mini_resnet8' was trained on 'digits' with seed 2."]
    assert re.search("[34] of 5 done", capsys.readouterr().err)
    found = {one.key: one.content for stage in stages[:2] for one in (stage.start, stage) if one.intact}
    assert len(found) >= 3, "what was finished is kept"
    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path / "alone"))
    for stage in stages[:2]:
        obtain(stage, progress=False)
        assert all(one.content == found[one.key] for one in (stage.start, stage) if one.key in found)


def test_a_process_that_is_killed_leaves_its_net_to_this_one(always):
    def kill():
        while not (workers := multiprocessing.active_children()):
            time.sleep(0.05)
        workers[0].kill()

    threading.Thread(target=kill, daemon=True).start()
    with pytest.warns(UserWarning, match="ended without an error.*IDSDS_PROCESSES"):
        processes.train(nets(), progress=False)
    assert all(stage.intact for stage in nets())


def test_ctrl_c_ends_all_and_what_is_done_is_kept(always, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    run = subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
    stages, end = nets(), time.monotonic() + 100
    while not any(stage.start.path.is_file() for stage in stages) and run.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    listed = subprocess.run(["ps", "-eww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=2) for line in listed.splitlines() if "spawn_main" in line]
    workers = {int(pid) for pid, parent, _ in rows if int(parent) == run.pid}
    os.killpg(run.pid, signal.SIGINT)
    said = run.communicate(timeout=60)[1]
    assert run.returncode != 0
    assert "KeyboardInterrupt" in said
    assert len(workers) == 2
    assert not workers & {int(pid) for pid in os.listdir("/proc") if pid.isdecimal()}
    assert any(stage.start.intact for stage in stages)


def test_how_many_are_trained_at_once(monkeypatch, tmp_path):
    stage = nets()[0]
    monkeypatch.delenv("IDSDS_PROCESSES", raising=False)
    assert processes.processes() == torch.get_num_threads() == 1
    monkeypatch.setenv("IDSDS_PROCESSES", "4")
    assert processes.processes_of(stage) == 4
    assert processes.processes_of(replace(stage, device="cuda")) == 1
    assert processes.processes_of(stage, Machine(devices=2)) == 1
    assert processes.processes_of(plan_training("squeezenet1_1", "photos20", weights="pretrained")) == 1, "they take all threads"
    made = MODELS["mini_resnet8"]
    try:
        MODELS.add("mini_resnet8", replace(made, build=NoPickle()), replace=True)
        assert processes.processes_of(stage) == 1
    finally:
        MODELS.add("mini_resnet8", made, replace=True)
    script = tmp_path / "script.py"
    script.write_text("import idsds\n", encoding="utf-8")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    assert processes.processes() == 1, "each process would run the script again"
    for wrong in ("0", "two", "-1"):
        monkeypatch.setenv("IDSDS_PROCESSES", wrong)
        with pytest.raises(ValueError, match=f"IDSDS_PROCESSES must be a whole number of at least 1, not '{wrong}'"):
            processes.processes()


class NoPickle:
    def __call__(self, **options):
        return None

    def __reduce__(self):
        raise TypeError("not this one")


def test_a_plan_says_the_seconds_by_the_clock():
    training = {"model": ["a", "a", "b", "c"], "seed": 0, "seconds_left": [60.0, 40.0, 80.0, 20.0], "side_by_side": [2, 2, 2, 1]}
    table = pd.DataFrame(training)
    assert seconds_by_the_clock(table) == 20 + processes.START + 100
    assert seconds_by_the_clock(table.drop(columns="side_by_side")) == 200
    assert seconds_by_the_clock(table.assign(seconds_left=0.5)) == 2, "too short to start processes for"
    assert seconds_by_the_clock(pd.DataFrame({"model": "a", "hours": [1.0, None]})) == 3600
