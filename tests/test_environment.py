"""What the files around the package promise."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

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
