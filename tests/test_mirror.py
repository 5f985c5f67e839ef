"""Tests mirror the package: a module's tests are in the file of its name, or this table names the file that reaches it."""

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "idsds"
MODULES = sorted(str(path.relative_to(PACKAGE)) for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")

#: Tests of the whole house and of what stands around the package; all others bear the name of a module.
HOUSE = {
    "test_docs.py",
    "test_environment.py",
    "test_families.py",  # benchmarks/families.py, and the page that it writes
    "test_gpu.py",
    "test_imports.py",
    "test_mirror.py",
    "test_parity.py",  # with the reference's own code
    "test_torture.py",
    "browser/test_lab.py",
    "browser/test_pages.py",
    "notebooks/test_imagenet.py",
    "notebooks/test_notebooks.py",
}
#: The file that covers a module without tests of its own, which imports it or what calls it.
ELSEWHERE = {
    "__main__.py": "studies/test_report.py",  # each command in the tests of what it runs
    "evaluation/folder.py": "evaluation/test_cache.py",  # as are the following: the engine's parts are tested by what evaluate does
    "evaluation/result.py": "evaluation/test_evaluate.py",
    "evaluation/run.py": "evaluation/test_evaluate.py",
    "models/densenet.py": "models/test_base.py",  # every entry of the registry
    "models/efficientnet.py": "models/test_base.py",
    "plots/accuracy_tradeoff.py": "studies/test_accuracy_tradeoff.py",  # drawn by the study, as are the following
    "plots/datasets.py": "studies/test_datasets.py",
    "plots/finetune.py": "studies/test_finetune.py",
    "plots/score_vs_metrics.py": "studies/test_score_vs_metrics.py",
    "plots/train_fractions.py": "studies/test_train_fractions.py",
    "studies/index.py": "notebooks/test_notebooks.py",
}


def file_of(module):
    """The file of a module's tests, relative to ``tests``."""
    path = Path(module)
    return str(path.with_name(f"test_{path.name}"))


def named(path):
    """The modules and names of the package that a file imports, as ``idsds.room.module``; of ``plots`` what it takes from there."""
    tree, found = ast.parse(path.read_text(encoding="utf-8")), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "plots":
            found.add(f"idsds.plots.{node.attr}")
    return {name for name in found if name.startswith("idsds.")}


def reached(test):
    """The modules that a test imports, and those that these import in turn."""
    first = named(TESTS / test)
    files = [PACKAGE.parent / name.replace(".", "/") for name in first]
    files = [found for path in files for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()]
    return first.union(*(named(file) for file in files))


@pytest.mark.parametrize("module", MODULES)
def test_a_module_has_tests_of_its_name_or_is_in_the_table(module):
    own = (TESTS / file_of(module)).is_file()
    assert own != (module in ELSEWHERE), f"tests/{file_of(module)}"
    if not own:
        assert f"idsds.{module.removesuffix('.py').replace('/', '.')}" in reached(ELSEWHERE[module])


def test_every_file_of_tests_has_its_module():
    files = {str(path.relative_to(TESTS)) for path in TESTS.rglob("test_*.py")}
    packages = {file_of(f"{path.relative_to(PACKAGE)}.py") for path in PACKAGE.rglob("*") if (path / "__init__.py").is_file()}
    assert files - packages - set(map(file_of, MODULES)) == HOUSE
    assert set(ELSEWHERE) <= set(MODULES), "of a module that is gone"


def test_two_steps_of_imports_are_followed(tmp_path, monkeypatch):
    package = tmp_path / "idsds"
    (package / "plots").mkdir(parents=True)
    (tmp_path / "test_x.py").write_text("from idsds.x import f\n")
    (package / "x.py").write_text("from idsds import plots\nfrom idsds import y\nplots.z(1)\n")
    (package / "y.py").write_text("import idsds.far\n")
    monkeypatch.setitem(globals(), "PACKAGE", package)
    monkeypatch.setitem(globals(), "TESTS", tmp_path)
    assert reached("test_x.py") == {"idsds.x", "idsds.x.f", "idsds.y", "idsds.plots", "idsds.plots.z"}
