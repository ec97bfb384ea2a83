"""Parquet tables, read and written."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

from harness.errors import error_line
from harness.storage.files import DamagedFileError, write_atomically


def read_table(path: Path, columns: list[str] | None = None) -> "pd.DataFrame":
    """Read a Parquet file, or these columns of it. Raises DamagedFileError."""
    import pandas as pd  # imported late: most commands read no tables

    try:
        return pd.read_parquet(path, columns=columns)
    except Exception as error:  # a flipped byte may raise anything
        raise DamagedFileError(f"{path} cannot be read: {error_line(error)}") from error


def write_table(path: Path, table: "pd.DataFrame") -> None:
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
