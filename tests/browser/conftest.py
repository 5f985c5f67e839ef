"""Chromium, driven by playwright, and a JupyterLab on a small tree; skipped with a reason where one of them is not there."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "runs" / "browser"
SMALL = {
    "rank_methods": 'methods: list = ["IxG", "IG", "Random"]\nimages: int = 8\n',
    "gallery": 'models: list = ["mini_resnet8"]\nmethods: list = ["IxG", "IG"]\nimages: int = 2\n',
    "how_idsds_works": 'methods: list = ["IxG"]\nimages: int = 1\n',
}

#: A cell of outputs that are longer or wider than they should be shown.
LONG = """from matplotlib import pyplot
from idsds.studies.result import Findings
print("\\n".join(f"step {number}" for number in range(300)))
pyplot.subplots(figsize=(30, 1))
Findings(["A long sentence. " * 2000])"""


def absent(reason):
    """Skip, or fail where a browser is asked for, as continuous integration does."""
    (pytest.fail if os.environ.get("IDSDS_REQUIRE_BROWSER") else pytest.skip)(reason)


@pytest.fixture(scope="session")
def browser():
    """Chromium by ``IDSDS_CHROMIUM``, or from PATH."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        absent("playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    path = os.environ.get("IDSDS_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        absent("no chromium on PATH: name one with IDSDS_CHROMIUM")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser):
    """A page of 1280 x 800 pixels, twice as dense."""
    context = browser.new_context(viewport={"width": 1280, "height": 800}, device_scale_factor=2)
    yield context.new_page()
    context.close()


@pytest.fixture
def picture(page):
    """Keep what a page shows under ``runs/browser``."""

    def keep(name, **options):
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / f"{name}.png", **options)

    return keep


@pytest.fixture(scope="session")
def tree(tmp_path_factory):
    """The notebooks with small parameters, and the figures that the index shows."""
    folder = tmp_path_factory.mktemp("tree")
    (folder / "notebooks").mkdir()
    (folder / "figures" / "mnist5k").mkdir(parents=True)
    for path in (ROOT / "figures" / "mnist5k").glob("*.png"):
        shutil.copy(path, folder / "figures" / "mnist5k")
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        if path.stem in SMALL:
            cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
            cell.source += "\n" + SMALL[path.stem]
        if path.stem == "gallery":
            notebook.cells.append(nbformat.v4.new_code_cell(LONG))
        nbformat.write(notebook, folder / "notebooks" / path.name)
    view = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell('import idsds\n\nidsds.explore("runs/smoke/rank_methods")')])
    view.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(view, folder / "notebooks" / "view.ipynb")
    return folder


@pytest.fixture(scope="session")
def lab(tree):
    """The address of a JupyterLab that serves the tree."""
    pytest.importorskip("jupyterlab")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"ServerApp.token": "", "ServerApp.root_dir": tree, "ServerApp.port": port, "LabApp.expose_app_in_browser": True}
    options |= {"ServerApp.open_browser": False, "ServerApp.allow_root": True, "LabApp.news_url": "None"}
    command = [sys.executable, "-m", "jupyterlab", *(f"--{name}={value}" for name, value in options.items())]
    own = {"IDSDS_HOME": str(tree), "OMP_NUM_THREADS": "1", "JUPYTER_CONFIG_DIR": str(tree / "config"), "PYTHONPATH": str(ROOT)}
    with open(tree / "lab.log", "w") as log:
        server = subprocess.Popen(command, env={**os.environ, **own}, stdout=log, stderr=log, cwd=tree)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(240):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{address}/api/status", timeout=2)
                break
            assert server.poll() is None, (tree / "lab.log").read_text()
            time.sleep(0.5)
        yield address
    finally:
        server.terminate()
        server.wait(30)
