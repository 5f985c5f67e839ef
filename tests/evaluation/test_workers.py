"""Workers that would compute something else, or somewhere else, than the caller."""

import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
from unittest import mock

import cloudpickle
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import idsds
from idsds.common import hashing
from idsds.common.hashing import package_digest, versions
from idsds.evaluation import cluster, workers
from idsds.evaluation.evaluate import MissingRecordsError
from idsds.evaluation.workers import WorkerError, caller, differences


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 16, 4))


def given(**changes):
    images = torch.randn(6, 3, 8, 16, generator=torch.Generator().manual_seed(1))
    return {
        "models": {"net": net()},
        "methods": ["IxG"],
        "dataset": TensorDataset(images, torch.arange(6) % 4),
        "progress": False,
        **changes,
    }


@pytest.fixture(scope="module")
def client():
    from dask.distributed import Client

    with cluster.local(1) as made, Client(made, set_as_default=False) as client:
        yield client


@pytest.fixture
def changed(client):
    """Changes something in the worker, as long as a test lasts."""
    undo = []

    def change(place, name, value):
        def swap(value):
            module = sys.modules[place]
            old = getattr(module, name)
            setattr(module, name, value)
            return old

        client.run(__import__, place)
        undo.append((swap, next(iter(client.run(swap, value).values()))))

    yield change
    for swap, old in undo:
        client.run(swap, old)


def test_a_process_agrees_with_itself_and_leaves_nothing(tmp_path):
    with caller([tmp_path]) as expected:
        assert differences(expected) == []
        assert len(os.listdir(tmp_path)) == 1
    assert os.listdir(tmp_path) == []


def test_the_code_is_that_of_every_file(tmp_path, monkeypatch):
    """In a copy of the package with one more line."""
    shutil.copytree(hashing.PACKAGE, tmp_path / "idsds", ignore=shutil.ignore_patterns("__pycache__"))
    expected = package_digest()
    monkeypatch.setattr(hashing, "PACKAGE", tmp_path / "idsds")
    assert package_digest.__wrapped__() == expected
    with open(tmp_path / "idsds" / "methods" / "gradient.py", "a") as file:
        file.write("# one more line\n")
    assert package_digest.__wrapped__() != expected


def test_other_code_is_named_before_any_work(client, changed, tmp_path):
    changed("idsds.evaluation.workers", "package_digest", lambda: "another")
    with pytest.raises(WorkerError, match=r"1 of 1 workers cannot be used. worker tcp://.*its idsds source differs \(another, the caller"):
        idsds.evaluate(**given(), output=tmp_path / "run", scheduler=client)
    assert not list(tmp_path.rglob("*.parquet"))


def test_other_versions_are_named(client, changed, tmp_path):
    changed("idsds.evaluation.workers", "versions", lambda: {**versions(), "torch": "1.0"})
    with pytest.raises(WorkerError, match=r"it has torch 1\.0, the caller has 2"):
        idsds.evaluate(**given(), scheduler=client)  # also where nothing is kept


def test_a_worker_without_the_disk_is_named(client, changed, tmp_path):
    changed("idsds.evaluation.workers", "_is_there", lambda path, content: False)
    with pytest.raises(WorkerError, match=rf"does not see what the caller has written to '{tmp_path / 'run'}'.*shared disk"):
        idsds.evaluate(**given(), output=tmp_path / "run", scheduler=client)
    assert not list(tmp_path.rglob("*.parquet"))


def test_another_file_under_the_same_name_is_another_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.0)
    with caller([tmp_path]) as expected:
        (path,) = tmp_path.iterdir()
        path.write_text("other")
        assert "shared disk" in differences(expected)[0]
        path.unlink()
        assert "shared disk" in differences(expected)[0]


def test_a_worker_that_comes_later_compares_itself_before_it_reads_the_plan():
    with caller([]) as expected:
        content = pickle.dumps((workers.Caller("another", expected.versions, {}), b"no pickle at all"))
    with pytest.raises(WorkerError, match=rf"process {os.getpid()} on .* cannot be used: its idsds source differs"):
        cluster._opened(content)
    assert cloudpickle.loads(content)[1] == b"no pickle at all"


def test_records_that_a_worker_wrote_elsewhere_are_missed_by_name(client, changed, tmp_path):
    def lost(self, block, write=None):
        return cluster.replace(block, where=str(self.folder / "gone.parquet"))

    def patch():
        from idsds.evaluation.cache import Store

        Store.kept_write, Store.write = Store.write, lost

    def restore():
        from idsds.evaluation.cache import Store

        Store.write = Store.kept_write

    client.run(patch)
    try:
        with pytest.raises(
            MissingRecordsError, match=r"gone\.parquet' is missing, although worker tcp://.*\(process \d+ on .*has written it"
        ):
            idsds.evaluate(**given(), output=tmp_path / "run", scheduler=client)
    finally:
        client.run(restore)
    with pytest.raises(FileNotFoundError):
        idsds.load_records(tmp_path / "run")
    assert len(idsds.evaluate(**given(), output=tmp_path / "run", scheduler=client)) == 6


@pytest.mark.parametrize("guarded", [False, True])
def test_a_script_without_a_main_guard_is_told_so(tmp_path, monkeypatch, guarded):
    script = tmp_path / "script.py"
    script.write_text("cluster.local(1)\n" + 'if __name__ == "__main__":\n    pass\n' * guarded)
    monkeypatch.setattr(sys.modules["__main__"], "__file__", str(script), raising=False)
    if guarded:
        cluster.check_guard()
    else:
        with pytest.raises(RuntimeError, match=r'each worker imports .*script\.py.*`if __name__ == "__main__":`'):
            cluster.local(1)
    monkeypatch.setattr(multiprocessing.current_process(), "_inheriting", True, raising=False)  # a worker that imports the script
    with pytest.raises(RuntimeError, match="each worker imports"):
        cluster.local(1)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tls")
    make = "openssl req -x509 -newkey rsa:2048 -nodes -keyout key.pem -out cert.pem -days 2 -subj /CN=localhost"
    try:
        subprocess.run(make.split(), cwd=folder, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("there is no openssl here")
    return {"ca_file": str(folder / "cert.pem"), "cert": str(folder / "cert.pem"), "key": str(folder / "key.pem")}


def test_tls_reaches_the_jobs_of_slurm(certificate):
    with cluster.slurm({"tls": certificate}, submit=False) as made:
        script = made.job_script()
        assert made.scheduler_address.startswith("tls://")
    for wanted in ("tls://", f"--tls-ca-file {certificate['ca_file']}", f"--tls-key {certificate['key']}"):
        assert wanted in script
    with pytest.raises(ValueError, match="key is 'nowhere', which is not a file"):
        cluster.slurm({"tls": {**certificate, "key": "nowhere"}})
    with pytest.raises(idsds.common.registry.UnknownNameError, match="Did you mean 'cert'"):
        cluster.slurm({"tls": {"certs": "x"}})


def test_an_address_with_tls_takes_what_dask_is_told(certificate, tmp_path):
    """As the environment's DASK_DISTRIBUTED__COMM__TLS__CA_FILE and so on tell it."""
    import dask
    from dask.distributed import LocalCluster

    security = cluster._security(certificate)
    tls = {"ca-file": certificate["ca_file"], "client.cert": certificate["cert"], "client.key": certificate["key"]}
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "protocol": "tls://", "host": "127.0.0.1"}
    with (
        mock.patch.dict(os.environ),  # which a worker sets: here that of the test's own process
        LocalCluster(**options, security=security, dashboard_address=None) as made,
        dask.config.set({f"distributed.comm.tls.{key}": path for key, path in tls.items()}),
    ):
        assert made.scheduler_address.startswith("tls://")
        records = idsds.evaluate(**given(), output=tmp_path / "run", scheduler=made.scheduler_address)
    assert len(records) == 6


def test_images_are_read_by_spawned_processes(tmp_path):
    """As on Windows and macOS, where a process that reads images starts with nothing of its caller's."""
    script = tmp_path / "study.py"
    script.write_text(
        "import multiprocessing\n\nfrom torch import nn\n\nimport idsds\n\n"
        'if __name__ == "__main__":\n'
        '    multiprocessing.set_start_method("spawn")\n'
        "    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10))\n"
        '    given = {"protocol": "single_deletion", "images": 8, "device": "cpu", "batch_size": 4, "progress": False}\n'
        '    one, other = (idsds.evaluate({"net": net}, ["IxG"], "digits", workers=n, **given) for n in (0, 1))\n'
        '    print("equal" if one["score"].equals(other["score"]) and one["score"].notna().all() else "not equal")\n',
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "IDSDS_RECORD_CACHE": "0"}
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=100)
    assert done.stdout == "equal\n", done.stderr[-2000:]
