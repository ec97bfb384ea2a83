"""Files of tensors and plain values that only this project reads again."""

import errno
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import torch

from cerdeq.bounds.memory import is_out_of_memory
from harness.errors import first_words
from harness.storage.files import DamagedFileError, write_atomically

T = TypeVar("T")


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values atomically. Raises OSError."""

    def save(temporary: Path) -> None:
        try:
            torch.save(content, temporary)
        except RuntimeError as error:  # torch raises it for a full disk, too
            raise OSError(errno.EIO, first_words(error)) from error

    write_atomically(path, save)


def read_tensors(path: Path, device: torch.device, parse: Callable[[dict[str, Any]], T]) -> T:
    """Return `parse` of what `write_tensors` wrote, on the device; no code in the file runs.

    Raises DamagedFileError, also for a wrong checksum, which torch does not check; OSError if the file cannot be read.
    """
    content = BytesIO(path.read_bytes())
    try:
        with zipfile.ZipFile(content) as archive:
            if (name := archive.testzip()) is not None:
                raise ValueError(f"{name} does not match its checksum")
        content.seek(0)
        return parse(torch.load(content, map_location=device, weights_only=True))
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise DamagedFileError(f"{path} cannot be read: {type(error).__name__}: {first_words(error)}") from error
