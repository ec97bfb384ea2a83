"""Read Parquet columns and encoded images; every error names the file, the column, what was found, what is allowed."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.common.errors import InputError, error_line, shorten

if TYPE_CHECKING:
    from PIL.Image import Image
    from pyarrow.parquet import ParquetFile

_ALWAYS_ALLOWED, _MOST_TIMES = 2**30, 100  # bytes of images, unpacked; for each byte of their files

_SHALLOW = {"1": "L", "L": "L", "P": "RGB", "LA": "L", "PA": "RGB", "RGB": "RGB", "RGBA": "RGB", "RGBX": "RGB",
            "CMYK": "RGB", "YCbCr": "RGB", "HSV": "RGB", "LAB": "RGB", "La": "L", "RGBa": "RGB"}  # fmt: skip
"""Pillow's modes of 8 bits a channel, and the one of each that networks see, once it is opaque."""


_NO_PIXELS = {"EPS", "MPEG"}
"""Formats that Pillow opens and that are no images of pixels; another program would have to draw them."""


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


@cache
def image_endings() -> frozenset[str]:
    """Return the endings of the files that Pillow reads as images, such as `.png`."""
    from PIL import Image
    from PIL.ImageFile import StubImageFile

    endings = Image.registered_extensions()
    factories = {name: factory for name, (factory, _) in Image.OPEN.items() if name not in _NO_PIXELS}
    stubs = {name for name, kind in factories.items() if isinstance(kind, type) and issubclass(kind, StubImageFile)}
    return frozenset(ending for ending, name in endings.items() if name in factories.keys() - stubs)


def is_animated(image: "Image") -> bool:
    """Return whether an image has several frames or pages; the second one of an MPO file, as phones write, is none."""
    return getattr(image, "is_animated", False) and image.format != "MPO"


def is_transparent(image: "Image") -> bool:
    """Return whether a pixel of an image is not opaque."""
    return image.has_transparency_data and bool((np.asarray(image.convert("RGBA"))[..., 3] < 255).any())


def convert(image: "Image", where: object, mode: str | None = None) -> np.ndarray:
    """Return an image's pixels as uint8 [H, W] or [H, W, 3], over white where they are transparent.

    mode: 'L' or 'RGB'; None keeps colour where there is some. Raises InputError for an image of another depth than
    8 bits a channel.
    """
    if image.mode not in _SHALLOW:
        raise InputError(f"{where}: found pixels of Pillow's mode {image.mode}, allowed: 8 bits a channel")
    mode = mode or _SHALLOW[image.mode]
    if is_transparent(image):
        from PIL import Image as Images

        image = Images.alpha_composite(Images.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return np.asarray(image.convert(mode))


def require_memory(where: object, count: int, size: int) -> None:
    """Raise InputError if images need far more memory than their files have bytes: a stranger's may repeat one image.

    count: bytes in memory. size: of the files.
    """
    if count > (largest := max(_ALWAYS_ALLOWED, _MOST_TIMES * size)):
        raise InputError(f"{where}: found {count:,} bytes of images, unpacked, allowed in so small files: {largest:,}")


def read_parquet(path: Path, image_column: str) -> tuple[Iterator[tuple[str, BytesIO]], np.ndarray]:
    """Return the encoded images of a file, each with its name for errors, and the column `label`: integers or texts.

    An image is bytes or {bytes, path}, as Hugging Face writes them. Equal ones lie in memory once. Raises InputError,
    before anything is unpacked that needs far more memory than the file has bytes.
    """
    from pyarrow import parquet, types

    with name_errors(path):
        file = parquet.ParquetFile(path)
    metadata, schema, size = file.metadata, file.schema_arrow, path.stat().st_size
    for name in (image_column, "label"):
        if name not in schema.names:
            columns = ", ".join(schema.names) or "none"
            raise InputError(f"{path}: column {name!r}: found the columns {columns}, allowed: {image_column}, label")
    kind, labels = schema.field(image_column).type, schema.field("label").type
    is_struct = types.is_struct(kind) and kind.get_field_index("bytes") >= 0
    encoded = kind.field("bytes").type if is_struct else kind
    if not (types.is_binary(encoded) or types.is_large_binary(encoded)):
        allowed = "encoded images such as PNG, as bytes or {bytes, path}"
        raise InputError(f"{path}: column {image_column!r}: found {kind}, allowed: {allowed}")
    are_texts = types.is_string(labels) or types.is_large_string(labels)
    if not (types.is_integer(labels) or are_texts):
        raise InputError(f"{path}: column 'label': found {labels}, allowed: integers or texts")
    stored = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    require_memory(path, max(stored, 8 * metadata.num_rows), size)
    column = f"{image_column}.bytes" if is_struct else image_column
    with name_errors(path):
        file = parquet.ParquetFile(path, read_dictionary=[column, *(["label"] if are_texts else [])])
        return _images(file, path, column), _labels(file, path)


def _images(file: "ParquetFile", path: Path, column: str) -> Iterator[tuple[str, BytesIO]]:
    """Yield the encoded images. column: `image`, or `image.bytes`."""
    name, _, inner = column.partition(".")
    with name_errors(path):
        groups = (file.read_row_group(number, columns=[column]) for number in range(file.num_row_groups))
        chunks = (chunk.field(inner) if inner else chunk for group in groups for chunk in group[name].chunks)
        for row, value in enumerate(value for chunk in chunks for value in chunk):
            _refuse_null(path, name, row, not value.is_valid)
            yield f"{path}, row {row}", BytesIO(value.as_py())


def _labels(file: "ParquetFile", path: Path) -> np.ndarray:
    """Return the column `label`: integers, or texts, of which NumPy has each as long as the longest."""
    labels = file.read(columns=["label"])["label"].combine_chunks()
    if labels.null_count:
        _refuse_null(path, "label", labels.is_null().to_pylist().index(True), True)
    if not hasattr(labels, "dictionary"):
        return labels.to_numpy(zero_copy_only=False).astype(np.int64)
    texts = labels.dictionary.to_pylist()
    count = 4 * max(map(len, texts), default=0) * (len(texts) + len(labels))
    require_memory(path, count, path.stat().st_size)
    return np.array(texts)[labels.indices.to_numpy()]


def _refuse_null(path: Path, column: str, row: int, is_null: bool) -> None:
    if is_null:
        raise InputError(f"{path}: column {column!r}, row {row}: found null, allowed: a value in every row")


def check_labels(labels: np.ndarray, where: object) -> np.ndarray:
    """Return labels as an array of integers or texts [N]; [N, 1] is taken, too. Raises InputError."""
    flat = labels[:, 0] if labels.ndim == 2 and labels.shape[1] == 1 else labels
    if flat.ndim != 1 or flat.dtype.kind not in "iuU":
        found = f"{labels.dtype} {list(labels.shape)}, such as {shorten(labels.ravel()[:3].tolist())}"
        raise InputError(f"{where}: found {found}, allowed: integers or texts [N]")
    return flat
