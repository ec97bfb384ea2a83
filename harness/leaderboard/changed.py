"""Which files of a leaderboard say something else than the results: for `harness.recheck`."""

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pandas as pd

from harness.leaderboard.files import leaderboard_files, leaderboard_texts
from harness.leaderboard.table import build_leaderboard
from harness.storage.files import load_json, read_text


def changed_files(directory: Path) -> list[Path]:
    """Return the leaderboard's files in `directory` that say something else than `write_leaderboard` would write.

    Tables of numbers may lack columns: earlier versions had fewer settings. Titles may name the sweep as its trials do,
    since a directory may be renamed. Raises InputError as `write_leaderboard` does.
    """
    paths = leaderboard_files(directory)
    if not any(path.exists() for path in paths):
        return []
    leaderboard = build_leaderboard(directory)
    sweeps = sorted({leaderboard.sweep, *leaderboard.trials["sweep"].dropna()})
    titled = [leaderboard_texts(replace(leaderboard, directory=directory.parent / sweep)) for sweep in sweeps]
    allowed = zip(paths, zip(*titled, strict=True), strict=True)
    return [
        path
        for path, texts in allowed
        if path.exists() and not any(_follows(path.suffix, read_text(path), text) for text in texts)
    ]


def _follows(suffix: str, recorded: str, text: str) -> bool:
    """Return whether a file's recorded text says what `text` does, as far as it goes."""
    if recorded == text or suffix not in (".csv", ".json"):
        return recorded == text
    try:
        table, whole = (_read_table(suffix, content) for content in (recorded, text))
        return table.equals(whole[list(table)])
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):  # no table, or another column
        return False


def _read_table(suffix: str, text: str) -> pd.DataFrame:
    if suffix == ".csv":
        return pd.read_csv(StringIO(text), dtype=str, keep_default_na=False)
    return pd.DataFrame(load_json(text.encode()), dtype=object).map(repr)
