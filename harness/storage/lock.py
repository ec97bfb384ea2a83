"""One run at a time in a sweep's directory: a lock file that names its holder.

The file is locked, too, and the lock goes with the process. On file systems without locks the file alone counts: a
process of this machine that has died is replaced at once, and a file of another machine whose run has died must be
deleted by hand.
"""

import errno
import fcntl
import json
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from harness.common.errors import InputError
from harness.common.models import LENIENT, Model, validate
from harness.storage.files import LARGEST_TEXT, load_json, make_directory, read_bytes

LOCK = ".lock"

Holder = dict[str, Any]


class _Holder(Model):
    """What a lock file holds."""

    model_config = LENIENT

    host: str
    process: int
    since: float


@contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Hold a directory within the block. Raises InputError if another run holds it.

    The command has refused links that lead out of it. A directory that was made for this is removed if nothing was
    written there.
    """
    is_new = not directory.exists()
    make_directory(directory)
    path = directory / LOCK
    with _open(path) as file:
        is_locked = _try_lock(file)
        owner = _parse(file.read())
        was_killed = is_locked and owner is not None and owner["host"] == socket.gethostname()
        is_removed = os.fstat(file.fileno()).st_nlink == 0  # by a run that has just ended
        # A holder with this process's own number is of before a restart of the machine.
        is_held = owner is not None and owner["process"] != os.getpid() and _may_be_running(owner)
        if is_locked is False or is_removed or (is_held and not was_killed):
            name = f"process {owner['process']} on {owner['host']}" if owner else "no process yet"
            advice = "if that run is gone, delete the file"
            raise InputError(f"another run is writing there: {path} names {name}; {advice}")
        own = {"host": socket.gethostname(), "process": os.getpid(), "since": time.time()}
        _overwrite(file, json.dumps(own).encode())
        try:
            yield
        finally:
            _overwrite(file, b"")
            with suppress(OSError):
                if is_new and list(directory.iterdir()) == [path]:
                    path.unlink()
                    directory.rmdir()


def holder(directory: Path) -> Holder | None:
    """Return who holds a directory: `host`, `process` and `since` (seconds, as time.time); None if nobody does."""
    path = directory / LOCK
    owner = _parse(read_bytes(path, LARGEST_TEXT)) if path.exists() else None
    return owner if owner is not None and _may_be_running(owner) else None


def _open(path: Path) -> IO[bytes]:
    """Open a lock file to be overwritten. Raises InputError unless it is a file, and has no other name."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK  # opening a pipe would wait
    try:
        file = open(path, "r+b", buffering=0, opener=lambda name, _: os.open(name, flags, 0o666))  # noqa: SIM115
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise _not_a_lock(path) from None
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        file.close()
        raise _not_a_lock(path)
    return file


def _not_a_lock(path: Path) -> InputError:
    return InputError(f"{path} cannot be the lock of its directory: found a link or a pipe, expected a file; remove it")


def _try_lock(file: IO[bytes]) -> bool | None:
    """Return True if the file is locked now, False if another run has the lock, None on a file system without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _may_be_running(owner: Holder) -> bool:
    """Return False if the holder was a process of this machine that is gone."""
    if owner["host"] != socket.gethostname():
        return True
    try:
        os.kill(owner["process"], 0)
    except (ProcessLookupError, OverflowError):  # or no number that a process can have
        return False
    except PermissionError:  # another user's
        pass
    return True


def _parse(text: bytes) -> Holder | None:
    """Return the holder that a lock file names; None if it names nobody."""
    try:
        owner: _Holder = validate(_Holder, load_json(text))
    except (ValueError, RecursionError):
        return None
    return owner.model_dump() if owner.process > 0 else None


def _overwrite(file: IO[bytes], text: bytes) -> None:
    """Write in place: another file would not be locked."""
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
