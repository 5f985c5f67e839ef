"""The command line: ``python -m idsds reproduce PROFILE``, ``python -m idsds run STUDY FILE``, ``python -m idsds finetune FILE``,
``python -m idsds report FOLDER``, ``python -m idsds init FOLDER``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

EXAMPLES = """examples:
  python -m idsds init my-study                                     notebooks, params and figures of an installed package, to work in
  python -m idsds reproduce mnist5k                                 every notebook of a profile; finished runs are reused
  python -m idsds reproduce mnist5k rank_methods stability          selected notebooks
  python -m idsds reproduce imagenet --dry-run                      the expected cost, measured on a few batches
  python -m idsds run rank_methods params/mnist5k/rank_methods.yaml images=64
                                                                    one study without its notebook: tables, figure, findings
  python -m idsds finetune params/imagenet/finetune.yaml devices=4  in-domain fine-tuning on four GPUs (also under torchrun, Slurm)
  python -m idsds report runs/mnist5k                               one HTML file to share: figures, tables, settings, undefined scores
  python -m idsds checkpoints                                       which of the authors' checkpoints you have, and their sha256
  python -m idsds finetune mine.yaml                                your own net, "net: my_code:net", on your own images
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m idsds",
        description="Measure the attribution quality of vision models.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    reproduce = commands.add_parser("reproduce", help="run the notebooks of a profile")
    reproduce.add_argument("profile", nargs="?", default="mnist5k", help="a folder of params/ (default: mnist5k)")
    reproduce.add_argument("only", nargs="*", help="names of params files; all if none is given")
    reproduce.add_argument("--again", action="store_true", help="repeat finished runs as well")
    reproduce.add_argument("--dry-run", action="store_true", help="print what each run would cost, and compute nothing")
    for name, what in (("run", "run one study from a params file"), ("finetune", "fine-tune models in-domain from a params file")):
        command = commands.add_parser(name, help=what)
        if name == "run":
            command.add_argument("study", help="the name of a notebook, such as rank_methods")
        command.add_argument("params", help="a params file, such as params/imagenet/finetune.yaml")
        command.add_argument("changes", nargs="*", metavar="key=value", help="settings to change, such as dry_run=true")
    checkpoints = commands.add_parser("checkpoints", help="look for the authors' checkpoints, and print their sha256")
    checkpoints.add_argument("models", nargs="*", help="names of models; all models of the paper if none is given")
    report = commands.add_parser("report", help="write a single HTML file about some runs")
    report.add_argument("folders", nargs="+", help="folders of runs, or of a profile's runs")
    report.add_argument("--output", help="the file (default: report.html in the first folder)")
    init = commands.add_parser("init", help="copy notebooks, params and figures into a folder to work in")
    init.add_argument("folder", help="a new folder, or one to complete; files that differ are never overwritten")
    commands.add_parser("index", help="update notebooks/index.ipynb")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    given = (parser := _parser()).parse_args(arguments)
    from idsds.common.registry import UnknownNameError
    from idsds.common.settings import SettingsError

    try:
        return _run(given)
    except (SettingsError, UnknownNameError) as error:
        parser.error(str(error))
    except (OSError, ValueError) as error:
        if given.command not in ("init", "report"):  # of these two it is the folders that do not do
            raise
        parser.error(str(error))


def _run(given: argparse.Namespace) -> int:
    if given.command == "reproduce":
        from idsds.studies.reproduce import run_profile

        return run_profile(given.profile, given.only, again=given.again, dry_run=given.dry_run)
    if given.command == "init":
        from idsds.studies.project import init as fill

        print(fill(given.folder))
        return 0
    if given.command == "index":
        from idsds.studies.index import write as write_index

        print(write_index())
        return 0
    if given.command == "report":
        from idsds.studies.report import report as write

        print(write(given.folders, given.output))
        return 0
    if given.command == "checkpoints":
        from idsds.models import MODELS, authors
        from idsds.published import idsds_scores

        for name in given.models:
            MODELS[name]
        table = authors.listing(given.models or sorted(set(idsds_scores()["model"])))
        print(f"{authors.folder()} (linked from {authors.REPOSITORY})\n{table.to_string(index=False)}")
        return 1 if (table["check"] == "differs").any() else 0
    from idsds.studies.base import read_params, run_file

    if given.command == "finetune" and "net" in (values := read_params(given.params, given.changes)):
        from idsds.training.own import FineTuning

        FineTuning(**values).run()
        return 0
    return run_file(given.study if given.command == "run" else "finetune", given.params, given.changes)


if __name__ == "__main__":
    sys.exit(main())
