"""The table of a network's verdicts, a row for each image: read, and compared with the data set's labels."""

from collections.abc import Iterator
from csv import reader
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv, parquet
from torch import Tensor

from harness.common import names
from harness.common.errors import InputError, error_line, require, shorten
from harness.entries.manifest import check_text
from harness.storage.files import LARGEST_TEXT, read_bytes
from harness.storage.parquet import unpack_table

VERDICTS = (names.CERTIFIED, names.FALSIFIED, names.UNKNOWN, names.TIMEOUT, names.MISCLASSIFIED)
_TEXTS = ("verdict", "stage", "verifier")
_COLUMNS = pa.schema([
    *((name, pa.int64()) for name in ("index", "label", "prediction")),
    *((name, pa.string()) for name in _TEXTS),
    *((name, pa.float64()) for name in ("seconds", "margin")),
])  # fmt: skip


def read_entry_table(path: Path, labels: Tensor, classes: int) -> pd.DataFrame:
    """Return the rows of a Parquet or CSV file in the order of the images.

    labels: of all images that need a row. Raises InputError for another number of rows, an image twice, other labels
    than these, and values that do not fit together.
    """
    content = read_bytes(path, LARGEST_TEXT)
    try:
        table = (_read_parquet if path.suffix == ".parquet" else _read_csv)(content, len(labels))
        rows = table.select(_COLUMNS.names).cast(_COLUMNS)
        if empty := [name for name in _COLUMNS.names[:4] if rows[name].null_count]:
            raise InputError(f"{empty[0]}: found an empty cell, allowed: a value for each image")
        verdicts = rows.to_pandas().fillna({name: "" for name in _TEXTS})
        for problem in _problems(verdicts, labels.numpy(), classes):
            raise InputError(problem)
    except InputError as error:
        raise InputError(f"{path.name}: {error}") from None
    except Exception as error:  # damaged files may raise anything
        raise InputError(f"{path.name}: cannot be read: {error_line(error)[:300]}") from None
    return verdicts.sort_values("index", ignore_index=True)


def _read_parquet(content: bytes, images: int) -> pa.Table:
    """Return a Parquet file's table; its columns and sizes are checked before anything is unpacked."""
    file = parquet.ParquetFile(BytesIO(content))
    _check_columns(file.schema_arrow.names)
    rows = file.metadata.num_rows
    require("rows", rows, rows == images, f"{images}, one for each image")
    return unpack_table(content, largest=LARGEST_TEXT)


def _read_csv(content: bytes, images: int) -> pa.Table:
    """Return a CSV file's table; its columns are checked before the other lines are read."""
    _check_columns(next(reader([content.partition(b"\n")[0].decode("utf-8-sig")]), []))
    options = csv.ConvertOptions(column_types=_COLUMNS, strings_can_be_null=True, null_values=[""])
    table = csv.read_csv(BytesIO(content), csv.ReadOptions(use_threads=False), convert_options=options)
    require("rows", table.num_rows, table.num_rows == images, f"{images}, one for each image")
    return table


def _check_columns(found: list[str]) -> None:
    """Raise InputError unless these are the columns, in any order."""
    if sorted(found) != sorted(_COLUMNS.names):
        raise InputError(f"found the columns {shorten(', '.join(found))}, allowed: {', '.join(_COLUMNS.names)}")


def _problems(rows: pd.DataFrame, labels: np.ndarray, classes: int) -> Iterator[str]:
    """Yield what is wrong with rows."""
    if (twice := rows["index"].duplicated()).any():
        yield f"image {rows['index'][twice].iloc[0]} has two rows"
    if len(others := rows["index"][~rows["index"].between(0, len(labels) - 1)]):
        yield f"found the image {others.iloc[0]}, allowed: 0 to {len(labels) - 1}"
    yield from _of_rows(rows, rows["label"] != labels[rows["index"]], "label", "the data set's label")
    yield from _of_rows(rows, ~rows["prediction"].between(0, classes - 1), "prediction", f"0 to {classes - 1}")
    yield from _of_rows(rows, ~rows["verdict"].isin(VERDICTS), "verdict", ", ".join(VERDICTS))
    for name in ("stage", "verifier"):
        for text in filter(None, rows[name].unique()):
            check_text(name, text)
    is_certified, is_wrong = rows["verdict"] == names.CERTIFIED, rows["prediction"] != rows["label"]
    is_other = is_wrong != (rows["verdict"] == names.MISCLASSIFIED)
    yield from _of_rows(
        rows, is_other, "verdict", f"{names.MISCLASSIFIED} where the prediction is wrong, and only there"
    )
    yield from _of_rows(rows, is_certified & (rows["verifier"] == ""), "verifier", "the verifier and its version")
    for name in ("seconds", "margin"):
        yield from _of_rows(rows, np.isinf(rows[name]), name, "a finite number, or nothing")
    yield from _of_rows(rows, rows["seconds"] < 0, "seconds", "at least 0, or nothing")
    yield from _of_rows(rows, is_certified & (rows["margin"] <= 0), "margin", "above 0 where an image is certified")


def _of_rows(rows: pd.DataFrame, are_wrong: pd.Series, name: str, allowed: str) -> Iterator[str]:
    """Yield what the first wrong row has in a column."""
    for _, row in rows[are_wrong].head(1).iterrows():
        yield f"image {row['index']}: {name}: found {row[name]!r}, allowed: {allowed}"
