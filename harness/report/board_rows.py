"""All rows of the board, those of papers among them, as published.csv has them."""

from pathlib import Path
from typing import Any

from harness.common import names
from harness.leaderboard.literature import read_literature, tuning_split
from harness.report.board_entries import entry_row
from harness.report.board_row import (
    ALL_IMAGES,
    NOT_CHECKED,
    NOT_NAMED,
    PAPER,
    RELU_KINDS,
    Group,
    Row,
    cell_text,
    extra_data_of,
    kind_of,
    mean_of,
    web_address,
)
from harness.report.board_studies import StudyFiles, own_rows
from harness.storage import entry_check, study_tables


def read_rows(results_dir: Path) -> list[Row]:
    """Return all rows below a directory of results. Raises InputError if a study or published.csv cannot be read.

    An entry whose files cannot be read is a row that says so.
    """
    published = results_dir / "published"
    studies = sorted(
        path for parent in (published, results_dir) for path in parent.glob("*/") if study_tables.is_study(path)
    )
    studies.sort(key=lambda path: path.parent != published)  # a network that lies twice is shown as published
    rows: list[Row] = []
    seen: set[str] = set()
    for study in studies:
        files = StudyFiles(study)
        for section in files.leaderboard.sections:
            rows += own_rows(files, section, seen)
    entries = [entry_row(path) for path in entry_check.find_checks(results_dir)]
    papers = [_paper_row(row) for row in read_literature(published).to_dict("records")]
    return [*rows, *entries, *papers]


def _paper_row(row: dict[Any, Any]) -> Row:
    """Return a row of published.csv as a row of the board; columns that it lacks are unknown."""
    texts = {name: cell_text(value) for name, value in row.items()}
    verifier = texts.get("verifier") or NOT_NAMED
    kind = kind_of(texts["model"])
    listed = ("year", "run", "guarantee", "extra_data")
    return Row(
        group=Group(texts["dataset"], row["exact"], verifier, ALL_IMAGES, extra_data_of(texts.get("extra_data", ""))),
        origin=PAPER,
        name=", ".join(filter(None, [texts["model"], texts["method"]])) or "network not named",
        source=texts["publication"],
        note="",
        kind=kind,
        relu=texts.get("relu") or ("yes" if kind in RELU_KINDS else "unknown" if kind == "other" else "no"),
        seeds=texts.get("run", ""),
        check=NOT_CHECKED,
        standard=mean_of([row[names.STANDARD_ERROR]]),
        reported=mean_of([row[names.CERTIFIED_ERROR]]),
        undecided=mean_of([row.get(names.UNDECIDED_ERROR)]),
        details={"verifier": verifier, **{name.replace("_", " "): texts.get(name, "") for name in listed}},
        url=web_address(texts.get("url")),
        tuned_on=tuning_split(row["tuned_on"]),
    )
