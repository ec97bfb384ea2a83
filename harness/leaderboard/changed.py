"""Which files of a leaderboard say something else than the results: for `harness.recheck`."""

from dataclasses import replace
from io import StringIO
from itertools import groupby
from pathlib import Path

import pandas as pd

from harness.leaderboard.columns import TABLES, titles_of
from harness.leaderboard.files import leaderboard_files, leaderboard_texts
from harness.leaderboard.rows import LABEL
from harness.leaderboard.summary import full_table, summaries_of
from harness.leaderboard.table import build_leaderboard
from harness.storage.files import load_json, read_text

_EARLIER = {
    "are published numbers.": "are numbers from papers.",
    "italics: published": "italics: from papers",
    "published": "reported",
}
"""Words of leaderboards that earlier versions wrote, and what stands there now."""
_NEVER_LACKING = ("evaluation.stages", "evaluation.test_images")  # what errors are measured with, and on


def changed_files(directory: Path) -> list[Path]:
    """Return the leaderboard's files in `directory` that say something else than `write_leaderboard` would write.

    Titles may have the name that the sweep was run by, since a directory may be renamed. Earlier versions wrote other
    columns, and other words for numbers from papers. Raises InputError as `write_leaderboard` does.
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
    """Return whether a file has the prose of this text, and its tables, which may lack columns."""
    recorded = read_text(path)
    for earlier, today in _EARLIER.items():
        recorded, text = recorded.replace(earlier, today), text.replace(earlier, today)
    try:
        (prose, tables), (whole_prose, wholes) = _parse(path.suffix, recorded), _parse(path.suffix, text)
    except (ValueError, TypeError, AttributeError, RecursionError):  # no table
        return False
    return prose == whole_prose and all(map(_has_columns_of, tables, wholes))


def _parse(suffix: str, text: str) -> tuple[list[str], list[pd.DataFrame]]:
    """Return the lines of a file that are in no table, with "|" for each table, and the tables. Raises ValueError."""
    if suffix == ".csv":
        return [], [pd.read_csv(StringIO(text), dtype=str, keep_default_na=False)]
    if suffix == ".json":
        return [], [pd.DataFrame(load_json(text.encode()), dtype=object).map(repr)]
    prose, tables = list[str](), list[pd.DataFrame]()
    for is_table, lines in groupby(text.split("\n"), lambda line: line.startswith("| ")):
        if not is_table:
            prose += lines
            continue
        titles, _, *rows = [[cell.strip() for cell in line[2:-2].split(" | ")] for line in lines]
        tables.append(pd.DataFrame(rows, columns=titles))
        prose.append("|")
    return prose, tables


def _has_columns_of(table: pd.DataFrame, whole: pd.DataFrame) -> bool:
    """Return whether a table is another one without some columns.

    Ranked tables of Markdown may lack all but errors and names; others only settings with one value in all rows.
    """
    lacking = whole.columns.difference(table.columns)
    if "#" in whole:
        errors = {*titles_of(TABLES)} - {"row"}
        may_lack = not errors & {*lacking} and ("row" in table or {*LABEL} <= {*table})
    else:
        are_settings = all(
            name.startswith(("train.", "evaluation.")) and name not in _NEVER_LACKING for name in lacking
        )
        may_lack = are_settings and bool((whole[lacking].nunique() <= 1).all())
    return may_lack and table.columns.is_unique and table.equals(whole.reindex(columns=table.columns))
