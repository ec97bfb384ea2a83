"""The files of an entry: their names, sizes and digests are checked before anything reads them."""

import hashlib
import os
import re
import resource
import signal
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from harness.common.errors import InputError, shorten
from harness.storage.files import LARGEST

FILE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"
_MOST_FILES = 1000


class OutOfTimeError(BaseException):
    """The time of a step is over. No library that catches its own errors catches it."""


def read_bounded(path: Path, largest: int) -> bytes:
    """Return the content of a plain file of at most so many bytes, and of no link. Raises InputError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG((status := os.fstat(descriptor)).st_mode):
                raise InputError(f"{path.name} is no plain file")
            content = file.read(largest + 1) if status.st_size <= largest else None
    except OSError as error:
        reason = "is a link" if path.is_symlink() else f"cannot be read: {error.strerror}"
        raise InputError(f"{path.name} {reason}") from None
    if content is None or len(content) > largest:
        raise InputError(f"{path.name}: found more than {largest:,} bytes, allowed: at most {largest:,} left")
    return content


def check_files(entry: Path, digests: Mapping[str, str], manifest: str) -> None:
    """Check the files of an entry, all but its manifest.

    Raises InputError for a file that has another SHA-256 than `digests` says, is missing there or here, or is a link or
    a folder, for too many files and too many bytes.
    """
    with os.scandir(entry) as listing:
        names = sorted(item.name for item, _ in zip(listing, range(_MOST_FILES + 1), strict=False))
    if len(names) > _MOST_FILES:
        raise InputError(f"found more than {_MOST_FILES} files")
    for name in names:
        if not re.fullmatch(FILE_NAME, name):
            raise InputError(f"found a file {shorten(name)}, allowed in a name: letters, digits, '.', '_' and '-'")
    if others := [name for name in names if name not in digests and name != manifest]:
        raise InputError(f"{others[0]} has no SHA-256 in {manifest}")
    left = LARGEST
    for name, digest in digests.items():
        content = read_bounded(entry / name, left)
        left -= len(content)
        if (computed := hashlib.sha256(content).hexdigest()) != digest:
            raise InputError(f"{name}: found the SHA-256 {computed}, allowed: {digest}, which {manifest} has")


@contextmanager
def limits(seconds: float, memory: int | None = None) -> Iterator[None]:
    """Within, raise OutOfTimeError after so many seconds, and MemoryError or another error above so many bytes more.

    Only for the main thread. A limit around it stays.
    """
    allowed = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, _stop)
    began, (left, _) = time.monotonic(), signal.setitimer(signal.ITIMER_REAL, seconds)
    if 0 < left < seconds:
        signal.setitimer(signal.ITIMER_REAL, left)
    try:
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (_limit(memory, allowed), allowed[1]))
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(1e-3, left - (time.monotonic() - began)))
        resource.setrlimit(resource.RLIMIT_AS, allowed)


def _limit(memory: int, allowed: tuple[int, int]) -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    wanted = pages * os.sysconf("SC_PAGE_SIZE") + memory
    return min([wanted, *(each for each in allowed if each != resource.RLIM_INFINITY)])


def _stop(*_: object) -> NoReturn:
    raise OutOfTimeError
