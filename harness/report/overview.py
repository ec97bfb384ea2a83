"""One page over several sweeps: every data set and radius with its leaderboards, and links to each sweep's page."""

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from harness.leaderboard.summary import Summary, short_table
from harness.leaderboard.table import Leaderboard
from harness.report.sweep_page import render
from harness.storage import folder
from harness.storage.files import write_text

INDEX = "index.html"


def write_overview(directory: Path, sweeps: Sequence[tuple[Leaderboard, dict[str, Summary]]]) -> Path:
    """Write index.html in `directory`; return where it is. sweeps: each with its summaries by heading."""
    entries: dict[tuple[str, Fraction], list[dict[str, Any]]] = {}
    for leaderboard, summaries in sweeps:
        link = Path(os.path.relpath(leaderboard.directory / folder.REPORT, directory)).as_posix()
        for section in leaderboard.sections:
            summary = summaries[section.heading]
            cells = short_table(section, summary)
            cells = cells if section.is_full_size else cells.loc[section.own.index]  # those of papers do not compare
            in_italics = section.is_literature if section.is_full_size else []
            entry = {"sweep": leaderboard.sweep, "link": link, "section": section, "answer": summary.answer}
            entry |= {"cells": cells, "in_italics": in_italics}
            entries.setdefault((section.dataset, section.eps), []).append(entry)
    groups = {f"{dataset}, eps {eps}": entries[dataset, eps] for dataset, eps in sorted(entries)}
    path = directory / INDEX
    write_text(path, render("overview_page.html.jinja", groups=groups))
    return path
