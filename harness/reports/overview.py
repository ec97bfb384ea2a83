"""One page over several sweeps: every data set and radius, each with what its leaderboards say."""

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pandas as pd

from harness.analysis.leaderboard import Table
from harness.analysis.section import Section
from harness.analysis.summary import Summary
from harness.analysis.tables import marked
from harness.figures import style
from harness.figures.errors import against_eps
from harness.reports.answer import answer
from harness.reports.page import render
from harness.storage.files import write_text

INDEX = "index.html"
_COLUMNS = ("#", "row", "certified error", "attack error", "standard error", "seeds")


@dataclass(frozen=True)
class Entry:
    """A section of a sweep. link: to the sweep's page. rows: published ones only beside networks of full size."""

    sweep: str
    link: str
    section: Section
    answers: list[str]
    rows: pd.DataFrame
    published: list[bool]


def write(directory: Path, tables: list[tuple[Table, dict[str, Summary]]]) -> Path:
    """Write the page into `directory` and return where it is."""
    entries: dict[tuple[str, Fraction], list[Entry]] = {}
    for table, said in tables:
        for section in (section for section in table.sections if not section.stale):
            entry = _entry(directory, table, section, said[section.heading])
            entries.setdefault((section.dataset, section.eps), []).append(entry)
    figure = against_eps([table for table, _ in tables])
    picture = None
    if figure is not None:
        drawn = style.write(figure, directory / "figures/eps")
        picture = style.inline(drawn, "eps", "Certified error against eps")
    groups = {f"{dataset}, eps {eps}": entries[dataset, eps] for dataset, eps in sorted(entries)}
    path = directory / INDEX
    write_text(path, render("index.html.jinja", groups=groups, picture=picture))
    return path


def _entry(directory: Path, table: Table, section: Section, said: Summary) -> Entry:
    rows = marked(section, said)
    rows.insert(1, "row", section.labels)
    link = Path(os.path.relpath(table.directory / "report.html", directory)).as_posix()
    rows = rows if section.whole else rows.loc[section.own.index]
    published = section.published if section.whole else []
    shown = rows[[name for name in _COLUMNS if name in rows]]
    return Entry(table.sweep, link, section, answer(table, section), shown, published)
