"""Parquet tables, read and written; those of verdicts have one row for each test image."""

from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

from harness.common import names
from harness.common.errors import require
from harness.storage import folder
from harness.storage.files import DamagedFileError, parse_file, write_atomically

_LARGEST_TABLE = 2**30  # bytes, unpacked
_INTEGERS = (names.INDEX, names.LABEL, names.PREDICTION)
_TEXTS = (names.VERDICT, names.STAGE, names.REASON)
_COLUMNS = [names.INDEX, names.LABEL, names.VERDICT, names.STAGE, names.WIDTH]


def read_table(path: Path, columns: list[str] | None = None, content: bytes | None = None) -> "pd.DataFrame":
    """Read a Parquet file, or these columns. content: of the file, if it has been read. Raises DamagedFileError."""
    return parse_file(path, lambda content: unpack_table(content, columns).to_pandas(), content)


def unpack_table(content: bytes, columns: list[str] | None = None, largest: int = _LARGEST_TABLE) -> "pa.Table":
    """Return the table of a Parquet file, or these columns, of up to `largest` bytes.

    Sizes are checked before anything is unpacked, and before texts that are stored once become texts of each row.
    Raises InputError.
    """
    import pyarrow as pa  # imported late: most commands read no tables
    from pyarrow import compute, parquet

    file = parquet.ParquetFile(BytesIO(content))
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    values = sum(group.column(number).num_values for group in groups for number in range(group.num_columns))
    size = max(sum(group.total_byte_size for group in groups), 8 * values)
    require("bytes, unpacked", size, size <= largest, f"at most {largest:,}")
    texts = [field.name for field in file.schema_arrow if field.type in (pa.string(), pa.large_string())]
    for field in file.schema_arrow:
        is_flat = field.name in texts or pa.types.is_primitive(field.type) or pa.types.is_null(field.type)
        require(f"the type of {field.name}", str(field.type), is_flat, "numbers, truth values or texts")
    table = parquet.read_table(BytesIO(content), columns=columns, read_dictionary=texts, use_threads=False)
    for number, name in enumerate(table.column_names):
        if name in texts:
            chunks = [chunk for chunk in table[name].chunks if len(chunk.dictionary)]
            longest = max((compute.max(compute.binary_length(chunk.dictionary)).as_py() for chunk in chunks), default=0)
            size = longest * len(table)
            require(f"bytes of {name}, unpacked", size, size <= largest, f"at most {largest:,}")
            table = table.set_column(number, name, table[name].cast(table[name].type.value_type))
    return table


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
