"""The command line: ``python -m idsds reproduce PROFILE``, ``python -m idsds finetune FILE``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

EXAMPLES = """examples:
  python -m idsds reproduce mnist5k                                     every notebook of a profile; what is there is reused
  python -m idsds reproduce mnist5k rank_methods stability              some of them
  python -m idsds reproduce imagenet --dry-run                          what they would cost, measured on a few batches
  python -m idsds finetune params/imagenet/finetune.yaml devices=4      in-domain fine-tuning on four GPUs
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m idsds",
        description="Measure the attribution quality of vision models.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("reproduce", "finetune"))
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="see `python -m idsds COMMAND --help`")
    given = parser.parse_args(arguments)
    if given.command == "reproduce":
        from idsds.studies.reproduce import main as command
    else:
        from idsds.studies.finetune import main as command
    return command(given.arguments) or 0


if __name__ == "__main__":
    sys.exit(main())
