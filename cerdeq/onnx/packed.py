"""The content of a file that may be packed by gzip: its size is checked before anything is read or unpacked."""

import gzip
import io
import os
import zlib
from pathlib import Path

_GZIP, _LFS = b"\x1f\x8b", b"version https://git-lfs.github.com/spec/"


def read_stored(path: Path, largest: int) -> bytes:
    """Return the bytes of a file as they are stored.

    Raises OSError if it cannot be read, and ValueError if it is no file, has more than `largest` bytes, or only points
    to a file that Git LFS stores elsewhere.
    """
    path.stat()  # names what is missing
    if not path.is_file():
        raise ValueError("not a file")
    with path.open("rb") as file:
        refuse_size(os.fstat(file.fileno()).st_size, largest)
        content = file.read(largest)
    if content.startswith(_LFS):
        raise ValueError("this is a Git LFS pointer, not the file itself: run `git lfs pull`")
    return content


def unpack(content: bytes, largest: int) -> bytes:
    """Return content, unpacked if it is packed by gzip. Raises ValueError if it is damaged or has too many bytes."""
    if not content.startswith(_GZIP):
        return content
    try:
        with gzip.open(io.BytesIO(content)) as file:
            unpacked = file.read(largest + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot be unpacked: {error}") from None
    if len(unpacked) > largest:
        raise ValueError(f"found more than {largest / 1e6:.0f} MB when unpacked; allowed: up to that")
    return unpacked


def refuse_size(size: int, largest: int) -> None:
    """Raise ValueError if `size` bytes are too many."""
    if size > largest:
        raise ValueError(f"found {size / 1e6:.0f} MB, allowed: up to {largest / 1e6:.0f} MB")
