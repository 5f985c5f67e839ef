"""Every notebook has its params, its figure and its checks, and keeps the house's form. nbval runs them all, see `make test`."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml

from idsds.studies.base import STUDIES, study_class

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path for path in (ROOT / "notebooks").glob("*.ipynb") if path.stem != "index")
INSTALLED = """import importlib.util

if importlib.util.find_spec("idsds") is None:  # on Colab or Kaggle, with the wheel beside the notebook: docs/quickstart.md
    %pip install -q idsds-*.whl
"""
DRAWN = "figure = result.plot()\nfiles = result.save(figure)"
names = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
params = pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}")


def cells(path, kind="code"):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def name_of(path):
    return path.stem.title().replace("_", "")


def parameters(path):
    (cell,) = [cell for cell in cells(path) if "parameters" in cell.metadata.get("tags", [])]
    return cell.source.splitlines()


def notebook_of(stem):
    """The notebook that a params file is for: its own name, or what it begins with."""
    return max((path for path in NOTEBOOKS if stem == path.stem or stem.startswith(f"{path.stem}_")), key=lambda path: len(path.stem))


def stems_of(path, profile):
    """The params files of a notebook in a profile."""
    return [found.stem for found in (ROOT / "params" / profile).glob("*.yaml") if notebook_of(found.stem) == path]


def touched(given, folder):
    """Every file of weights that the params name, empty: a plan asks whether it is there, not what is in it."""
    for kind in ("checkpoints", "plain_checkpoints", "variant_checkpoints"):
        for name, start in given.get(kind, {}).items():
            if start != "pretrained":
                file = folder / f"{kind}_{name.replace(' ', '_')}.pth.tar"
                file.touch()
                given[kind][name] = str(file)


def test_there_are_notebooks():
    assert NOTEBOOKS


@names
def test_it_is_complete(path):
    assert path.stem in STUDIES
    stems = stems_of(path, "mnist5k")
    assert stems
    for profile in ("imagenet", "imagenette", "fashion_mnist"):
        assert sorted(stems) == sorted(stems_of(path, profile)), profile
    for stem in stems:
        for kind in ("png", "pdf", "csv", "md"):
            assert (ROOT / "figures" / "mnist5k" / f"{stem}.{kind}").is_file()
        assert f"]({stem}.png)" in (ROOT / "figures" / "mnist5k" / "README.md").read_text()


def test_the_index_is_what_the_facts_say(monkeypatch):
    from idsds.studies.index import index

    monkeypatch.setenv("IDSDS_HOME", str(ROOT))
    text = (ROOT / "notebooks" / "index.ipynb").read_text(encoding="utf-8")
    assert text == index(), "a heading, finding, time or params file has changed: python -m idsds index"
    for path in NOTEBOOKS:
        assert f"]({path.name})" in text
    assert "not made yet" not in text
    assert "not known yet" not in text
    for link in re.findall(r'src=\\"([^"\\]+)', text):
        assert (ROOT / "notebooks" / link).is_file(), link


@names
def test_it_keeps_the_form(path):
    code = cells(path)
    assert len(code) == 6
    assert code[1].source.startswith(INSTALLED)
    assert code[1].source.removeprefix(INSTALLED).splitlines()[2:] == [f"study = {name_of(path)}.from_notebook(globals())", "study.plan()"]
    assert [cell.source for cell in code[2:5]] == ["result = study.run()\nresult.table", DRAWN, "result.findings"]
    assert len(cells(path, "markdown")[0].source.splitlines()) <= 7
    assert sum(len(cell.source.splitlines()) for cell in [*code, *cells(path, "markdown")]) <= 94
    assert any(cell.source.count("assert ") for cell in code)
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert cells(path, "markdown")[0].source.startswith("# ")


@names
def test_it_says_what_it_costs_before_it_computes_and_can_stop_there(path):
    assert parameters(path)[-1] == "dry_run: bool = False  # say what it will cost, measured on a few batches, and stop"
    assert "study.plan()" in cells(path)[1].source


@names
def test_every_parameter_has_a_type_and_a_help(path):
    for line in parameters(path):
        assert re.fullmatch(r"\w+: \w+ = .+  # .+", line), line


@names
def test_its_defaults_are_settings(path, tmp_path):
    namespace: dict = {}
    exec("\n".join(parameters(path)), namespace)
    given = {key: value for key, value in namespace.items() if not key.startswith("__")}
    study_class(path.stem)(**{**given, "output": str(tmp_path)})


@params
def test_its_params_are_settings_and_parameters(path, tmp_path):
    known = {re.match(r"\w+", line)[0] for line in parameters(notebook_of(path.stem))}
    given = yaml.safe_load(path.read_text())
    assert set(given) <= known
    assert given["output"] == f"runs/{path.parent.name}/{path.stem}"
    touched(given, tmp_path)
    study_class(notebook_of(path.stem).stem)(**{**given, "output": str(tmp_path)})


@pytest.mark.parametrize("name", ["rank_methods", "infidelity_sensitivity", "how_infidelity_works"])
def test_a_dry_run_ends_before_anything_is_trained_or_drawn(name, tmp_path, monkeypatch):
    import papermill

    monkeypatch.setenv("IDSDS_HOME", str(tmp_path))
    executed = papermill.execute_notebook(
        ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "out.ipynb", parameters={"dry_run": True, "device": "cpu"}, progress_bar=False
    )
    printed = "".join(output.get("text", "") for cell in executed.cells for output in cell.get("outputs", []))
    assert re.search(r"In all: [1-9][\d,]* forward and [1-9][\d,]* backward passes", printed)
    assert re.search(r"[1-9]\d* training stage\(s\) that are not cached", printed)
    assert "nothing was computed" in printed
    assert not (tmp_path / "figures").exists()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_wrong_key_in_a_params_file_ends_the_notebook_before_any_training(tmp_path, monkeypatch):
    import papermill

    monkeypatch.setenv("IDSDS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "wrong.yaml").write_text("imags: 5\n")
    with pytest.raises(papermill.PapermillExecutionError, match=r"unknown key 'imags'\. Did you mean 'images'"):
        papermill.execute_notebook(
            ROOT / "notebooks" / "rank_methods.ipynb",
            tmp_path / "out.ipynb",
            parameters=yaml.safe_load((tmp_path / "wrong.yaml").read_text()),
            progress_bar=False,
        )
    assert not (tmp_path / "cache").exists()
