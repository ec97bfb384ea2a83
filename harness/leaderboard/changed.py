"""Which files of a leaderboard say something else than the results: for `harness.recheck`."""

import json
from dataclasses import replace
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd

from harness.leaderboard.columns import TABLES, titles_of
from harness.leaderboard.files import json_text, leaderboard_files, leaderboard_texts
from harness.leaderboard.rows import LABEL
from harness.leaderboard.summary import full_table, summaries_of
from harness.leaderboard.table import build_leaderboard
from harness.storage.files import read_text

_TODAYS_WORDS = {
    "published certified error": "reported certified error",
    "published standard error": "reported standard error",
    "published as": "reported as",
    "`published` columns have": "`reported` columns have",
    "with a source, are published numbers.": "with a source, are numbers from papers.",
    "italics: published": "italics: from papers",
}
"""Words of leaderboards that earlier versions wrote, and what stands there now."""
_NEVER_LACKING = ("evaluation.stages", "evaluation.test_images")  # what errors are measured with, and on


def changed_files(directory: Path) -> list[Path]:
    """Return the leaderboard's files in `directory` that say something else than `write_leaderboard` would write.

    Titles may have the name that the sweep was run by, since a directory may be renamed. Markdown may have more
    columns, as earlier versions wrote them; CSV and JSON may lack columns: settings are added. Raises InputError as
    `write_leaderboard` does.
    """
    paths = leaderboard_files(directory)
    if not any(path.exists() for path in paths):
        return []
    leaderboard = build_leaderboard(directory)
    summaries = summaries_of(leaderboard)
    sweeps = {leaderboard.sweep, *leaderboard.trials["sweep"].dropna()}
    titled = [
        leaderboard_texts(replace(leaderboard, directory=directory.parent / sweep), summaries, full_table)
        for sweep in sorted(sweeps)
    ]
    allowed = zip(paths, zip(*titled, strict=True), strict=True)
    return [path for path, texts in allowed if path.exists() and not any(_is_part(path, text) for text in texts)]


def _is_part(path: Path, text: str) -> bool:
    """Return whether a file is this text, but for columns that it may lack, in today's words.

    Tables in Markdown may lack columns that are neither ranks, labels nor errors; those in CSV or JSON some settings of
    training or evaluation in which the rows do not differ.
    """
    recorded = read_text(path)
    for earlier, today in _TODAYS_WORDS.items():
        recorded = recorded.replace(earlier, today)
    if recorded == text or path.suffix == ".tex":
        return recorded == text
    try:
        if path.suffix == ".md":
            return _has_tables_of(recorded, text)
        if path.suffix == ".csv":
            part, whole = (pd.read_csv(StringIO(each), dtype=str, keep_default_na=False) for each in (recorded, text))
            may_lack = _may_lack(set(whole) - set(part), whole.to_dict("records"))
            return may_lack and part.equals(whole.reindex(columns=part.columns))
        records, wholes = json.loads(recorded), json.loads(text)
        has_all = all(row.items() <= whole.items() for row, whole in zip(records, wholes, strict=True))
        lacking = {name for row, whole in zip(records, wholes, strict=True) for name in whole.keys() - row.keys()}
        return has_all and _may_lack(lacking, wholes) and json_text(records) == recorded  # a key may stand twice
    except (ValueError, TypeError, AttributeError, RecursionError):  # no table
        return False


def _has_tables_of(recorded: str, text: str) -> bool:
    """Return whether Markdown has the same prose as `text`, and its tables, which may lack columns."""
    (prose, tables), (whole_prose, wholes) = _split(recorded), _split(text)
    return prose == whole_prose and all(map(_has_columns_of, tables, wholes))


def _split(markdown: str) -> tuple[list[str], list[pd.DataFrame]]:
    """Return the lines that are in no table, with "|" for each table, and the tables. Raises ValueError."""
    prose, tables = list[str](), list[pd.DataFrame]()
    for is_table, lines in groupby(markdown.split("\n"), lambda line: line.startswith("| ")):
        if not is_table:
            prose += lines
            continue
        titles, _, *rows = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in lines]
        tables.append(pd.DataFrame(rows, columns=titles))
        prose.append("|")
    return prose, tables


def _has_columns_of(table: pd.DataFrame, whole: pd.DataFrame) -> bool:
    if "#" not in whole:
        return table.equals(whole)
    errors = [title for title in titles_of(TABLES) if title in whole and title != "row"]
    named = "row" in table or {*LABEL} <= {*table}
    has_all = table.columns.is_unique and {*errors} <= {*table} <= {*whole} and named
    return has_all and table.equals(whole[table.columns])


def _may_lack(columns: set[str], rows: list[dict[str, Any]]) -> bool:
    """Return whether these columns are settings that may be younger than the file, with one value in all rows."""
    younger = {name for name in columns if name.startswith(("train.", "evaluation.")) and name not in _NEVER_LACKING}
    return younger == columns and all(len({str(row.get(name)) for row in rows}) == 1 for name in columns)
