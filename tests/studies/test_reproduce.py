"""The order, resumption and overview of a profile's runs, on a small tree of its own."""

from pathlib import Path

import nbformat
import pytest

from idsds.common.registry import UnknownNameError
from idsds.studies import reproduce as rp
from idsds.studies.base import STUDIES


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setenv("IDSDS_HOME", str(tmp_path))
    for name in ("rank_methods", "design", "design_choice"):
        cells = [nbformat.v4.new_markdown_cell(f"# About {name}\n\nMore."), nbformat.v4.new_code_cell("x: int = 1  # a number")]
        cells[1].metadata["tags"] = ["parameters"]
        cells.append(nbformat.v4.new_code_cell("assert x < 5, 'too large'"))
        notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        (tmp_path / "notebooks").mkdir(exist_ok=True)
        nbformat.write(notebook, tmp_path / "notebooks" / f"{name}.ipynb")
    (tmp_path / "params" / "p").mkdir(parents=True)
    for stem in ("design_choice_depth", "rank_methods", "design"):
        (tmp_path / "params" / "p" / f"{stem}.yaml").write_text("x: 2\n")
    return tmp_path


def leave_figure(run):
    run.figures.parent.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "pdf", "csv"):
        run.figures.with_suffix(f".{kind}").write_bytes(b"")


def test_every_stem_finds_the_longest_notebook_and_its_place_in_the_order(tree):
    runs = rp.runs_of("p")
    assert [(run.stem, run.notebook.stem) for run in runs] == [
        ("rank_methods", "rank_methods"),
        ("design_choice_depth", "design_choice"),
        ("design", "design"),  # the order does not know it
    ]
    assert runs[1].title == "About design_choice: depth"
    assert [run.stem for run in rp.runs_of("p", ["design"])] == ["design"]


def test_unknown_names_are_refused_with_the_nearest(tree):
    with pytest.raises(UnknownNameError, match="profile 'pp'"):
        rp.runs_of("pp")
    with pytest.raises(UnknownNameError, match="Did you mean 'design'"):
        rp.runs_of("p", ["desing"])
    (tree / "params" / "p" / "nothing.yaml").write_text("x: 1\n")
    with pytest.raises(UnknownNameError, match="notebook 'nothing'"):
        rp.runs_of("p")


def test_a_run_is_executed_kept_and_not_repeated_until_something_changes(tree, capsys):
    (run,) = rp.runs_of("p", ["design"])
    assert rp.reproduce([run]) == {}
    leave_figure(run)
    executed = nbformat.read(run.executed, as_version=4)
    assert [cell.execution_count for cell in executed.cells if cell.cell_type == "code"] == [
        1,
        2,
        3,
    ]  # the second is what papermill injected
    assert run.is_done
    took = rp.minutes_of("p")["design"]
    rp._note_minutes(run, took - 1)
    assert rp.minutes_of("p") == {"design": took}, "what is cached takes less"
    rp._note_minutes(run, took + 1)
    assert rp.minutes_of("p") == {"design": round(took + 1, 1)}
    calls = []
    assert rp.reproduce([run], calls.append) == {}
    assert not calls
    assert rp.reproduce([run], calls.append, again=True) == {}
    assert calls == [run]
    run.params.write_text("x: 3\n")
    assert not run.is_done
    run.executed.write_text("{")  # as a kill might leave it
    assert not run.is_done


def test_a_run_that_fails_is_named_is_not_done_and_does_not_keep_others_from_being_made(tree, capsys):
    (tree / "params" / "p" / "design.yaml").write_text("x: 9\n")
    runs = rp.runs_of("p")
    failures = rp.reproduce(runs)
    leave_figure(runs[2])
    assert set(failures) == {"design"}
    assert "too large" in failures["design"]
    assert not runs[2].is_done
    assert runs[1].executed.is_file()
    assert rp.run_profile("p", ["design"]) == 1


def test_the_overview_shows_every_figure_with_its_finding_and_tables(tree):
    runs = rp.runs_of("p")
    for run in runs:
        leave_figure(run)
    folder = tree / "figures" / "p"
    (folder / "design.md").write_text("It holds for 3 of 4.\n")
    (folder / "design_2.png").write_bytes(b"")
    (folder / "design_more.csv").write_bytes(b"")
    text = rp.page(runs)
    part = text.split("## About design\n")[1].split("## ")[0]
    assert "It holds for 3 of 4." in part
    assert "(design_2.png)" in part
    assert "(design_more.csv)" in part
    assert "design_choice_depth" not in part
    assert "[design_choice.ipynb](../../notebooks/design_choice.ipynb) with [design_choice_depth.yaml]" in text


def test_the_order_knows_every_notebook():
    notebooks = {path.stem for path in (Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb")} - {"index"}
    assert set(STUDIES) == notebooks
    assert len(STUDIES) == len(notebooks)


def test_a_dry_run_says_what_it_costs_and_leaves_everything_as_it_is(tree, capsys):
    cells = [nbformat.v4.new_code_cell("dry_run: bool = False  # stop after the cost"), nbformat.v4.new_code_cell(COST)]
    cells[0].metadata["tags"] = ["parameters"]
    cells.append(nbformat.v4.new_code_cell("open('computed', 'w').close()"))
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tree / "notebooks" / "design.ipynb")
    (tree / "params" / "p" / "design.yaml").write_text("dry_run: false\n")
    assert rp.run_profile("p", ["design"], dry_run=True) == 0
    printed = capsys.readouterr().out
    assert "In all: 30 forward and 3 backward passes, about 2.0 minutes left." in printed
    assert "nothing was computed" in printed
    (run,) = rp.runs_of("p", ["design"])
    assert not run.executed.exists()
    assert not (tree / "computed").exists()
    assert not (tree / "figures").exists()
    assert rp.reproduce([run]) == {}, "and without it the notebook goes on"
    assert (tree / "computed").exists()


COST = """
import pandas as pd
from IPython.display import display
from idsds.studies.base import Plan
display(Plan(pd.DataFrame({"model": ["a", "a"], "forward": [10, 20], "backward": [1, 2], "seconds_left": [60.0, 60.0]})))
if dry_run:
    print("A dry run: nothing was computed.")
    raise SystemExit(0)
"""


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("key", ["x = open('ran', 'w'); y", "unknown"])
def test_a_key_that_is_no_setting_never_reaches_the_notebook(tree, capsys, key, dry_run):
    (tree / "params" / "p" / "design.yaml").write_text(f"{key!r}: 1\n" if "'" not in key else f'"{key}": 1\n')
    assert rp.run_profile("p", ["design"], dry_run=dry_run) == 1
    assert "design failed: SettingsError" in capsys.readouterr().err
    assert not (tree / "ran").exists()
    assert not list((tree / "runs").rglob("*.ipynb"))


def test_a_run_depends_on_its_study_and_not_on_others(monkeypatch):
    from idsds.common import hashing

    def digests():
        hashing.study_digest.cache_clear()
        return {name: hashing.study_digest(name) for name in ("stability", "sanity_checks", "index")}

    before, code = digests(), hashing._code
    monkeypatch.setattr(hashing, "_code", lambda module: code(module) + "pass\n" * (module == "idsds.studies.stability"))
    after = digests()
    assert [name for name in before if before[name] != after[name]] == ["stability"]
    monkeypatch.setattr(hashing, "_code", lambda module: code(module) + "pass\n" * (module == "idsds.methods.cam"))
    assert all(before[name] != digest for name, digest in digests().items())
    hashing.study_digest.cache_clear()
