"""One run at a time in a directory: a lock file that names its holder.

The file is locked, too, and the lock goes with the process. On file systems without locks the file alone counts: a
process of this machine that has died is replaced at once, and a file of another machine whose run has died must be
deleted by hand.
"""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from pydantic import Field, ValidationError

from harness.common.errors import InputError
from harness.common.models import LENIENT, Model
from harness.storage.files import LARGEST_TEXT, make_directory, read_bytes

LOCK = ".lock"


class HeldError(InputError):
    """Another run holds a directory."""


class Holder(Model):
    """What a lock file holds: a process, and since when it runs, in seconds as of time.time."""

    model_config = LENIENT

    host: str
    process: int = Field(gt=0, lt=2**31)
    since: float

    @property
    def is_here(self) -> bool:
        """Whether it is a process of this machine."""
        return self.host == socket.gethostname()

    @property
    def may_be_running(self) -> bool:
        """False if it was a process of this machine that is gone."""
        try:
            if self.is_here:
                os.kill(self.process, 0)
        except OSError as error:
            return isinstance(error, PermissionError)  # another user's
        return True


@contextmanager
def lock_directory(directory: Path) -> Iterator[None]:
    """Hold a directory within the block. Raises HeldError if another run holds it.

    The command has refused links that lead out of it. Directories that were made for this are removed if nothing was
    written there.
    """
    new = [path for path in (directory, *directory.absolute().parents) if not path.exists()]
    make_directory(directory)
    path = directory / LOCK
    if path.exists() and not path.is_file():  # reading a pipe would wait
        raise InputError(f"{path} cannot be the lock of its directory: found no file; remove it")
    with open(path, "a+b", buffering=0) as file:
        is_locked = _try_lock(file)
        file.seek(0)
        owner = _parse(file.read())
        is_removed = os.fstat(file.fileno()).st_nlink == 0  # by a run that has just ended
        is_free = owner is None or not owner.may_be_running
        if owner is not None and owner.is_here:  # a number of this process is that of another before a restart
            is_free |= is_locked is True or owner.process == os.getpid()
        if is_locked is False or is_removed or not is_free:
            name = f"process {owner.process} on {owner.host}" if owner else "no process yet"
            advice = "" if is_locked is False else "; if that run is gone, delete the file"
            raise HeldError(f"another run is writing there: {path} names {name}{advice}")
        file.truncate(0)
        own = Holder(host=socket.gethostname(), process=os.getpid(), since=time.time())
        file.write(own.model_dump_json().encode())
        try:
            yield
        finally:
            file.truncate(0)
            with suppress(OSError):
                if new and list(directory.iterdir()) == [path]:
                    path.unlink()
                    for each in new:
                        each.rmdir()


def holder(directory: Path) -> Holder | None:
    """Return who holds a directory; None if nobody does."""
    path = directory / LOCK
    owner = _parse(read_bytes(path, LARGEST_TEXT)) if path.exists() else None
    return owner if owner is not None and owner.may_be_running else None


def _try_lock(file: IO[bytes]) -> bool | None:
    """Return True if the file is locked now, False if another run has the lock, None on a file system without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _parse(text: bytes) -> Holder | None:
    """Return the holder that a lock file names; None if it names nobody."""
    try:
        return Holder.model_validate_json(text)
    except ValidationError:
        return None
