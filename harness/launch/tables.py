"""`python -m harness.tables results/<sweep>`: write a sweep's leaderboard as Markdown, LaTeX, CSV and JSON.

LaTeX, CSV and JSON hold today's recipe and published numbers; Markdown shows stale sections and failures too. With
--from-mlflow the trials' folders are first made again from what MLflow has of the experiment called <sweep>.
"""

import argparse

from rich.console import Console

from harness.analysis.tables import show, write
from harness.command_line import OK, add_sweep_directory

# harness.tracking.restore is imported late: tables need no MLflow.


def arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    add_sweep_directory(parser)
    what = "an MLflow store or server to restore trials' folders from; the directory holds the same trials, or nothing"
    parser.add_argument("--from-mlflow", metavar="URI", help=what)


def main(options: argparse.Namespace) -> int:
    """Returns the exit status. Raises InputError where no table can be made."""
    if options.from_mlflow:
        from harness.tracking.restore import restore

        restore(options.directory, options.from_mlflow)
    show(*write(options.directory), Console())
    return OK
