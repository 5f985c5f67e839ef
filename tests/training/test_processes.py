"""Nets that are trained side by side are those that are trained alone, and what goes wrong in one is said of it."""

import copyreg
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

import idsds
from idsds.common.files import DamagedFileError
from idsds.common.processes import check_guard
from idsds.common.progress import Progress
from idsds.common.registry import UnknownNameError
from idsds.common.switches import switches
from idsds.datasets import DATASETS
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
    monkeypatch.setattr(processes, "switches", lambda: (switches()[0], [], []))  # whatever other tests left replaced
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
    # The one that fails begins when nothing else can: after both stages of one net, or three stages.
    assert re.search("[234] of 5 done", capsys.readouterr().err)
    found = {one.key: one.content for stage in stages[:2] for one in (stage.start, stage) if one.intact}
    assert len(found) >= 2, "what was finished is kept"
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
    script = tmp_path / "script.py"
    script.write_text("import idsds\n", encoding="utf-8")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    assert processes.processes() == 1, "each process would run the script again"
    for wrong in ("0", "two", "-1"):
        monkeypatch.setenv("IDSDS_PROCESSES", wrong)
        with pytest.raises(ValueError, match=f"IDSDS_PROCESSES must be a whole number of at least 1, not '{wrong}'"):
            processes.processes()


def user_net(num_classes):
    return MODELS["mini_resnet8"].build(num_classes)


def user_images(split, normalisation, **options):
    return DATASETS["digits"].load(split, normalisation, **options)


@pytest.mark.parametrize("wrap", [lambda own: own, partial, lambda own: lambda *given, **options: own(*given, **options)])
@pytest.mark.parametrize(
    ("registry", "name", "field", "own"), [(MODELS, "mini_resnet8", "build", user_net), (DATASETS, "digits", "load", user_images)]
)
def test_a_users_net_or_data_set_is_trained_alone(monkeypatch, registry, name, field, own, wrap):
    """Its module may hold other values in another process."""
    monkeypatch.setenv("IDSDS_PROCESSES", "4")
    stage, made = nets()[0], registry[name]
    assert processes.processes_of(stage) == 4
    monkeypatch.setitem(registry._entries, name, replace(made, **{field: wrap(own)}))
    assert processes.processes_of(stage) == 1
    monkeypatch.setitem(registry._entries, name, replace(made, training={"epochs": 2}))
    assert processes.processes_of(stage) == 4, "the package's own, with other settings"
    *_, net, data = pickle.loads(processes._packed(stage))
    assert {"build": net["training"], "load": data.training}[field] == {"epochs": 2}


def test_a_library_net_is_trained_side_by_side():
    entry = MODELS[name := "torchvision/squeezenet1_1"]
    _, net, _ = pickle.loads(processes._packed(replace(nets()[0], model=name)))
    assert {**net, "build": None} == {**vars(entry), "build": None}
    assert vars(net["build"]) == vars(entry.build)


def test_a_worker_that_imports_the_script_is_refused_before_it_waits(monkeypatch, tmp_path):
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)
    for begin in (check_guard, lambda: processes.train([]), lambda: idsds.evaluate(["none"], ["none"], output=tmp_path / "run")):
        with pytest.raises(RuntimeError, match=r'each worker imports .*`if __name__ == "__main__":`'):
            begin()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (ValueError("as it is"), ValueError),
        (UnknownNameError("model", "x", ["y"]), RuntimeError),
        (type("Local", (Exception,), {})("no one knows it"), RuntimeError),
    ],
)
def test_an_error_of_a_worker_can_be_read_by_its_caller(monkeypatch, error, found):
    def fails(*given, **options):
        raise error

    monkeypatch.delitem(copyreg.dispatch_table, type(error), raising=False)  # tblib's, which Dask loads in the tests of clusters
    monkeypatch.setattr(processes, "obtain", fails)
    monkeypatch.setattr(Progress, "sink", None)  # which a worker sets for good
    stage = nets()[0]
    with pytest.raises(found) as caught:
        processes._train(0, processes._packed(stage), Machine(), repr(switches()[0]))
    assert str(error) in str(pickle.loads(pickle.dumps(caught.value)))


def test_the_memory_of_a_container_limits_how_many(monkeypatch, tmp_path):
    monkeypatch.delenv("IDSDS_PROCESSES", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(processes, "LIMIT", limit := tmp_path / "memory.max")
    for text, count in (("max\n", 2), ("8000000000\n", 2), ("2000000000\n", 1), ("1000\n", 1)):
        limit.write_text(text, encoding="ascii")
        assert processes.processes() == count


def test_the_trial_step_takes_nets_that_write_in_place(monkeypatch):
    stage = nets()[0]
    monkeypatch.setattr(processes, "create_model", lambda *_: InPlace())
    assert processes._seconds({stage.key: stage})[stage.key] > 0


class InPlace(torch.nn.Module):
    def forward(self, images):
        return images.sub_(0.5).mean((2, 3)).requires_grad_()
