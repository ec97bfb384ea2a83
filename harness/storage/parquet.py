"""Parquet tables, read and written; those of verdicts have one row for each test image."""

from functools import partial
from io import BytesIO
from pathlib import Path

import pandas as pd
from pandas.api.types import is_string_dtype
from pyarrow import parquet

from harness.common import names
from harness.storage import folder
from harness.storage.files import DamagedFileError, parse_file, write_atomically

_LARGEST_HEADER = 2**24  # bytes of a text, or items of a list
_INTEGERS = (names.INDEX, names.LABEL, names.PREDICTION)
_TEXTS = (names.VERDICT, names.STAGE, names.REASON, names.TAKEN_FROM)
_COLUMNS = [names.INDEX, names.LABEL, names.VERDICT, names.STAGE, names.WIDTH]


def read_table(path: Path, columns: list[str] | None = None, content: bytes | None = None) -> pd.DataFrame:
    """Read a Parquet file, or these columns. content: of the file, if it has been read. Raises DamagedFileError."""
    return parse_file(path, lambda content: parse_table(content, columns), content)


def parse_table(content: bytes, columns: list[str] | None = None) -> pd.DataFrame:
    """Return the table in a Parquet file's bytes, or these columns. Raises an error of pyarrow."""
    limits = {"thrift_string_size_limit": _LARGEST_HEADER, "thrift_container_size_limit": _LARGEST_HEADER}
    return parquet.read_table(BytesIO(content), columns=columns, use_threads=False, **limits).to_pandas()


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a Parquet file atomically, at most two thirds as large as pandas writes verdicts by default.

    Floats are split into bytes, unique integers stored as differences.
    """
    floats = list(table.select_dtypes("float"))
    unique = [name for name in table.select_dtypes("integer") if table[name].is_unique]
    options = {
        "compression": "zstd",
        "use_dictionary": [name for name in table if name not in (*floats, *unique)],
        "column_encoding": dict.fromkeys(floats, "BYTE_STREAM_SPLIT") | dict.fromkeys(unique, "DELTA_BINARY_PACKED"),
    }
    write_atomically(path, partial(table.to_parquet, **options))


def read_verdicts(directory: Path, columns: list[str] | None = None) -> pd.DataFrame:
    """Read columns of a trial's verdicts, or all, among them at least _COLUMNS; one row for each test image.

    Raises DamagedFileError, also for a column that is missing or of another type.
    """
    path, required = directory / folder.VERDICTS, columns or _COLUMNS
    verdicts = read_table(path)
    missing = [f"{name} is missing" for name in required if name not in verdicts]
    if problems := missing or check_columns(verdicts[required]):
        raise DamagedFileError(f"{path}: {'; '.join(problems)}")
    return verdicts if columns is None else verdicts[columns]


def check_columns(verdicts: pd.DataFrame) -> list[str]:
    """Check the type of each column; return a line for each that is wrong."""
    problems = []
    for name, column in verdicts.items():
        expected = "int64" if name in _INTEGERS else "text" if name in _TEXTS else "float64"
        fits = is_string_dtype(column) if name in _TEXTS else column.dtype == expected
        if not fits and not (name == names.WIDTH and column.dtype == "float32"):  # as published
            problems.append(f"{name} is {column.dtype}, expected {expected}")
    return problems
