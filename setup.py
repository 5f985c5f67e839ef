"""What pyproject.toml cannot say: a wheel carries the notebooks and what they need, for ``python -m idsds init``."""

import shutil
import tomllib
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent


class BuildPy(build_py):
    """Build the package with the project's files in it; an editable installation has them in its checkout."""

    def run(self):
        """Build, and copy."""
        super().run()
        patterns = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["idsds"]["project-files"]
        target = Path(self.build_lib, "idsds", "studies", "files")
        shutil.rmtree(target, ignore_errors=True)
        for path in [] if self.editable_mode else sorted(file for pattern in patterns for file in ROOT.glob(pattern)):
            copy = target / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)


setup(cmdclass={"build_py": BuildPy})
