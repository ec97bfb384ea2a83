"""Files that are never half there: written under a temporary name, then renamed."""

import fcntl
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import InputError, SettingError

LOCK = ".lock"


class DamagedFileError(InputError):
    """A file that is not what it should be; the message names it."""


def parsed(path: Path, parse: Callable[[Any], Any]) -> Any:
    """`parse` of the JSON in a file. Raises DamagedFileError where it is missing, no JSON, or not what is expected."""
    try:
        return parse(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` on a temporary path beside `path`, flush it to disk, then rename it to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.chmod(0o644)  # safetensors would leave it to its owner alone
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write text atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; NaN and infinities are an error, since JSON has none."""
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def make_directory(directory: Path) -> None:
    """Make a directory and its parents. Raises SettingError where that cannot be done."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(str(directory), error.strerror, "a directory that can be made") from None


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Hold a directory for this process alone; the lock goes with the process, however it ends. Raises InputError."""
    make_directory(directory)
    with open(directory / LOCK, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another run is writing to {directory}") from None
        file.truncate(0)
        file.write(json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": time.time()}))
        file.flush()
        yield


def holder(directory: Path) -> dict[str, Any] | None:
    """Who holds a directory, `host`, `process` and `since` (seconds, as time.time); None where nobody is known to.

    A run on another machine is seen where the directory's file system passes locks on.
    """
    try:
        with open(directory / LOCK) as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return json.loads(file.read())
    except (OSError, ValueError):  # no lock yet, or one that is being written
        return None
    return None
