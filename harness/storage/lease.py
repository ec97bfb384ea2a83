"""One run at a time in a sweep's directory or at an address: a lock file that names its holder.

In a directory the file is locked, too, and the lock goes with the process. On file systems without locks and at
addresses the file alone counts: a process of this machine that has died is replaced at once, and a file of another
machine whose run has died must be deleted by hand.
"""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from harness.errors import InputError
from harness.masking import mask_secrets
from harness.storage import remote
from harness.storage.files import make_directory

LOCK = ".lock"

Holder = dict[str, Any]


@contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Hold a directory within the block.

    Raises:
        InputError: another run holds it.
    """
    make_directory(directory)
    path = directory / LOCK
    with open(path, "a+b") as file:
        has_lock = _try_lock(file, path)
        file.seek(0)
        owner = _parse(file.read())
        if not (has_lock and owner and owner["host"] == socket.gethostname()):
            _refuse(owner, path)
        _overwrite(file, _describe_self())
        try:
            yield
        finally:
            _overwrite(file, b"")


@contextmanager
def lock_address(uri: str) -> Iterator[None]:
    """Hold an address within the block.

    Raises:
        InputError: another run holds it.
        OSError: the storage cannot be read or written.
    """
    where = mask_secrets(f"{uri}/{LOCK}")
    _refuse(_parse(remote.read(uri, LOCK) or b""), where)
    mine = _describe_self()
    remote.write(uri, LOCK, mine)
    if (owner := remote.read(uri, LOCK)) != mine:  # another run began at the same moment
        _refuse(_parse(owner or b""), where)
    try:
        yield
    finally:
        remote.write(uri, LOCK, b"")


def holder(directory: Path) -> Holder | None:
    """Return who holds a directory: `host`, `process` and `since` (seconds, as time.time); None if nobody does."""
    try:
        with open(directory / LOCK, "rb") as file:
            owner = _parse(file.read())
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except OSError:  # it is locked, or the file system has no locks
        return owner
    return None if owner is None or _has_died(owner) else owner


def _try_lock(file: IO[bytes], path: Path) -> bool:
    """Lock the file; return False on a file system without locks. Raise InputError if another run has the lock."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            _refuse(_parse(path.read_bytes()), path)
            raise InputError(f"another run is writing to {path.parent}") from None
        return False
    return True


def _refuse(owner: Holder | None, path: object) -> None:
    """Raise InputError for a holder that may be alive."""
    if owner is None or _has_died(owner):
        return
    raise InputError(
        f"another run is writing there: {path} names process {owner['process']} on {owner['host']}; "
        "if that run is gone, delete the file"
    )


def _has_died(owner: Holder) -> bool:
    """Return True if the holder was a process of this machine that is gone."""
    if owner["host"] != socket.gethostname():
        return False
    try:
        os.kill(owner["process"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's
        return False
    return owner["process"] == os.getpid()


def _describe_self() -> bytes:
    return json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": time.time()}).encode()


def _parse(text: bytes) -> Holder | None:
    try:
        owner = json.loads(text)
    except ValueError:
        return None
    return owner if isinstance(owner, dict) and owner.keys() >= {"host", "process", "since"} else None


def _overwrite(file: IO[bytes], text: bytes) -> None:
    """Write in place: another file would not be locked."""
    file.truncate(0)
    file.write(text)
    file.flush()
