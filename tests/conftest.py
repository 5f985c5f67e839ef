"""Every test works in a folder of its own: no cache, run or figure of the repository is read or written."""

import os

# One thread per process: pytest-xdist and the gloo tests run several, and spinning threads would fight for the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

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
