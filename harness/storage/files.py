"""Write files atomically: under a temporary name, then renamed."""

import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from harness.common.errors import InputError, error_line

T = TypeVar("T")


LARGEST, LARGEST_TEXT = 4 * 2**30, 64 * 2**20
"""How many bytes a file of tensors or a table may have; one of text or JSON."""


class DamagedFileError(InputError):
    """A file that is missing or damaged; the message names it."""


def parse_json(path: Path, parse: Callable[[Any], Any]) -> Any:
    """Return `parse` of the JSON in a file. Raises DamagedFileError if it is missing, not JSON, or `parse` fails."""
    return parse_file(path, lambda content: parse(load_json(content)), read_bytes(path, LARGEST_TEXT))


def parse_file(path: Path, parse: Callable[[bytes], T], content: bytes | None = None) -> T:
    """Return `parse` of a file's content. content: of the file, if it has been read. Raises DamagedFileError."""
    content = read_bytes(path) if content is None else content
    try:
        return parse(content)
    except Exception as error:  # a flipped byte may raise anything
        raise DamagedFileError(f"{path} cannot be read: {error_line(error)}") from error


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """Return the content of a file of at most so many bytes. Raises DamagedFileError."""
    try:
        if not path.is_file():
            raise FileNotFoundError("No such file")
        if (size := path.stat().st_size) > largest:
            raise ValueError(f"found {size:,} bytes, allowed: at most {largest:,}")
        return path.read_bytes()
    except (OSError, ValueError, MemoryError) as error:
        raise DamagedFileError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def load_json(content: bytes) -> Any:
    """Return the value of a JSON text in UTF-8.

    Raises ValueError for text that is none, for NaN, infinities, and numbers too large for a float. Raises
    RecursionError for lists too deep.
    """
    return json.loads(content.decode(), parse_constant=_refuse_number, parse_float=_finite)


def _finite(number: str) -> float:
    value = float(number)
    return value if math.isfinite(value) else _refuse_number(number)


def _refuse_number(number: str) -> NoReturn:
    raise ValueError(f"{number} is no number of JSON that a float holds")


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` on a new file beside `path`, flush it to disk, then rename it to `path`.

    Raises OSError, which names the path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = None
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o644)  # it was made for its owner alone
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_unfinished(directory: Path) -> None:
    """Remove temporary files of writers that were killed. Only for the one process that writes to the directory."""
    for path in directory.glob(".*.tmp"):
        path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    write_bytes(path, text.encode())


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, in place of half a line that a killed process left. Raises OSError with the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "a+b") as file:
            file.seek(max(0, file.tell() - 1))
            if file.read() not in (b"", b"\n"):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def read_text(path: Path) -> str:
    """Return the content of a text file, damaged characters as U+FFFD. Raises DamagedFileError as `read_bytes`."""
    return read_bytes(path, LARGEST_TEXT).decode(errors="replace")


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically. Raises ValueError for NaN and infinities, which JSON does not have."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def make_directory(directory: Path) -> None:
    """Make a directory and its parents. Raises InputError if that fails."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"the directory {directory} cannot be made: {error.strerror}") from None
