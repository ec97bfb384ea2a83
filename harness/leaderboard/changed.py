"""Which files of a leaderboard say something else than the results: for `harness.recheck`."""

import re
from io import StringIO
from pathlib import Path

import pandas as pd

from harness.leaderboard.files import leaderboard_files, leaderboard_texts
from harness.leaderboard.table import build_leaderboard
from harness.storage.files import load_json, read_text

_LABEL = re.compile(r"(?<=\\label\{tab:)[^}]*(?=-\d+\})")


def changed_files(directory: Path) -> list[Path]:
    """Return the leaderboard's files in `directory` that say something else than `write_leaderboard` would write.

    Tables of numbers may lack columns: earlier versions had fewer settings. Titles and the column `sweep` may name
    another sweep, since a directory may be renamed. Raises InputError as `write_leaderboard` does.
    """
    paths = leaderboard_files(directory)
    if not any(path.exists() for path in paths):
        return []
    texts = leaderboard_texts(build_leaderboard(directory))
    return [
        path
        for path, text in zip(paths, texts, strict=True)
        if path.exists() and not _follows(path.suffix, read_text(path), text)
    ]


def _follows(suffix: str, recorded: str, text: str) -> bool:
    """Return whether a file's recorded text says what `text` does, as far as it goes."""
    if recorded == text or suffix not in (".csv", ".json"):
        return _without_name(recorded) == _without_name(text)
    try:
        table, whole = (
            _read_table(suffix, content).drop(columns="sweep", errors="ignore") for content in (recorded, text)
        )
        return table.equals(whole[list(table)])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # no table, or another column
        return False


def _without_name(text: str) -> str:
    """Return a text without its first line and LaTeX's labels, which name the sweep."""
    return _LABEL.sub("", text.partition("\n")[2])


def _read_table(suffix: str, text: str) -> pd.DataFrame:
    if suffix == ".csv":
        return pd.read_csv(StringIO(text), dtype=str, keep_default_na=False)
    return pd.DataFrame(load_json(text.encode()), dtype=object).map(repr)
