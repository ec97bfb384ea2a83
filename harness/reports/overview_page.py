"""One page over several sweeps, index.html: every data set and radius with its leaderboards."""

import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pandas as pd

from harness.analysis.leaderboard import Leaderboard, Section
from harness.analysis.summary import Summary, is_cerdeq_better
from harness.analysis.table_files import marked_cells
from harness.figures import style
from harness.figures.error_figures import against_eps
from harness.reports.sweep_page import REPORT, render
from harness.storage.files import write_text

INDEX = "index.html"
_COLUMNS = ("#", "row", "certified error", "attack error", "standard error", "seeds")


@dataclass(frozen=True)
class Entry:
    """A section of a sweep. link: to the sweep's page. cells: published rows only beside networks of full size."""

    sweep: str
    link: str
    section: Section
    answer: str
    cells: pd.DataFrame
    published: list[bool]


def write_overview(directory: Path, sweeps: list[tuple[Leaderboard, dict[str, Summary]]]) -> Path:
    """Write the page into `directory` and return where it is. sweeps: as `write_sweep` returns them."""
    entries: dict[tuple[str, Fraction], list[Entry]] = {}
    for leaderboard, summaries in sweeps:
        for section in (section for section in leaderboard.sections if not section.is_stale):
            entry = _entry(directory, leaderboard, section, summaries[section.heading])
            entries.setdefault((section.dataset, section.eps), []).append(entry)
    figure = against_eps([leaderboard for leaderboard, _ in sweeps])
    picture = None
    if figure is not None:
        picture = style.inline(style.write(figure, directory / "figures/eps"), "eps", "Certified error against eps")
    groups = {f"{dataset}, eps {eps}": entries[dataset, eps] for dataset, eps in sorted(entries)}
    path = directory / INDEX
    write_text(path, render("overview_page.html.jinja", groups=groups, picture=picture))
    return path


def _entry(directory: Path, leaderboard: Leaderboard, section: Section, summary: Summary) -> Entry:
    cells = marked_cells(section, summary)
    cells.insert(1, "row", section.labels)
    cells = cells if section.is_full_size else cells.loc[section.own.index]
    return Entry(
        leaderboard.sweep,
        Path(os.path.relpath(leaderboard.directory / REPORT, directory)).as_posix(),
        section,
        is_cerdeq_better(section, summary),
        cells[[name for name in _COLUMNS if name in cells]],
        section.published if section.is_full_size else [],
    )
