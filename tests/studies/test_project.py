"""A wheel, installed away from the checkout, and a folder filled from it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from idsds.common import paths
from idsds.common.settings import SettingsError
from idsds.studies.project import init, project_files
from idsds.studies.reproduce import runs_of

ROOT = Path(__file__).resolve().parents[2]
RANKED = {"methods": '["IxG", "Random"]', "images": "6", "protocol": "single_deletion", "seeds": "[0]", "models": '["mini_resnet8"]'}


def test_init_copies_completes_and_never_overwrites(tmp_path):
    folder = tmp_path / "a study"
    assert "papermill notebooks/rank_methods.ipynb" in init(folder)
    index, ranking = folder / "notebooks" / "index.ipynb", folder / "notebooks" / "rank_methods.ipynb"
    assert index.read_bytes() == (ROOT / "notebooks" / "index.ipynb").read_bytes()
    assert (folder / "params" / "mnist5k" / "rank_methods.yaml").is_file()
    index.unlink()
    init(folder)  # again: it brings back what is missing
    assert index.is_file()
    index.unlink()
    ranking.write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"not overwritten: notebooks.rank_methods\.ipynb\. "):
        init(folder)
    assert ranking.read_text(encoding="utf-8") == "mine"
    assert not index.exists(), "nothing is written"
    (tmp_path / "a file").touch()
    with pytest.raises(NotADirectoryError, match="a file"):
        init(tmp_path / "a file" / "below")


def test_every_file_that_a_notebook_or_the_index_needs_is_among_them():
    names = {name.as_posix() for name in project_files()}
    stems = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} - {"index"}
    for stem in stems:
        assert f"notebooks/{stem}.ipynb" in names
        assert any(name.startswith(f"figures/mnist5k/{stem}") and name.endswith(".png") for name in names)
    assert {path.relative_to(ROOT).as_posix() for path in ROOT.glob("params/**/*.yaml")} <= names
    assert "docs/bring-your-own.md" in names


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder of an installed wheel, built offline from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("idsds", "notebooks", "params", "docs", "figures"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.pdf", "photos", "smoke"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)], check=True, cwd=folder)
    (wheel,) = folder.glob("idsds-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(folder / "site"), str(wheel)], check=True, cwd=folder)
    shutil.rmtree(source)
    return folder / "site"


def test_an_installed_wheel_fills_a_folder_and_works_there(installed, tmp_path, checkpoint):
    own = {"PYTHONPATH": str(installed), "IDSDS_CACHE": str(tmp_path / "cache")}
    environment = {name: value for name, value in os.environ.items() if name != "IDSDS_HOME"} | own

    def run(*command, cwd, **options):
        return subprocess.run(
            [sys.executable, "-m", *command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, **options
        )

    run("idsds", "init", "study", cwd=tmp_path, check=True)
    study = tmp_path / "study"
    assert len(list((study / "notebooks").glob("*.ipynb"))) == len(list((ROOT / "notebooks").glob("*.ipynb")))
    given = {**RANKED, "output": "runs/mine/rank_methods", "checkpoints": f"{{mini_resnet8: {checkpoint}}}"}
    params = study / "params" / "mine" / "rank_methods.yaml"
    params.parent.mkdir()
    params.write_text("".join(f"{name}: {value}\n" for name, value in given.items()), encoding="utf-8")
    done = run("idsds", "reproduce", "mine", cwd=study)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "1 of 1 runs are there" in done.stdout
    assert (study / "figures" / "mine" / "rank_methods.png").is_file()
    assert "![" in (study / "figures" / "mine" / "README.md").read_text(encoding="utf-8")
    assert "IxG" in (study / "runs" / "mine" / "report.html").read_text(encoding="utf-8")
    told = run("idsds", "report", "runs/mine/rank_methods", "--output", "mine.html", cwd=study, check=True)
    assert Path(told.stdout.strip()) == study.resolve() / "mine.html"
    assert (study / "mine.html").is_file()
    assert str(study) not in (study / "params" / "mnist5k" / "rank_methods.yaml").read_text(encoding="utf-8")
    where = "import os; os.chdir('notebooks'); import idsds.common.paths as paths; print(paths.__file__); print(paths.root())"
    place, root = subprocess.run(
        [sys.executable, "-c", where], cwd=study, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert Path(place).is_relative_to(installed)
    assert Path(root) == study.resolve()


def test_without_params_the_command_says_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_HOME", str(tmp_path))
    with pytest.raises(SettingsError, match="python -m idsds init FOLDER"):
        runs_of("mnist5k")


def test_root_is_the_nearest_folder_that_init_has_filled(tmp_path, monkeypatch):
    monkeypatch.delenv("IDSDS_HOME")
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site" / "idsds" / "common" / "paths.py"))
    (tmp_path / "study" / "notebooks").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "study" / "notebooks")
    assert paths.root() == tmp_path / "study" / "notebooks"
    (tmp_path / "study" / paths.MARK).touch()
    assert paths.root() == tmp_path / "study"
