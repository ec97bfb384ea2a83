"""Parquet tables, read and written; those of verdicts have one row for each test image."""

from collections.abc import Iterator
from functools import partial
from io import BytesIO
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pandas.api.types import is_string_dtype
from pyarrow import compute, parquet

from harness.common import names
from harness.common.errors import require, shorten
from harness.storage import folder
from harness.storage.files import DamagedFileError, parse_file, write_atomically

_LARGEST_TABLE = 2**30  # bytes, unpacked
_INTEGERS = (names.INDEX, names.LABEL, names.PREDICTION)
_TEXTS = (names.VERDICT, names.STAGE, names.REASON, names.TAKEN_FROM)
_COLUMNS = [names.INDEX, names.LABEL, names.VERDICT, names.STAGE, names.WIDTH]


def read_table(path: Path, columns: list[str] | None = None, content: bytes | None = None) -> pd.DataFrame:
    """Read a Parquet file, or these columns. content: of the file, if it has been read. Raises DamagedFileError."""
    return parse_file(path, lambda content: unpack_table(content, columns).to_pandas(), content)


def unpack_table(content: bytes, columns: list[str] | None = None, largest: int = _LARGEST_TABLE) -> pa.Table:
    """Return the table of a Parquet file, or these columns, of up to `largest` bytes.

    Sizes are checked before anything is unpacked, and before texts that are stored once become texts of each row. The
    sizes are those of the pages' headers, by which pyarrow takes memory: the file's footer may have others.
    Raises InputError, ValueError or IndexError.
    """
    file = parquet.ParquetFile(BytesIO(content))
    groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
    columns_of_groups = [group.column(number) for group in groups for number in range(group.num_columns)]
    values = sum(abs(column.num_values) for column in columns_of_groups)
    size = max(sum(size for column in columns_of_groups for size in page_sizes(content, column)), 8 * values)
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


def page_sizes(content: bytes, column: parquet.ColumnChunkMetaData) -> Iterator[int]:
    """Yield how many bytes each page of a column of a row group takes, unpacked. Raises ValueError or IndexError."""
    at = min(filter(None, [column.dictionary_page_offset, column.data_page_offset]))
    stop = at + column.total_compressed_size
    while at < stop:
        fields, at = _read_struct(content, at)
        (kind, unpacked), (other_kind, packed) = (fields.get(number, (0, 0)) for number in (2, 3))
        if not kind == other_kind == _I32 or not (0 <= unpacked < 2**31 and 0 <= packed < 2**31):
            raise ValueError(f"the header of a page has no sizes: {shorten(fields)}")
        yield unpacked
        at += packed


_I32, _INTEGERS_OF_THRIFT, _TRUTH_VALUES, _BINARY, _STRUCT = 5, (4, 5, 6), (1, 2), 8, 12


def _read_struct(content: bytes, at: int) -> tuple[dict[int, tuple[int, int]], int]:
    """Return the type and value of each field of a struct in Thrift's compact protocol by its number, and its end.

    The value of a text or a struct is 0. Raises ValueError for a field that comes twice or that no page's header has.
    """
    fields, number = dict[int, tuple[int, int]](), 0
    while head := content[at]:
        at, kind, value = at + 1, head & 15, 0
        if head >> 4:
            number += head >> 4
        else:
            number, at = _read_integer(content, at)
        if kind in _INTEGERS_OF_THRIFT:
            value, at = _read_integer(content, at)
        elif kind == _BINARY:
            length, at = _read_varint(content, at)
            at += length
        elif kind == _STRUCT:
            _, at = _read_struct(content, at)
        elif kind not in _TRUTH_VALUES:
            raise ValueError(f"found a field of type {kind} in the header of a page")
        if number in fields:
            raise ValueError(f"the field {number} comes twice in the header of a page")
        fields[number] = kind, value
    return fields, at + 1


def _read_integer(content: bytes, at: int) -> tuple[int, int]:
    value, at = _read_varint(content, at)
    return (value >> 1) ^ -(value & 1), at


def _read_varint(content: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte, at = content[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("found an integer of more than 64 bits in the header of a page")


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
