"""`python -m harness.report results/<sweep>`: write a sweep's tables, its figures, and a page that opens offline.

Writes report.html, leaderboard.md, .tex, .csv and .json, and each figure as SVG and PDF in figures/. Given several
sweeps (`python -m harness.report results/*`), it writes each one's page and index.html beside them, which links to all;
directories without trials are left out.
"""

import argparse
import os
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import command_line
from harness.command_line import OK, add_data_dir, add_sweep_directories
from harness.common.errors import InputError
from harness.common.terminal import say
from harness.reports.up_to_date import REPORT
from harness.storage import folder
from harness.storage.files import write_text

if TYPE_CHECKING:
    from harness.leaderboard.summary import Summary
    from harness.leaderboard.table import Leaderboard

# harness.reports.sweep_page is imported late: it imports torch and matplotlib.

INDEX = "index.html"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    add_sweep_directories(parser, "of several, a page over all is written too")
    add_data_dir(parser)


def main(options: argparse.Namespace) -> int:
    """Return the exit status. Raises InputError where no page can be made."""
    from harness.reports.sweep_page import write_sweep

    if len(options.directories) == 1:
        write_sweep(options.directories[0], options.data_dir)
        say(options.directories[0] / REPORT)
        return OK
    sweep_dirs = [directory for directory in options.directories if folder.trial_folders(directory)]
    if not sweep_dirs:
        raise InputError(f"none of {', '.join(map(str, options.directories))} holds trials: give results/<sweep>")
    sweeps = [write_sweep(directory, options.data_dir) for directory in sweep_dirs]
    say(*(directory / REPORT for directory in sweep_dirs), _write_overview(sweep_dirs[0].parent, sweeps))
    return OK


def _write_overview(directory: Path, sweeps: "list[tuple[Leaderboard, dict[str, Summary]]]") -> Path:
    """Write one page over several sweeps, every data set and radius with its leaderboards; return where it is."""
    from harness.leaderboard.files import short_table
    from harness.reports.sweep_page import render

    entries: dict[tuple[str, Fraction], list[dict[str, Any]]] = {}
    for leaderboard, summaries in sweeps:
        link = Path(os.path.relpath(leaderboard.directory / REPORT, directory)).as_posix()
        for section in leaderboard.sections:
            summary = summaries[section.heading]
            cells = short_table(section, summary)
            cells = cells if section.is_full_size else cells.loc[section.own.index]  # published rows do not compare
            published = section.is_published if section.is_full_size else []
            entry = {"sweep": leaderboard.sweep, "link": link, "section": section, "answer": summary.answer}
            entry |= {"cells": cells, "published": published}
            entries.setdefault((section.dataset, section.eps), []).append(entry)
    groups = {f"{dataset}, eps {eps}": entries[dataset, eps] for dataset, eps in sorted(entries)}
    path = directory / INDEX
    write_text(path, render("overview_page.html.jinja", groups=groups))
    return path


if __name__ == "__main__":
    raise SystemExit(command_line.main("report"))
