"""A folder to work in, where the package is installed from a wheel: notebooks, params, pages and the digits' figures."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

from idsds.common import paths

#: Where a wheel keeps the files; see setup.py.
PACKED = Path(__file__).with_name("files")
NEXT = """Next: cd into it, then
  jupyter lab notebooks/index.ipynb                               every notebook
  papermill notebooks/rank_methods.ipynb rank_methods_out.ipynb   the ranking, small
  python -m idsds reproduce mnist5k rank_methods                  the ranking of the figure"""


def project_files() -> dict[Path, Path]:
    """Return the files that ``init`` copies, by their path inside the folder: those of the wheel, or else of the checkout.

    Raises:
        FileNotFoundError: if the package was installed without them.
    """
    home, patterns = PACKED, ["**/*"]
    if not PACKED.is_dir():
        home = Path(__file__).resolve().parents[2]
        if not (project := home / "pyproject.toml").is_file():
            raise FileNotFoundError(f"the package in {str(home)!r} was installed without its notebooks: install its wheel")
        patterns = tomllib.loads(project.read_text(encoding="utf-8"))["tool"]["idsds"]["project-files"]
    return {path.relative_to(home): path for pattern in patterns for path in sorted(home.glob(pattern)) if path.is_file()}


def init(folder: str | Path) -> str:
    """Copy the files into a folder, relative to which the paths of params files are from then on, and return what to do next.

    Args:
        folder: created if it does not exist. Files that are there already are kept.

    Raises:
        OSError: if the folder cannot be written to, or a file in it differs from the one to copy; then nothing is written.
    """
    folder = paths.check_creatable(Path(folder).expanduser().absolute())
    files = {folder / name: source for name, source in project_files().items()}
    if differ := [path for path, source in files.items() if path.exists() and (path.is_dir() or path.read_bytes() != source.read_bytes())]:
        names = ", ".join(str(path.relative_to(folder)) for path in differ[:5]) + (f" and {len(differ) - 5} more" if differ[5:] else "")
        raise FileExistsError(f"{str(folder)!r} has files that differ and are not overwritten: {names}. Move them, or name another folder")
    for path, source in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            shutil.copyfile(source, path)
    (folder / paths.MARK).write_text("Relative paths of params files start here.\n", encoding="utf-8")
    return f"{len(files)} files in {folder}. {NEXT}"
