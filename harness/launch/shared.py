"""Results that lie at an address: the driver mirrors them in a directory, a worker has a scratch of its own.

The address is the truth. It holds what `results/<sweep>` does on storage that all machines share; of trials that are
not finished the mirror lacks checkpoints, which only workers need. Where the storage is away, workers train on and push
later; at a trial's end it is waited for, a minute long. Then the trial fails, and goes on later from what was pushed.
"""

import logging
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import unquote, urlsplit

import pyarrow

from harness.clock import Clock
from harness.errors import InputError
from harness.masking import masked
from harness.storage import folder, remote
from harness.storage.files import write_text
from harness.storage.lease import holder, leased
from harness.training import run_folder
from harness.training.trial import EvaluationProgress, Report

MARK = ".remote"
"""In a mirror: the address."""
_TO_GO_ON = (folder.CHECKPOINT, folder.WITHOUT)
_MIRRORS = Path("results")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shared:
    """A sweep's directory, which is a mirror of what lies at `uri`; where that is None it is itself what is shared, and
    nothing is to be done."""

    directory: Path
    uri: str | None = None

    @classmethod
    def of(cls, results: Path | str, sweep: str) -> "Shared":
        """Where a sweep's results lie. results: of --results-dir, a path or an address."""
        if isinstance(results, Path):
            return cls((results / sweep).absolute())
        return cls((_MIRRORS / sweep).absolute(), remote.joined(results, sweep))

    def begin(self, writes: bool = True) -> None:
        """Make the mirror. writes: try whether the storage takes files, too.

        Raises InputError where the storage cannot be used, or the directory is no mirror of it.
        """
        if self.uri is not None:
            remote.check(self.uri, writes)
            mirror(self.uri, self.directory)

    def held(self) -> Any:
        """A context in which the address is this process's, as `harness.storage.lease` has it."""
        return nullcontext() if self.uri is None else leased(self.uri)

    def give_trials(self) -> None:
        """Push what workers begin with: each trial's trial.json."""
        if self.uri is not None:
            remote.push(self.directory, self.uri, "trials", lambda name: name.endswith(f"/{folder.TRIAL}"))

    def fetch(self, place: Path) -> None:
        """Pull what a worker has pushed of a trial; what cannot be had now comes later."""
        if self.uri is not None:
            with suppress(OSError):
                _pull(self.uri, self.directory, _below(place))

    def fetch_last(self, place: Path) -> str | None:
        """Pull a trial that has ended, from a storage that may be away for a while; returns why that was in vain."""
        if self.uri is not None:
            uri = self.uri
            try:
                remote.patiently(lambda: _pull(uri, self.directory, _below(place)))
            except OSError as error:
                return masked(f"{uri} cannot be read: {error}")
        return None

    def give_failure(self, place: Path) -> None:
        """Push why a trial failed whose worker could not say it; the next run forgets it anyway."""
        if self.uri is not None:
            with suppress(OSError):
                remote.push(self.directory, self.uri, _below(place), lambda name: name.endswith(f"/{folder.FAILURE}"))

    def forget_failures(self, places: Sequence[Path]) -> None:
        """Remove what these trials failed by before."""
        for place in places:
            if (place / folder.FAILURE).exists():
                (place / folder.FAILURE).unlink()
                if self.uri is not None:
                    remote.remove(self.uri, f"{_below(place)}/{folder.FAILURE}")

    def pass_on_stop(self) -> None:
        """Tell workers elsewhere whether there is a file that stops them."""
        if self.uri is not None:
            with suppress(OSError):
                if (self.directory / folder.STOP).exists():
                    remote.write(self.uri, folder.STOP, b"")
                else:
                    remote.remove(self.uri, folder.STOP)

    def give_tables(self) -> None:
        """Push what lies beside trials. Raises OSError."""
        if self.uri is not None:
            uri = self.uri
            remote.patiently(lambda: remote.push(self.directory, uri, wanted=lambda name: not _is_trial_s(name)))


def mirrored(uri: str) -> Path:
    """The directory that mirrors a sweep's address, results/<sweep>, up to date unless a run here keeps it so.

    Raises InputError where that cannot be done.
    """
    name = PurePosixPath(unquote(urlsplit(uri).path)).name
    if not name:
        raise InputError(f"{masked(uri)} names no sweep")
    directory = (_MIRRORS / name).absolute()
    remote.check(uri, writes=False)
    if holder(directory) is None:
        mirror(uri, directory)
    return directory


def mirror(uri: str, directory: Path) -> None:
    """Bring a mirror up to date. Raises InputError where the directory is something else, or the storage is away."""
    mark = directory / MARK
    found = mark.read_text(encoding="utf-8") if mark.is_file() else None
    if found != uri and directory.exists() and (found is not None or any(directory.iterdir())):
        held = f"mirrors {masked(found)}" if found else "holds other files"
        raise InputError(f"{directory} {held} and would be the mirror of {masked(uri)}: move it away")
    write_text(mark, uri)
    try:
        there = _pull(uri, directory)
    except (OSError, pyarrow.ArrowException) as error:
        raise remote.StorageError(masked(f"{uri} cannot be mirrored in {directory}: {error}")) from error
    mine = (path.relative_to(directory).as_posix() for path in directory.glob(f"trials/*/{folder.RESULT}"))
    if lost := sorted(name for name in mine if name not in there):
        told = f"{directory} mirrors {masked(uri)}, which has lost {', '.join(lost)}"
        raise InputError(f"{told}: copy these trials back, or move the directory away to do them again")


def run_at(
    uri: str, key: str, report: Report, data_dir: str | None, judged: EvaluationProgress, code: str | None
) -> None:
    """`run_folder` of a trial at a sweep's address, in a scratch of this process's own.

    The trial's folder is pushed before each epoch is reported, from time to time while it is judged, and at the end,
    however that comes. Raises as `run_folder` does, and OSError where the storage cannot be read or stays away.
    """
    below, clock = f"trials/{key}", Clock()
    with TemporaryDirectory(prefix="harness-") as scratch:
        directory = Path(scratch)
        place = directory / below

        def push() -> None:
            remote.push(directory, uri, below)

        def keep() -> None:
            try:
                push()
            except OSError as error:
                _log.warning("not pushed yet: %s", masked(str(error)))

        def told(row: dict[str, Any]) -> None:
            keep()
            report(row)

        def also_judged(done: int, images: int) -> None:
            if clock.due():
                keep()
            judged(done, images)

        remote.pull(uri, directory, below)
        try:
            run_folder(place, told, data_dir, also_judged, code=code, asked=lambda: is_stopped(uri))
        finally:
            remote.patiently(push)
            if folder.read_result(place) is not None:
                remote.remove(uri, f"{below}/{folder.FAILURE}")
                remote.remove_folder(uri, f"{below}/{folder.SHARDS}")


def is_stopped(uri: str) -> bool:
    """Whether the workers of a sweep are to stop."""
    try:
        return remote.exists(uri, folder.STOP)
    except OSError:
        return False


def _pull(uri: str, directory: Path, below: str = "") -> set[str]:
    """Failures come and go with the address: one that was overcome elsewhere is none here."""

    def is_wanted(name: str) -> bool:
        return PurePosixPath(name).name not in _TO_GO_ON and f"/{folder.SHARDS}/" not in name

    found = remote.pull(uri, directory, below, is_wanted)
    for path in (directory / below).rglob(folder.FAILURE):
        if path.relative_to(directory).as_posix() not in found:
            path.unlink(missing_ok=True)
    return found


def _below(place: Path) -> str:
    return f"trials/{place.name}"


def _is_trial_s(name: str) -> bool:
    return name.startswith("trials/")
