"""Every test works in a folder of its own: no cache, run or figure of the repository is read or written."""

import os
import subprocess
import sys
from pathlib import Path

# One thread per process: pytest-xdist and the gloo tests run several, and spinning threads would fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import filelock
import pytest


def pytest_collection_modifyitems(items):
    """Skip the tests marked ``gpu`` where there is no CUDA device."""
    if not any(item.get_closest_marker("gpu") for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True, scope="session")
def _own_folders(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IDSDS_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("IDSDS_CACHE", raising=False)
        patch.setenv("IDSDS_RECORD_CACHE", "0")  # what one test has computed is to be computed again by another
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """A file of untrained weights of mini_resnet8, for tests of the engine that need no trained model."""
    import torch

    from idsds.models import create_model
    from idsds.models.weights import save_checkpoint

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model("mini_resnet8")
    path = tmp_path_factory.mktemp("weights") / "mini_resnet8.safetensors"
    save_checkpoint(model, path)
    return path


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The documentation, built offline, once for all processes; a warning, as of a reference that leads nowhere, fails it."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder / "site")]
    root, built = Path(__file__).resolve().parents[1], folder / "site.built"
    with filelock.FileLock(folder / "site.lock"):
        if not built.is_file():
            environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(root)}
            done = subprocess.run(command, cwd=root, capture_output=True, text=True, env=environment, timeout=300)
            assert done.returncode == 0, done.stderr
            built.touch()
    return folder / "site"
