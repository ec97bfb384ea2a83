"""`python -m harness.report results/<sweep>`: write a sweep's tables, its figures, and a page that opens offline.

Writes report.html, leaderboard.md, .tex, .csv and .json, and each figure as SVG and PDF in figures/. Given several
sweeps (`python -m harness.report results/*`), it writes each one's page and index.html beside them, which links to all;
directories without trials are left out.
"""

import argparse

from harness import command_line
from harness.command_line import OK, add_data_dir, add_sweep_directories
from harness.errors import InputError
from harness.reports.overview_page import write_overview
from harness.reports.sweep_page import REPORT, write_sweep
from harness.storage import folder


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_sweep_directories(parser, "of several, a page over all is written too")
    add_data_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Return the exit status. Raises InputError where no page can be made."""
    if len(options.directories) == 1:
        write_sweep(options.directories[0], options.data_dir)
        print(options.directories[0] / REPORT)
        return OK
    sweep_dirs = [directory for directory in options.directories if folder.trial_folders(directory)]
    if not sweep_dirs:
        raise InputError(f"none of {', '.join(map(str, options.directories))} holds trials: give results/<sweep>")
    sweeps = [write_sweep(directory, options.data_dir) for directory in sweep_dirs]
    print(*(directory / REPORT for directory in sweep_dirs), sep="\n")
    print(write_overview(sweep_dirs[0].parent, sweeps))
    return OK


if __name__ == "__main__":
    raise SystemExit(command_line.main("report"))
