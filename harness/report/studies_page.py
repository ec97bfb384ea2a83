"""All studies on one page that opens offline: a table for each data set and eps, with numbers from papers beside."""

import math
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from baselines.datasets import DATASETS
from harness.common import names
from harness.common.radius import Radius
from harness.leaderboard.columns import ERRORS
from harness.leaderboard.evaluations import describe_images
from harness.leaderboard.literature import read_literature
from harness.leaderboard.section import as_text
from harness.leaderboard.table import Leaderboard, SectionTable
from harness.report.sweep_page import render
from harness.storage import folder
from harness.storage.files import write_text

INDEX = "index.html"
FULL, REDUCED = "full", "reduced"
TITLES = ("network and method", *(column.title for column in ERRORS), "verifier", "size", "seeds, run", "study")


@dataclass(frozen=True)
class StudyRow:
    """A row of the page.

    certified: the certified error as a number. errors: the text of each of ERRORS. size: FULL if the row compares with
    numbers from papers. images: which ones it is about, if it is not FULL. link: to the study or paper; empty for none.
    note: what else a paper's row says.
    """

    label: str
    certified: float
    errors: list[str]
    verifier: str
    size: str
    images: str
    seeds: str
    study: str
    link: str
    note: str = ""
    is_paper: bool = False

    @property
    def cells(self) -> list[str]:
        """The texts of TITLES but for the study."""
        size = ", ".join(filter(None, [self.size, self.images]))
        return [self.label, *self.errors, self.verifier, size, self.seeds]


def write_studies_page(leaderboards: Iterable[Leaderboard], output: Path) -> None:
    """Write the page of these studies. A row that two of them have is shown once. Raises InputError."""
    groups: dict[tuple[str, Radius], list[StudyRow]] = defaultdict(list)
    shown, have_papers = set[object](), set[tuple[str, Radius]]()
    for leaderboard in leaderboards:
        for section in leaderboard.sections:
            key = section.dataset, section.eps
            if rows := [*_rows(leaderboard, section, output.parent, shown)]:
                groups[key] += rows
            have_papers |= {key} if any(section.is_literature) else set()
    for key, papers in read_literature(output).groupby(["dataset", "exact"]):
        if key in have_papers:
            groups[key] += _papers(papers)
    page = render(
        "studies_page.html.jinja",
        tables=[(_title(key[0]), _eps(key[1]), sorted(groups[key], key=_order)) for key in sorted(groups)],
        titles=TITLES,
        verifiers=sorted({row.verifier for rows in groups.values() for row in rows} - {""}),
    )
    write_text(output, page)


def _rows(leaderboard: Leaderboard, section: SectionTable, directory: Path, shown: set[object]) -> Iterator[StudyRow]:
    """Yield the rows of a section. shown: row and seeds of those that the page has; this adds to them."""
    files = (leaderboard.directory / name for name in (folder.REPORT, "leaderboard.md"))
    link = next((Path(os.path.relpath(file, directory)).as_posix() for file in files if file.exists()), "")
    seeds = section.finished.groupby("row")["seed"].agg(frozenset)
    cells = section.cells.assign(label=section.labels, warnings=section.rows["warnings"])
    for index, row in cells[~pd.Series(section.is_literature, cells.index)].iterrows():
        if (index, seeds[index]) in shown:
            continue
        shown.add((index, seeds[index]))
        yield StudyRow(
            label=row["label"] + (" (see warning)" if row["warnings"] else ""),
            certified=section.rows.loc[index, names.CERTIFIED_ERROR],
            errors=[row.get(column.title, "") for column in ERRORS],
            verifier=section.verifier,
            size=FULL if section.is_full_size else REDUCED,
            images="" if section.is_full_size else describe_images(section.evaluation, section.held_out),
            seeds=row["seeds"],
            study=leaderboard.sweep,
            link=link,
        )


def _papers(papers: pd.DataFrame) -> Iterator[StudyRow]:
    for row in papers.to_dict("records"):
        yield StudyRow(
            label=" ".join(filter(None, (as_text(row[name]) for name in ("model", "method")))),
            certified=row[names.CERTIFIED_ERROR],
            errors=["" if pd.isna(row[column.name]) else column.text(row[column.name]) for column in ERRORS],
            verifier=as_text(row["verifier"]),
            size=FULL,
            images="",
            seeds=as_text(row["run"]),
            study=row["publication"],
            note=row["source"].removeprefix(row["publication"]),
            link=as_text(row.get("url")),
            is_paper=True,
        )


def _order(row: StudyRow) -> tuple[bool, float, str]:
    """Return the sort key of a row: those that compare with papers first, then by certified error."""
    return row.size != FULL, math.inf if math.isnan(row.certified) else row.certified, row.label


def _title(dataset: str) -> str:
    return DATASETS[dataset].title if dataset in DATASETS else dataset


def _eps(eps: Radius) -> str:
    """Return a radius as papers write it: 8/255, 0.3."""
    return f"{float(eps):g}" if 100 % eps.denominator == 0 else str(eps)
