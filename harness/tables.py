"""`python -m harness.tables results/<sweep>`: write a sweep's leaderboard as Markdown, LaTeX, CSV and JSON.

Markdown also shows notes, warnings and trials without a result.
With --from-mlflow the trials' folders are first restored from the MLflow experiment called <sweep>.
"""

import argparse

from harness import command_line
from harness.command_line import OK, add_sweep_directory
from harness.common.terminal import new_console
from harness.leaderboard.files import print_leaderboard, write_leaderboard

# harness.tracking.restore is imported late: tables need no MLflow.


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_sweep_directory(parser)
    what = "an MLflow store or server to restore trials' folders from; the directory holds the same trials, or nothing"
    parser.add_argument("--from-mlflow", metavar="URI", help=what)


def main(options: argparse.Namespace) -> int:
    """Return the exit status. Raises InputError where no table can be made."""
    if options.from_mlflow:
        from harness.tracking.restore import restore

        restore(options.directory, options.from_mlflow)
    print_leaderboard(*write_leaderboard(options.directory), new_console())
    return OK


if __name__ == "__main__":
    raise SystemExit(command_line.main("tables"))
