import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import idsds
from idsds.common.files import sha256_of
from idsds.common.registry import UnknownNameError
from idsds.evaluation import cluster, job
from idsds.evaluation.arguments import Arguments, make_plan

METHODS = ["IxG", "IxG-SG", "Random"]


@pytest.fixture(scope="module")
def two_workers():
    with cluster.local(2) as workers:
        yield workers


def same(first, second):
    assert first[["model", "method", "seed", "image_id"]].equals(second[["model", "method", "seed", "image_id"]])
    for column in ("score", "prediction", "target"):
        np.testing.assert_array_equal(first[column], second[column])
    for column in ("drops", "patch_sums"):
        np.testing.assert_allclose(np.stack(first[column]), np.stack(second[column]), atol=1e-5, rtol=0)  # a worker has other threads


class Slow(nn.Module):
    """Logits that are linear in the image, given at leisure, so that a worker can be killed in the middle."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.seconds, self.fc = seconds, nn.Linear(3 * 8 * 16, 4)
        with torch.no_grad():
            self.fc.weight.copy_(torch.linspace(-1, 1, self.fc.weight.numel()).sin().view_as(self.fc.weight))

    def forward(self, images):
        time.sleep(self.seconds)
        return self.fc(images.flatten(1))


def own_data():
    return TensorDataset(torch.randn(24, 3, 8, 16, generator=torch.Generator().manual_seed(1)), torch.arange(24) % 4)


def test_the_package_needs_no_dask():
    code = "import sys; sys.modules['dask'] = None; import idsds; import idsds.evaluation.cluster; assert 'distributed' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_environment_names_a_scheduler_for_runs_that_are_kept(monkeypatch, tmp_path):
    asked = []

    def connected(scheduler):
        asked.append(scheduler)
        raise ConnectionRefusedError(scheduler)

    monkeypatch.setattr(cluster, "connected", connected)
    monkeypatch.setenv("IDSDS_SCHEDULER", "tcp://scheduler:8786")
    given = {"models": {"net": Slow()}, "methods": ["IxG"], "dataset": own_data(), "images": 2, "progress": False}
    with pytest.raises(ConnectionRefusedError):
        idsds.evaluate(**given, output=tmp_path / "run")
    assert asked == ["tcp://scheduler:8786"]
    assert len(idsds.evaluate(**given)) == 2  # not kept: computed here
    assert len(asked) == 1


def test_a_worker_killed_in_the_middle_changes_no_record(two_workers, tmp_path):
    arguments = {"methods": METHODS, "dataset": own_data(), "images": 24, "shard": 3, "progress": False}
    expected = idsds.evaluate({"net": Slow()}, **arguments)
    from dask.distributed import Client

    with Client(two_workers, set_as_default=False) as client:
        before = client.run(os.getpid)
        output = tmp_path / "r"
        killed = []

        def kill():
            while not list(output.glob("blocks/*/*.parquet")):
                time.sleep(0.02)
            killed.append(next(iter(before.values())))
            os.kill(killed[0], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        found = idsds.evaluate({"net": Slow(0.05)}, **arguments, output=output, scheduler=client)
        killer.join()
        assert killed
        same(expected, found)
        same(expected, idsds.load_records(output))
        client.wait_for_workers(2, timeout=120)
        assert set(client.run(os.getpid).values()) != set(before.values())  # it was killed, and the nanny started another


def test_nothing_of_a_local_cluster_listens_to_the_network(two_workers):
    scheduler = two_workers.scheduler
    servers = [scheduler.http_server, *(server for listener in scheduler.listeners for server in [listener.tcp_server])]
    addresses = {sock.getsockname()[0] for server in servers for sock in server._sockets.values()}
    assert addresses == {"127.0.0.1"}
    assert all(worker.host == "127.0.0.1" for worker in scheduler.workers.values())


def test_missing_checkpoints_are_trained_once_on_a_worker(two_workers, tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path / "cache"))
    arguments = {"models": ["mini_resnet8"], "methods": METHODS, "dataset": "digits", "images": 16, "shard": 4, "progress": False}
    found = idsds.evaluate(**arguments, scheduler=two_workers.scheduler_address)  # no output: frames come back
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache" / "checkpoints").glob("*.safetensors")}
    assert len(files) == 2  # trained, then fine-tuned in-domain
    same(idsds.evaluate(**arguments), found)
    assert files == {path: path.stat().st_mtime_ns for path in files}


def test_a_checkpoint_trained_again_on_a_worker_may_be_another(monkeypatch, tmp_path):
    def obtain(stage, **_):
        stage.path.parent.mkdir(parents=True)
        stage.path.write_bytes(b"weights of another machine")

    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path / "cache"))
    for module in (cluster, job):
        monkeypatch.setattr(module, "obtain", obtain)
    plan = make_plan(Arguments(["mini_resnet8"], ["IxG"], "digits", images=4))
    plan = replace(plan, jobs=tuple(replace(one, weights="0" * 64) for one in plan.jobs))  # known to a run whose checkpoint is gone
    monkeypatch.setattr(cluster, "_opened", lambda content: plan)
    cluster._train(b"", 0)
    assert plan.with_weights().jobs[0].weights == sha256_of(plan.jobs[0].source.path)


def test_methods_of_the_user_travel_and_their_errors_come_back(two_workers):
    def broken(images, targets):
        raise RuntimeError("out of ideas")

    with pytest.raises(RuntimeError, match="out of ideas"):
        idsds.evaluate({"net": Slow()}, {"broken": broken}, own_data(), images=2, progress=False, scheduler=two_workers)


def test_a_scheduler_that_is_none_is_named():
    with pytest.raises(TypeError, match=r"an address, a dask\.distributed\.Client or a cluster, not int"):
        idsds.evaluate({"net": Slow()}, ["IxG"], own_data(), images=2, progress=False, scheduler=3)


def test_slurm_jobs_are_what_the_params_say(tmp_path):
    with cluster.slurm({"queue": "gpu", "cores": 8, "memory": "32GB", "gpus": 1, "workers": 1}, submit=False) as made:
        script = made.job_script()
    for wanted in ("-p gpu", "--cpus-per-task=8", "--mem=30G", "--gres=gpu:1", "OMP_NUM_THREADS=8", "--nthreads 1", "--resources GPU=1"):
        assert wanted in script


def test_the_params_file_of_the_repository_is_valid():
    with cluster.slurm(Path(__file__).resolve().parents[2] / "params" / "cluster.yaml", submit=False) as made:
        assert "#SBATCH -t 08:00:00" in made.job_script()


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"wall_time": "1:00"}, UnknownNameError, "Did you mean 'walltime'"),
        ({"gpus": 4}, ValueError, "gpus must be 0 or 1, not 4"),
        ({"workers": 0}, ValueError, "workers must be a whole number of at least 1, not 0"),
    ],
)
def test_bad_params_are_named(params, error, message):
    with pytest.raises(error, match=message):
        cluster.slurm(params)
