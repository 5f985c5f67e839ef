"""Run every notebook of a profile, in order and resumable, and write a page with the results.

A params file ``params/<profile>/<stem>.yaml`` is a run of the notebook whose name the stem is or begins with (``design_choice_depth``
runs ``design_choice``). The executed notebook, with its outputs, is kept as ``runs/<profile>/<stem>/<stem>.ipynb``, figures and tables go
to ``figures/<profile>/``. A run is not repeated if its notebook, params, code and versions have not changed since it succeeded; a killed
run resumes from its records and checkpoints.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd

from idsds.common import paths
from idsds.common.files import atomic
from idsds.common.hashing import digest, file_digest, study_digest, versions
from idsds.common.registry import UnknownNameError, check_names
from idsds.common.settings import SettingsError, parameters_of, read_values
from idsds.studies.base import STUDIES
from idsds.studies.report import figure_files, report, table_files

STAMP = "idsds"


@dataclass(frozen=True)
class Run:
    """One params file and its notebook."""

    params: Path
    notebook: Path

    @property
    def stem(self) -> str:
        """The name of its params file, its folder and its figures."""
        return self.params.stem

    @property
    def profile(self) -> str:
        """The folder of its params file."""
        return self.params.parent.name

    @property
    def executed(self) -> Path:
        """The executed copy, beside the records."""
        return paths.root() / "runs" / self.profile / self.stem / f"{self.stem}.ipynb"

    @property
    def figures(self) -> Path:
        """Where figures and tables go; their names begin with the stem."""
        return paths.root() / "figures" / self.profile / self.stem

    @property
    def stamp(self) -> str:
        """A hash of everything that determines the outcome, except data on disk."""
        return digest([file_digest(self.params), file_digest(self.notebook), study_digest(self.notebook.stem), versions()])

    @property
    def is_done(self) -> bool:
        """Whether the same run succeeded and its figure exists."""
        if not (self.executed.is_file() and self.figures.with_suffix(".png").is_file()):
            return False
        try:
            return nbformat.read(self.executed, as_version=4).metadata.get(STAMP) == self.stamp
        except (ValueError, OSError):  # cut short by a kill
            return False

    @property
    def variant(self) -> str:
        """What distinguishes this run of its notebook; empty for the plain one."""
        return self.stem.removeprefix(self.notebook.stem).strip("_").replace("_", " ")

    @property
    def title(self) -> str:
        """The notebook's heading, and the variant."""
        first = next(cell.source for cell in nbformat.read(self.notebook, as_version=4).cells if cell.cell_type == "markdown")
        return first.splitlines()[0].lstrip("# ") + (f": {self.variant}" if self.variant else "")


def runs_of(profile: str, only: Sequence[str] = ()) -> list[Run]:
    """Return the runs of a profile in order.

    Args:
        profile: a folder of ``params/``.
        only: stems; none means all.

    Raises:
        SettingsError: if there is no ``params/``.
        UnknownNameError: for an unknown profile, stem or notebook.
    """
    folder = paths.root() / "params" / profile
    if not folder.parent.is_dir():
        raise SettingsError(f"no params/ in {str(paths.root())!r}: python -m idsds init FOLDER copies notebooks and params; run this there")
    if not folder.is_dir():
        raise UnknownNameError("profile", profile, sorted(path.name for path in folder.parent.iterdir() if path.is_dir()))
    files = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    check_names(f"params file of {profile}", only, files)
    notebooks = {path.stem: path for path in (paths.root() / "notebooks").glob("*.ipynb")}
    found = []
    for stem in only or files:
        fitting = [name for name in notebooks if stem == name or stem.startswith(f"{name}_")]
        if not fitting:
            raise UnknownNameError("notebook", stem, notebooks)
        found.append(Run(files[stem], notebooks[max(fitting, key=len)]))
    place = {name: number for number, name in enumerate(STUDIES)}
    return sorted(found, key=lambda run: (place.get(run.notebook.stem, len(STUDIES)), run.stem))


def reproduce(runs: Sequence[Run], execute: Callable[[Run], None] | None = None, again: bool = False) -> dict[str, str]:
    """Execute the runs and return the errors by stem. A failed run does not stop the others.

    Args:
        execute: executes one run; papermill by default.
    """
    failures: dict[str, str] = {}
    started, made = time.monotonic(), 0
    waiting = [run for run in runs if again or not run.is_done]
    for number, run in enumerate(runs, start=1):
        if run not in waiting:
            print(f"[{number}/{len(runs)}] {run.stem}: done already", flush=True)
            continue
        left = (time.monotonic() - started) / made * (len(waiting) - made) if made else None
        print(f"\n[{number}/{len(runs)}] {run.stem}" + (f", about {left / 60:.0f} min left in all" if left else ""), flush=True)
        begun = time.monotonic()
        try:
            (execute or _papermill)(run)
            print(f"[{number}/{len(runs)}] {run.stem}: {time.monotonic() - begun:.0f} s", flush=True)
        except Exception as error:  # the others do not depend on it; all errors are reported at the end
            failures[run.stem] = f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else ''}"
            print(f"[{number}/{len(runs)}] {run.stem} failed: {failures[run.stem]}", file=sys.stderr, flush=True)
        made += 1
    return failures


def minutes_of(profile: str) -> dict[str, float]:
    """Return the longest duration of each run of a profile, in minutes, by stem, if it ever ran from an empty cache."""
    path = paths.root() / "figures" / profile / "minutes.csv"
    return dict(pd.read_csv(path).itertuples(index=False)) if path.is_file() else {}


def _note_minutes(run: Run, minutes: float) -> None:
    """Record a run's duration; cached runs are shorter, so the longest is that from an empty cache."""
    known = minutes_of(run.profile)
    if minutes > known.get(run.stem, 0):
        known[run.stem] = round(minutes, 1)
        with atomic(run.figures.with_name("minutes.csv")) as partial:
            pd.DataFrame(sorted(known.items()), columns=["run", "minutes"]).to_csv(partial, index=False, lineterminator="\n")


def cost(run: Run) -> None:
    """Run a notebook up to its cost table, without touching its other results."""
    _execute(run, run.executed.with_suffix(".dry.ipynb"), dry_run=True)


def _papermill(run: Run) -> None:
    stamp, begun = run.stamp, time.monotonic()
    _execute(run, run.executed)
    _note_minutes(run, (time.monotonic() - begun) / 60)
    # Only successful runs are stamped: papermill saves a failed run's notebook too.
    notebook = nbformat.read(run.executed, as_version=4)
    notebook.metadata[STAMP] = stamp
    with atomic(run.executed) as partial:
        nbformat.write(notebook, partial)


def _execute(run: Run, executed: Path, **changes: object) -> None:
    import papermill

    cells = nbformat.read(run.notebook, as_version=4).cells
    source = next((cell.source for cell in cells if "parameters" in cell.metadata.get("tags", ())), "")
    values = read_values(run.params, parameters_of(source))  # before papermill writes the keys into the notebook as code
    executed.parent.mkdir(parents=True, exist_ok=True)
    streams = {"stdout_file": sys.stdout, "stderr_file": sys.stderr, "progress_bar": False}
    papermill.execute_notebook(run.notebook, executed, parameters={**values, **changes}, cwd=paths.root(), **streams)


def page(runs: Sequence[Run]) -> str:
    """Return every figure with its finding in one line, as Markdown."""
    profile = runs[0].profile
    lines = [
        f"# What came out: {profile}",
        "",
        f"Written by `make reproduce PROFILE={profile}` from the figures and tables in this folder. Every sentence is computed from the",
        "records of its run; the settings are those of the params file.",
    ]
    for run in runs:
        if not (figure := run.figures.with_suffix(".png")).is_file():
            continue
        finding = run.figures.with_suffix(".md")
        # A longer stem's files begin with this one's name as well.
        longer = [other.stem for other in runs if other.stem.startswith(f"{run.stem}_")]
        tables = [path for path in table_files(run.figures) if not any(path.stem.startswith(name) for name in longer)]
        lines += ["", f"## {run.title}", ""]
        if not run.is_done:
            lines += ["*Not made by the notebook, settings and package of this tree, or by a run that did not end well.*", ""]
        if finding.is_file():
            lines += [finding.read_text(encoding="utf-8").strip(), ""]
        lines += [f"![{run.title}]({path.name})" for path in figure_files(run.figures)]
        links = [f"[{path.name}]({path.name})" for path in (figure.with_suffix(".pdf"), *tables)]
        source = f"[{run.notebook.stem}.ipynb](../../notebooks/{run.notebook.name})"
        settings = f"[{run.params.name}](../../params/{profile}/{run.params.name})"
        lines += ["", f"{', '.join(links)}; {source} with {settings}"]
    return "\n".join(lines) + "\n"


def run_profile(profile: str, only: Sequence[str] = (), *, again: bool = False, dry_run: bool = False) -> int:
    """Execute the runs of :func:`runs_of` and write the profile's overview page; return 1 if a run failed, else 0."""
    runs, everything = runs_of(profile, only), runs_of(profile)
    if dry_run:
        failures = reproduce(runs, cost, again=True)
        print(f"\n{len(runs) - len(failures)} of {len(runs)} runs said what they would cost")
        return _told(failures)
    failures = reproduce(runs, again=again)
    overview = paths.root() / "figures" / profile / "README.md"
    with atomic(overview) as partial:
        partial.write_text(page(everything), encoding="utf-8")
    if profile == "mnist5k":
        from idsds.studies.index import write  # needs this module

        write()
    print(f"\n{len(runs) - len(failures)} of {len(runs)} runs are there; overview: {overview.relative_to(paths.root())}")
    try:
        print(f"to send: {report([paths.root() / 'runs' / profile]).relative_to(paths.root())}")
    except (OSError, ValueError) as error:  # no run has left anything, or records are of another format
        print(f"no report: {error}", file=sys.stderr)
    return _told(failures)


def _told(failures: dict[str, str]) -> int:
    for stem, reason in failures.items():
        print(f"  {stem} failed: {reason}", file=sys.stderr)
    return 1 if failures else 0
