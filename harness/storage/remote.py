"""A sweep's files at an address that pyarrow knows, such as s3://bucket/prefix/sweep, named as in its directory.

The address is what processes share; each works in a directory of its own, and pulls and pushes files one by one. A file
is there whole or not at all, on both sides: it is written under a temporary name, then moved. One that was exchanged
has the same size and time on both sides, so that only what differs goes over the net; clocks of two machines are never
compared. (Two writes of one size within a second look alike to who reads in between, where a server's times are whole
seconds.) Rows of epochs go before checkpoints, result.json goes last; names that begin with a dot are each side's own.
An exchange adds and replaces, and removes nothing.

Credentials come from the environment alone; AWS_ENDPOINT_URL, or `?endpoint_override=HOST:PORT&scheme=http`, names a
server that is not Amazon's.
"""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import pyarrow
from pyarrow.fs import FileInfo, FileSelector, FileSystem, FileType

from harness.errors import InputError, SettingError
from harness.masking import masked
from harness.storage.files import write_atomically
from harness.storage.folder import EPOCHS, RESULT

PATIENCE = 60.0
"""Seconds for which a storage may be away before that is a failure."""
_TRIES = 5  # to read a file that others replace

T = TypeVar("T")
Wanted = Callable[[str], bool]


class StorageError(InputError):
    """A storage that cannot be used; the message names its address, masked, and the cause."""


def is_address(place: object) -> bool:
    """Whether a place is an address, and no path."""
    return isinstance(place, str) and "://" in place


def joined(uri: str, name: str) -> str:
    """The address of what is called `name` below another one."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


def check(uri: str, writes: bool = True) -> None:
    """Raise StorageError where an address cannot be listed, or, with `writes`, written and read; SettingError where it
    holds a secret, which would be stored and sent with it."""
    if masked(uri) != uri:
        raise SettingError("--results-dir", masked(uri), "an address without secrets, which the environment holds")
    probe, content = f".probe-{_me()}", os.urandom(8)
    try:
        _listed(uri, "")
        if writes:
            write(uri, probe, content)
            found = read(uri, probe)
            remove(uri, probe)
            if found != content:
                raise OSError("what was written is not what is read")
    except (OSError, pyarrow.ArrowException) as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StorageError(masked(f"{uri} cannot be used: {cause}")) from error


def pull(uri: str, directory: Path, below: str = "", wanted: Wanted = lambda name: True) -> set[str]:
    """Make the files below `below` at the address in a directory that has not the same; returns which there are.

    wanted: says of a file's name, from the address on, whether it is. Raises OSError.
    """
    fs, _ = _opened(uri)
    found = _listed(uri, below)
    for name in sorted(found, key=_order):
        path, info = directory / name, found[name]
        if not wanted(name) or _is_same(info, path):
            continue
        with suppress(FileNotFoundError):  # removed since it was listed
            content, info = _read(fs, info.path)
            write_atomically(path, _writer(content, info))
    return set(found)


def push(directory: Path, uri: str, below: str = "", wanted: Wanted = lambda name: True) -> None:
    """Make the files below `below` in a directory at the address, where that has not the same. wanted: as in `pull`.

    Raises OSError.
    """
    fs, base = _opened(uri)
    there = _listed(uri, below)
    names = (path.relative_to(directory).as_posix() for path in (directory / below).rglob("*") if path.is_file())
    for name in sorted((name for name in names if _is_shared(name) and wanted(name)), key=_order):
        path = directory / name
        if name in there and _is_same(there[name], path):
            continue
        before = path.stat()
        info = _write(fs, f"{base}/{name}", path.read_bytes())
        if path.stat().st_mtime_ns == before.st_mtime_ns:
            os.utime(path, ns=(info.mtime_ns, info.mtime_ns))


def read(uri: str, name: str) -> bytes | None:
    """A file's content, None where there is none. Raises OSError."""
    fs, base = _opened(uri)
    try:
        return _read(fs, f"{base}/{name}")[0]
    except FileNotFoundError:
        return None


def write(uri: str, name: str, content: bytes) -> None:
    """Write a file. Raises OSError."""
    fs, base = _opened(uri)
    _write(fs, f"{base}/{name}", content)


def remove(uri: str, name: str) -> None:
    """Remove a file that may be there. Raises OSError."""
    fs, base = _opened(uri)
    if exists(uri, name):
        fs.delete_file(f"{base}/{name}")


def remove_folder(uri: str, name: str) -> None:
    """Remove a folder that may exist, with its files. Raises OSError."""
    fs, base = _opened(uri)
    with suppress(FileNotFoundError):
        fs.delete_dir(f"{base}/{name}")


def exists(uri: str, name: str) -> bool:
    """Whether there is such a file. Raises OSError."""
    fs, base = _opened(uri)
    return fs.get_file_info(f"{base}/{name}").type == FileType.File


def patiently(action: Callable[[], T]) -> T:
    """What `action` returns, tried again for `PATIENCE` seconds where the storage is away. Raises OSError."""
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
def _opened(uri: str) -> tuple[Any, str]:
    """A file system, and the path in it."""
    fs, base = FileSystem.from_uri(uri)
    return fs, base.rstrip("/")


def _listed(uri: str, below: str) -> dict[str, FileInfo]:
    """The files that are shared, by name."""
    fs, base = _opened(uri)
    where = FileSelector(f"{base}/{below}".rstrip("/"), allow_not_found=True, recursive=True)
    files = {info.path.removeprefix(f"{base}/"): info for info in fs.get_file_info(where) if info.is_file}
    return {name: info for name, info in files.items() if _is_shared(name)}


def _is_shared(name: str) -> bool:
    """Not what is one side's own, nor what leads elsewhere: '..' begins with a dot, an absolute path with nothing."""
    return all(part and not part.startswith(".") for part in name.split("/"))


def _order(name: str) -> tuple[bool, bool, str]:
    last = name.rpartition("/")[2]
    return last == RESULT, last != EPOCHS, name


def _is_same(info: FileInfo, path: Path) -> bool:
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    return (found.st_size, found.st_mtime_ns) == (info.size, info.mtime_ns)


def _read(fs: Any, path: str) -> tuple[bytes, FileInfo]:
    """A file's content and what is known of it; parts of two versions are never put together."""
    info = fs.get_file_info(path)
    for _ in range(_TRIES):
        if not info.is_file:
            raise FileNotFoundError(path)
        with fs.open_input_stream(path) as stream:
            content = stream.read()
        before, info = info, fs.get_file_info(path)
        if (before.size, before.mtime_ns) == (info.size, info.mtime_ns) and len(content) == info.size:
            return content, info
    raise OSError(f"{path} changes while it is read")


def _write(fs: Any, path: str, content: bytes) -> FileInfo:
    """Under a temporary name first: pyarrow ends an upload that was broken off as if it were whole."""
    parent, _, name = path.rpartition("/")
    temporary = f"{parent}/.{name}.{_me()}.tmp"
    try:
        stream = fs.open_output_stream(temporary)
    except FileNotFoundError:  # where directories are more than a part of names
        fs.create_dir(parent, recursive=True)
        stream = fs.open_output_stream(temporary)
    with stream:
        stream.write(content)
    fs.move(temporary, path)
    return fs.get_file_info(path)


def _writer(content: bytes, info: FileInfo) -> Callable[[Path], None]:
    def write(temporary: Path) -> None:
        temporary.write_bytes(content)
        os.utime(temporary, ns=(info.mtime_ns, info.mtime_ns))

    return write


def _me() -> str:
    return f"{socket.gethostname()}.{os.getpid()}"
