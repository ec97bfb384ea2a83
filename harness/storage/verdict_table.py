"""The verdicts of a trial or certification: one row for each test image."""

from pathlib import Path
from typing import TYPE_CHECKING

from harness.common import names
from harness.storage import folder
from harness.storage.files import DamagedFileError
from harness.storage.parquet import read_table

if TYPE_CHECKING:
    import pandas as pd

_INTEGERS = (names.INDEX, names.LABEL, names.PREDICTION)
_TEXTS = (names.VERDICT, names.STAGE, names.REASON)
_COLUMNS = [names.INDEX, names.LABEL, names.VERDICT, names.STAGE, names.WIDTH]


def read_verdicts(directory: Path, columns: list[str] | None = None) -> "pd.DataFrame":
    """Read columns of a trial's verdicts, or all, among them at least _COLUMNS; one row for each test image.

    Raises DamagedFileError, also for a column that is missing or of another type.
    """
    path, required = directory / folder.VERDICTS, columns or _COLUMNS
    verdicts = read_table(path)
    missing = [f"{name} is missing" for name in required if name not in verdicts]
    if problems := missing or check_columns(verdicts[required]):
        raise DamagedFileError(f"{path}: {'; '.join(problems)}")
    return verdicts if columns is None else verdicts[columns]


def check_columns(verdicts: "pd.DataFrame") -> list[str]:
    """Check the type of each column; return a line for each that is wrong."""
    from pandas.api.types import is_string_dtype  # imported late, as pandas is

    problems = []
    for name, column in verdicts.items():
        expected = "int64" if name in _INTEGERS else "text" if name in _TEXTS else "float64"
        fits = is_string_dtype(column) if name in _TEXTS else column.dtype == expected
        if not fits and not (name == names.WIDTH and column.dtype == "float32"):  # as published
            problems.append(f"{name} is {column.dtype}, expected {expected}")
    return problems
