"""Parquet tables, read and written."""

from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

from harness.storage.files import parse_file, write_atomically


def read_table(path: Path, columns: list[str] | None = None, content: bytes | None = None) -> "pd.DataFrame":
    """Read a Parquet file, or these columns. content: of the file, if it has been read. Raises DamagedFileError."""
    import pandas as pd  # imported late: most commands read no tables

    return parse_file(path, lambda content: pd.read_parquet(BytesIO(content), columns=columns), content)


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
