"""One run at a time in a directory: a lock file that names its holder.

The file is locked, too, and the lock goes with the process. On file systems without locks the file alone counts. The
file of a run that has died on another machine must be deleted by hand.
"""

import errno
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from harness.common.errors import InputError
from harness.common.models import LENIENT, Model
from harness.storage.files import LARGEST_TEXT, make_directory, read_bytes

LOCK = ".lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems without locks


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

    Directories that were made for this are removed if nothing was written there.
    """
    new = [path for path in (directory, *directory.absolute().parents) if not path.exists()]
    make_directory(directory)
    path = directory / LOCK
    lock = FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        try:
            lock.acquire()
        except Timeout:
            raise HeldError(_describe(path)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        owner = _read(path)
        if owner is not None and owner.may_be_running and not (owner.is_here and lock.is_locked):
            raise HeldError(f"{_describe(path)}; if that run is gone, delete the file")
        path.write_text(Holder(host=socket.gethostname(), process=os.getpid(), since=time.time()).model_dump_json())
        try:
            yield
        finally:
            with suppress(OSError):
                os.truncate(path, 0)
                if new and list(directory.iterdir()) == [path]:
                    path.unlink()
                    for each in new:
                        each.rmdir()
    finally:
        lock.release()


def holder(directory: Path) -> Holder | None:
    """Return who holds a directory; None if nobody does."""
    owner = _read(directory / LOCK)
    return owner if owner is not None and owner.may_be_running else None


def _describe(path: Path) -> str:
    owner = _read(path)
    name = f"process {owner.process} on {owner.host}" if owner else "no process yet"
    return f"another run is writing there: {path} names {name}"


def _read(path: Path) -> Holder | None:
    """Return the holder that a lock file names; None if it names nobody, or is not there."""
    try:
        return Holder.model_validate_json(read_bytes(path, LARGEST_TEXT)) if path.exists() else None
    except ValidationError:
        return None
