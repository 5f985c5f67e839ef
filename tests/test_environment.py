"""What the files around the package promise."""

import ast
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_environment_yml_agrees_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [d for d in environment["dependencies"] if isinstance(d, str)]
    (pip,) = [d["pip"] for d in environment["dependencies"] if isinstance(d, dict)]
    assert f"python{PROJECT['requires-python']}" in conda
    assert "pip" in conda
    assert pip == ["-e .[dev]"]  # everything else comes from pyproject.toml
    assert environment["name"] == PROJECT["name"]


def test_what_the_environment_installs_by_pip_is_declared():
    """The extra of environment.yml is there, every extra that it names too, and the requirements are ones that pip can read."""
    extras = PROJECT["optional-dependencies"]
    waiting, requirements = ["dev"], list(PROJECT["dependencies"])
    while waiting:
        for requirement in map(Requirement, extras[waiting.pop()]):
            waiting += requirement.extras if requirement.name == PROJECT["name"] else []
            requirements += [] if requirement.name == PROJECT["name"] else [str(requirement)]
    names = [Requirement(requirement).name for requirement in requirements]
    assert {"torch", "papermill", "jupyterlab", "pytest"} <= set(names)
    for name in names:
        assert importlib.metadata.version(name), name


def test_every_file_is_read_and_written_as_utf_8():
    """Elsewhere, on Windows, the default is another."""
    for path in (ROOT / "idsds").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_bytes())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                mode = ast.unparse(node.args[1]) if name == "open" and len(node.args) > 1 else ""
                if name in ("read_text", "write_text") or (mode and "b" not in mode and mode.strip("'") in ("r", "w", "a", "x")):
                    assert "encoding" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"


def test_make_help_lists_every_target():
    text = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", text, re.M)[1].split())
    shown = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert targets == set(re.findall(r"^make (\w+)", shown, re.M))


def test_ci_calls_make_test():
    assert "make test" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("name", ["LICENSE", "README.md", "CHANGELOG.md", "CITATION.cff"])
def test_the_file_is_there_and_names_the_version_or_licence(name):
    text = (ROOT / name).read_text()
    wanted = {"LICENSE": "Apache License", "README.md": "idsds", "CHANGELOG.md": PROJECT["version"], "CITATION.cff": PROJECT["version"]}
    assert wanted[name] in text


def test_no_tracked_file_has_a_path_of_a_machine():
    # Put together here, so that this file does not find itself.
    places = "|".join(["/ro" + "ot/", "/ho" + "me/", "/wo" + "rk/"])
    found = subprocess.run(["git", "grep", "-nIE", places, "--", ":!*.csv"], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (1, "")  # 1: searched, and found nothing


def test_import_is_lazy_and_every_public_name_is_there():
    code = "import sys, idsds; heavy = {'torch', 'pandas', 'captum', 'matplotlib'} & set(sys.modules); "
    code += "[getattr(idsds, name) for name in idsds.__all__]; print(sorted(heavy), len(idsds.__all__))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("] ")
    assert found[0] == "["
    assert int(found[1]) > 30


@pytest.mark.skipif(sys.platform != "linux", reason="GNU OpenMP")
@pytest.mark.parametrize(("own", "expected"), [({}, "100"), ({"GOMP_SPINCOUNT": "7"}, "7")])
def test_threads_that_wait_leave_the_cores_to_others_unless_the_user_says_otherwise(own, expected):
    environment = {name: value for name, value in os.environ.items() if name != "GOMP_SPINCOUNT"} | own | {"OMP_DISPLAY_ENV": "verbose"}
    said = subprocess.run([sys.executable, "-c", "import idsds, torch"], env=environment, capture_output=True, text=True, check=True).stderr
    assert re.findall(r"GOMP_SPINCOUNT = '(\d+)'", said)[-1] == expected
