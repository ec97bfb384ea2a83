"""Read Parquet columns and encoded images; every error names the file, the column, what was found, what is allowed."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.common.errors import InputError, error_line, shorten

if TYPE_CHECKING:
    from PIL.Image import Image

_SHALLOW = {"1": "L", "L": "L", "P": "RGB", "LA": "L", "PA": "RGB", "RGB": "RGB", "RGBA": "RGB", "RGBX": "RGB",
            "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB", "La": "L", "RGBa": "RGB"}  # fmt: skip
"""Pillow's modes of 8 bits a channel, and the one of each that networks see: without transparency."""


@contextmanager
def name_errors(where: object) -> Iterator[None]:
    """Turn any exception inside into an InputError that names `where`."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{where}: cannot be read: {error_line(error)}") from error


@contextmanager
def open_image(where: object, file: Path | BytesIO) -> Iterator["Image"]:
    """Open an encoded image; an error inside names `where`. Raises InputError."""
    from PIL import Image, UnidentifiedImageError  # here, since machines that train single trials may lack it

    try:
        with name_errors(where), Image.open(file) as image:
            yield image
    except InputError as error:
        if not isinstance(error.__cause__, UnidentifiedImageError):
            raise
        start = file.getvalue()[:8] if isinstance(file, BytesIO) else file.open("rb").read(8)
        raise InputError(f"{where}: found {start!r}..., allowed: an encoded image, such as PNG") from None


def convert(image: "Image", where: object, mode: str | None = None) -> np.ndarray:
    """Return an image's pixels as uint8 [H, W] or [H, W, 3]. mode: 'L' or 'RGB'; None keeps colour where there is some.

    Raises InputError for an image of another depth than 8 bits a channel.
    """
    if image.mode not in _SHALLOW:
        raise InputError(f"{where}: found pixels of Pillow's mode {image.mode}, allowed: 8 bits a channel")
    return np.asarray(image.convert(mode or _SHALLOW[image.mode]))


def read_parquet(path: Path, image_column: str) -> tuple[list[tuple[str, BytesIO]], np.ndarray]:
    """Return the encoded images of a file, each with its name for errors, and the column `label`: integers or texts.

    An image is bytes or {bytes, path}, as Hugging Face writes them. Raises InputError.
    """
    import pyarrow.compute
    import pyarrow.parquet
    import pyarrow.types as types

    with name_errors(path):
        table = pyarrow.parquet.read_table(path)
    for name in (image_column, "label"):
        if name not in table.column_names:
            columns = ", ".join(table.column_names) or "none"
            raise InputError(f"{path}: column {name!r}: found the columns {columns}, allowed: {image_column}, label")
    column, labels = table[image_column], table["label"]
    if types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        column = pyarrow.compute.struct_field(column, "bytes")
    if not (types.is_binary(column.type) or types.is_large_binary(column.type)):
        found, allowed = table.schema.field(image_column).type, "encoded images such as PNG, as bytes or {bytes, path}"
        raise InputError(f"{path}: column {image_column!r}: found {found}, allowed: {allowed}")
    if not (types.is_integer(labels.type) or types.is_string(labels.type) or types.is_large_string(labels.type)):
        raise InputError(f"{path}: column 'label': found {labels.type}, allowed: integers or texts")
    for name, values in ((image_column, column), ("label", labels)):
        if values.null_count:
            row = values.is_null().to_pylist().index(True)
            raise InputError(f"{path}: column {name!r}, row {row}: found null, allowed: a value in every row")
    encoded = [(f"{path}, row {row}", BytesIO(content)) for row, content in enumerate(column.to_pylist())]
    return encoded, np.array(labels.to_pylist())


def check_labels(labels: np.ndarray, where: object) -> np.ndarray:
    """Return labels as an array of integers or texts [N]; [N, 1] is taken, too. Raises InputError."""
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or flat.dtype.kind not in "iuU":
        found = f"{labels.dtype} {list(labels.shape)}, such as {shorten(labels.ravel()[:3].tolist())}"
        raise InputError(f"{where}: found {found}, allowed: integers or texts [N]")
    return flat
