"""Who holds a directory: a lock, and beside it a lease that is renewed, for file systems that pass no locks on.

An address has the lease alone.

.lock says in JSON who holds the directory: host, process, since, and how often that was renewed. What a process of this
machine left there without the lock is of one that is gone. What another machine's left is watched: whoever renews it is
alive, and is left alone; one that does not for `STALE` seconds by the clock of whoever waits is gone. Clocks of two
machines are never compared, and one that goes backwards changes nothing.
"""

import fcntl
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from harness.errors import InputError
from harness.masking import masked
from harness.storage import remote
from harness.storage.files import make_directory

LOCK = ".lock"
RENEWED, STALE = 10.0, 60.0
"""Seconds between two renewals, and without one until a lease is taken over."""

Read = Callable[[], dict[str, Any] | None]

_log = logging.getLogger(__name__)
_TAKEN_OVER = 1  # the exit status


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory for this process alone; the lock goes with the process, however it ends.

    A process that was held up for so long that another machine took the directory over ends at once, as if killed.
    Raises InputError where another run holds it.
    """
    make_directory(directory)
    path = directory / LOCK
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        _refuse_others(path, descriptor)
        with _renewed(lambda: _read(path), lambda text: _write(descriptor, text), directory):
            yield
    finally:
        os.close(descriptor)


@contextmanager
def leased(uri: str) -> Iterator[None]:
    """Hold an address for this process alone, as `locked` does a directory, but that a process which was killed on this
    very machine is waited for, too.

    Raises InputError where another run holds it, OSError.
    """

    def read() -> dict[str, Any] | None:
        return _parsed(remote.read(uri, LOCK) or b"")

    where = masked(uri)
    if (found := read()) is not None:
        _watch(found, read, where)
    with _renewed(read, lambda text: remote.write(uri, LOCK, text), where):
        yield


@contextmanager
def _renewed(read: Read, write: Callable[[bytes], None], where: object) -> Iterator[None]:
    """Within, a lease is this process's and renewed; then it is empty, unless it is another's by then."""
    mine = {"host": socket.gethostname(), "process": os.getpid(), "since": time.time()}
    ended = threading.Event()
    keeper = threading.Thread(target=_keep, args=(read, write, where, mine, ended), daemon=True)
    write(json.dumps(mine | {"renewed": 0}).encode())
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        with suppress(OSError):
            if _is(read(), mine):
                write(b"")


def holder(directory: Path) -> dict[str, Any] | None:
    """Who holds a directory, `host`, `process` and `since` (seconds, as time.time); None where nobody is known to."""
    try:
        with open(directory / LOCK) as file:
            found = _read(directory / LOCK)
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return found
            elsewhere = found is not None and found["host"] != socket.gethostname()
            return found if elsewhere and time.time() - os.fstat(file.fileno()).st_mtime < STALE else None
    except OSError:  # no lock yet
        return None


def _refuse_others(path: Path, descriptor: int) -> None:
    """Wait until nobody is known to hold the directory. Raises InputError where somebody does."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        has_lock = True
    except BlockingIOError:
        raise InputError(f"another run is writing to {path.parent}") from None
    except OSError:  # a file system without locks
        has_lock = False
    found = _read(path)
    if found is None or (has_lock and found["host"] == socket.gethostname()):
        return
    _watch(found, lambda: _read(path), path.parent)


def _watch(found: dict[str, Any], read: Read, where: object) -> None:
    """Wait for as long as whoever holds the lease has to renew it. Raises InputError where that is done."""
    who = f"process {found['process']} on {found['host']}"
    _log.warning("%s was held by %s: taken over unless that says in %g s that it is there", where, who, STALE)
    until = time.monotonic() + STALE
    while time.monotonic() < until:
        time.sleep(min(1.0, STALE / 10))
        now = read()
        if now is None:  # it has ended
            return
        if now != found:
            raise InputError(f"another run is writing to {where}: process {now['process']} on {now['host']}")


def _keep(
    read: Read, write: Callable[[bytes], None], where: object, mine: dict[str, Any], ended: threading.Event
) -> None:
    """Renew the lease until it is given up; where that cannot be done, later."""
    for renewed in count(1):
        if ended.wait(RENEWED):
            return
        with suppress(OSError):
            found = read()
            if found is not None and not _is(found, mine):
                told = f"{where} was taken over by process {found['process']} on {found['host']}: this run ends"
                _log.error("%s, and may be started again", told)
                os._exit(_TAKEN_OVER)
            write(json.dumps(mine | {"renewed": renewed}).encode())


def _is(found: dict[str, Any] | None, mine: dict[str, Any]) -> bool:
    return found is not None and all(found.get(name) == value for name, value in mine.items())


def _read(path: Path) -> dict[str, Any] | None:
    """What a directory's lease says; None where there is none, or none that can be read."""
    try:
        return _parsed(path.read_bytes())
    except OSError:
        return None


def _parsed(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
        return found if found.keys() >= {"host", "process", "since"} else None
    except (ValueError, AttributeError, RecursionError):
        return None


def _write(descriptor: int, text: bytes) -> None:
    """In place, since another file would not be locked."""
    os.pwrite(descriptor, text, 0)
    os.ftruncate(descriptor, len(text))
