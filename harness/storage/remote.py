"""A sweep's files at an address that pyarrow knows, such as s3://bucket/prefix/sweep, named as in its directory.

Each process works in a local directory, and pulls and pushes files one by one. Both sides write under a temporary
name, then move it. After an exchange a file has the same size and time on both sides, so that only differences are
transferred; clocks of two machines are never compared. (If a server's times are whole seconds, a reader may miss the
second of two writes of one size within a second.) Rows of epochs go before checkpoints, and result.json last. Names
that begin with a dot stay on their side. An exchange adds and replaces files, and removes none.

Credentials come from the environment alone; AWS_ENDPOINT_URL, or `?endpoint_override=HOST:PORT&scheme=http`, names a
server that is not Amazon's.
"""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from secrets import token_hex
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import pyarrow
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from harness.common.errors import InputError, first_words
from harness.common.masking import mask_secrets
from harness.storage.files import write_bytes
from harness.storage.folder import EPOCHS, RESULT

PATIENCE = 60.0
"""The seconds that `retry_storage` waits for a storage that is away."""
_TRIES = 5  # to read a file that others replace

T = TypeVar("T")
Filter = Callable[[str], bool]


class StorageError(InputError):
    """A storage that cannot be used; the message names its address, masked, and the cause."""


def join(uri: str, name: str) -> str:
    """Return the address of `name` below another address."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


def check_address(uri: str, writes: bool = True) -> None:
    """Raise StorageError if an address cannot be listed or, with `writes`, written.

    Raises SettingError for an address with a secret, which would be stored with it.
    """
    if mask_secrets(uri) != uri:
        raise InputError(
            f"--results-dir: remove the password from {mask_secrets(uri)}; set it in environment variables"
        )
    try:
        _list_files(uri, "")
        if writes:
            probe = f".probe-{token_hex(8)}"
            write(uri, probe, b"")
            remove(uri, probe)
    except (OSError, pyarrow.ArrowException) as error:
        cause = first_words(error) or type(error).__name__
        raise StorageError(mask_secrets(f"{uri} cannot be used: {cause}")) from error


def pull(uri: str, directory: Path, below: str = "", wanted: Filter = lambda name: True) -> set[str]:
    """Copy files below `below` at the address to a directory, if they differ; return the names of all of them.

    wanted: returns True for the names to copy, relative to the address. Raises OSError.
    """
    files = _list_files(uri, below)
    for name in sorted(filter(wanted, files), key=_order):
        path = directory / name
        if _is_same(files[name], path):
            continue
        with suppress(FileNotFoundError):  # removed since it was listed
            content, info = _read(uri, name)
            write_bytes(path, content)
            os.utime(path, ns=(info.mtime_ns, info.mtime_ns))
    return set(files)


def push(directory: Path, uri: str, below: str = "", wanted: Filter = lambda name: True) -> None:
    """Copy files below `below` in a directory to the address, if they differ. wanted: as in `pull`.

    Raises OSError.
    """
    remote_files = _list_files(uri, below)
    names = (path.relative_to(directory).as_posix() for path in (directory / below).rglob("*") if path.is_file())
    for name in sorted((name for name in names if _is_shared(name) and wanted(name)), key=_order):
        path = directory / name
        if name not in remote_files or not _is_same(remote_files[name], path):
            info = write(uri, name, path.read_bytes())
            os.utime(path, ns=(info.mtime_ns, info.mtime_ns))


def read(uri: str, name: str) -> bytes | None:
    """Return a file's content, None if it does not exist. Raises OSError."""
    try:
        return _read(uri, name)[0]
    except FileNotFoundError:
        return None


def write(uri: str, name: str, content: bytes) -> FileInfo:
    """Write a file and return its information. Raises OSError.

    It is written under a temporary name, then moved: pyarrow completes an interrupted upload as if it were complete.
    """
    fs, base = _open(uri)
    path = PurePosixPath(base, name)
    temporary = str(path.with_name(f".{path.name}.{token_hex(8)}.tmp"))
    try:
        stream = fs.open_output_stream(temporary)
    except FileNotFoundError:  # a file system with directories
        fs.create_dir(str(path.parent), recursive=True)
        stream = fs.open_output_stream(temporary)
    with stream:
        stream.write(content)
    fs.move(temporary, str(path))
    return fs.get_file_info(str(path))


def remove(uri: str, name: str) -> None:
    """Remove a file, or a folder with its files, that may exist. Raises OSError."""
    fs, base = _open(uri)
    info = fs.get_file_info(f"{base}/{name}")
    if info.is_file:
        fs.delete_file(info.path)
    elif info.type == FileType.Directory:
        fs.delete_dir(info.path)


def retry_storage(action: Callable[[], T]) -> T:
    """Return what `action` returns, and retry for `PATIENCE` seconds after an OSError. Raises OSError."""
    until, pause = time.monotonic() + PATIENCE, 1.0
    while True:
        try:
            return action()
        except OSError:
            if time.monotonic() + pause > until:
                raise
            time.sleep(pause)
            pause *= 2


@lru_cache(maxsize=16)
def _open(uri: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path in it."""
    fs, base = FileSystem.from_uri(uri)
    return fs, base.rstrip("/")


def _list_files(uri: str, below: str) -> dict[str, FileInfo]:
    """Return the shared files by name."""
    fs, base = _open(uri)
    selector = FileSelector(f"{base}/{below}".rstrip("/"), allow_not_found=True, recursive=True)
    files = {info.path.removeprefix(f"{base}/"): info for info in fs.get_file_info(selector) if info.is_file}
    return {name: info for name, info in files.items() if _is_shared(name)}


def _is_shared(name: str) -> bool:
    """Return False for names with a part that is empty or begins with a dot, such as '..' and absolute paths."""
    return all(part and not part.startswith(".") for part in name.split("/"))


def _order(name: str) -> tuple[bool, bool, str]:
    last = name.rpartition("/")[2]
    return last == RESULT, last != EPOCHS, name


def _is_same(info: FileInfo, path: Path) -> bool:
    try:
        status = path.stat()
    except FileNotFoundError:
        return False
    return (status.st_size, status.st_mtime_ns) == (info.size, info.mtime_ns)


def _read(uri: str, name: str) -> tuple[bytes, FileInfo]:
    """Return a file's content and information, never parts of two versions."""
    fs, base = _open(uri)
    info = fs.get_file_info(f"{base}/{name}")
    for _ in range(_TRIES):
        if not info.is_file:
            raise FileNotFoundError(info.path)
        with fs.open_input_stream(info.path) as stream:
            content = stream.read()
        before, info = info, fs.get_file_info(info.path)
        if (before.size, before.mtime_ns) == (info.size, info.mtime_ns) and len(content) == info.size:
            return content, info
    raise OSError(f"{info.path} changes while it is read")
