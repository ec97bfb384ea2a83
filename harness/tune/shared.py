"""Results at an address: the driver has a local mirror of them, and each worker a temporary copy of its trial.

The address is the truth and holds what `results/<sweep>` holds on shared storage. The mirror lacks the checkpoints of
unfinished trials, which only workers need. If the storage is away, workers train on and push later; at a trial's end
they wait a minute for it. Then the trial fails, and goes on later from what was pushed.
"""

import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import pyarrow

from harness.common import names
from harness.common.errors import InputError
from harness.common.masking import mask_secrets
from harness.machine.clock import Clock
from harness.storage import folder, remote
from harness.storage.files import read_text, refuse_links, write_text
from harness.storage.lock import holder, lock_address

if TYPE_CHECKING:
    from harness.training.trial import Report

# harness.training is imported late: it imports torch, which the driver does without.

MARK = ".remote"
"""The file in a mirror that holds the address."""
_WORKERS_FILES = (folder.CHECKPOINT, folder.TRAINING_WARNINGS, folder.TRAINED_ON)
_MIRRORS = Path("results")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SharedResults:
    """A sweep's directory: a mirror of the address `uri`, or the results themselves if that is None.

    Without an address the methods do nothing, except `remove_failures`.
    """

    sweep_dir: Path
    uri: str | None = None

    @classmethod
    def at(cls, results: Path | str, sweep: str) -> "SharedResults":
        """Return where a sweep's results lie. results: the value of --results-dir, a path or an address."""
        if isinstance(results, Path):
            return cls((results / sweep).absolute())
        return cls((_MIRRORS / sweep).absolute(), remote.join(results, sweep))

    def prepare(self, writes: bool = True) -> None:
        """Check the storage and update the mirror. writes: check that it takes files, too.

        Raises InputError if the storage cannot be used, or the directory is not a mirror of it.
        """
        if self.uri is not None:
            remote.check_address(self.uri, writes)
            update_mirror(self.uri, self.sweep_dir)

    def lock(self) -> AbstractContextManager[None]:
        """Return a context in which the address is this process's."""
        return nullcontext() if self.uri is None else lock_address(self.uri)

    def push_trials(self) -> None:
        """Push each trial's trial.json and checkpoint, which workers begin with."""
        self._push("trials", folder.SOURCE)
        self._push("trials", folder.TRIAL)

    def push_failure(self, trial_dir: Path) -> None:
        """Push failure.json of a trial whose worker could not; the next run removes it anyway."""
        with suppress(OSError):
            self._push(_name(trial_dir), folder.FAILURE)

    def push_tables(self) -> None:
        """Push everything except trials. Raises OSError."""
        if (uri := self.uri) is not None:
            remote.retry_storage(
                lambda: remote.push(self.sweep_dir, uri, wanted=lambda name: not name.startswith("trials/"))
            )

    def push_stop(self) -> None:
        """Push the file that stops workers, or remove it at the address."""
        if self.uri is not None:
            with suppress(OSError):
                if (self.sweep_dir / folder.STOP).exists():
                    remote.write(self.uri, folder.STOP, b"")
                else:
                    remote.remove(self.uri, folder.STOP)

    def pull_trial(self, trial_dir: Path) -> None:
        """Pull what a worker has pushed of a trial; if the storage is away, the next pull has it."""
        if self.uri is not None:
            with suppress(OSError):
                _pull(self.uri, self.sweep_dir, _name(trial_dir))

    def pull_ended_trial(self, trial_dir: Path) -> str | None:
        """Pull a trial that has ended, and wait for a storage that is away; return an error if it stays away."""
        if (uri := self.uri) is not None:
            try:
                remote.retry_storage(lambda: _pull(uri, self.sweep_dir, _name(trial_dir)))
            except OSError as error:
                return mask_secrets(f"{uri} cannot be read: {error}")
        return None

    def remove_failures(self, trial_dirs: Sequence[Path]) -> None:
        """Remove the failures of earlier runs."""
        for trial_dir in trial_dirs:
            if (trial_dir / folder.FAILURE).exists():
                (trial_dir / folder.FAILURE).unlink()
                if self.uri is not None:
                    remote.remove(self.uri, f"{_name(trial_dir)}/{folder.FAILURE}")

    def _push(self, below: str, file: str) -> None:
        if self.uri is not None:
            remote.push(self.sweep_dir, self.uri, below, lambda name: name.endswith(f"/{file}"))


def local_mirror(uri: str) -> Path:
    """Return results/<sweep>, the mirror of a sweep's address, and update it unless a run here does.

    Raises InputError if that fails.
    """
    name = PurePosixPath(unquote(urlsplit(uri).path)).name
    if not name:
        raise InputError(f"{mask_secrets(uri)} names no sweep")
    sweep_dir = (_MIRRORS / name).absolute()
    remote.check_address(uri, writes=False)
    if holder(sweep_dir) is None:
        update_mirror(uri, sweep_dir)
    return sweep_dir


def update_mirror(uri: str, sweep_dir: Path) -> None:
    """Update a mirror. Raises InputError if the directory is something else, or the storage is away."""
    refuse_links(sweep_dir)
    mark = sweep_dir / MARK
    mirrored = read_text(mark) if mark.is_file() else None
    if mirrored != uri and sweep_dir.exists() and any(sweep_dir.iterdir()):
        content = f"mirrors {mask_secrets(mirrored)}" if mirrored else "holds other files"
        raise InputError(
            f"{sweep_dir} {content}, and must be empty to become the copy of {mask_secrets(uri)}: move it away"
        )
    write_text(mark, uri)
    try:
        remote_names = _pull(uri, sweep_dir)
    except (OSError, pyarrow.ArrowException) as error:
        raise remote.StorageError(mask_secrets(f"{uri} cannot be mirrored in {sweep_dir}: {error}")) from error
    results = {path.relative_to(sweep_dir).as_posix() for path in sweep_dir.glob(f"trials/*/{folder.RESULT}")}
    if missing := sorted(results - remote_names):
        message = f"these results are in {sweep_dir} and no longer at {mask_secrets(uri)}: {', '.join(missing)}"
        raise InputError(f"{message}; copy these trials back, or move the directory away to train them again")


def run_trial_at(uri: str, key: str, report: "Report", data_dir: str | None, code: str | None) -> None:
    """Run `run_folder` for a trial at a sweep's address, in a temporary directory.

    The trial's folder is pushed before each report of an epoch, now and then during evaluation, and at the end, also
    after an error. Raises as `run_folder` does, and OSError if the storage cannot be read or stays away.
    """
    from harness.training import run_folder

    below, clock = f"trials/{key}", Clock()
    with TemporaryDirectory(prefix="harness-") as scratch:
        sweep_dir = Path(scratch)
        trial_dir = sweep_dir / below

        def push() -> None:
            remote.push(sweep_dir, uri, below)

        def push_or_warn() -> None:
            try:
                push()
            except OSError as error:
                _log.warning("not pushed yet: %s", mask_secrets(str(error)))

        def push_and_report(row: dict[str, Any]) -> None:
            if names.EPOCH in row or clock.due():
                push_or_warn()
            report(row)

        remote.pull(uri, sweep_dir, below)
        try:
            run_folder(trial_dir, push_and_report, data_dir, Clock(asked=lambda: is_stopped(uri)), code)
        finally:
            remote.retry_storage(push)
            if folder.read_result(trial_dir) is not None:
                remote.remove(uri, f"{below}/{folder.FAILURE}")
                remote.remove(uri, f"{below}/{folder.SHARDS}")


def is_stopped(uri: str) -> bool:
    """Return True if the workers of a sweep are to stop."""
    try:
        return remote.read(uri, folder.STOP) is not None
    except OSError:
        return False


def _pull(uri: str, sweep_dir: Path, below: str = "") -> set[str]:
    """Pull what a mirror holds, and remove failures that the address no longer has; return all names there."""

    def is_wanted(name: str) -> bool:
        return PurePosixPath(name).name not in _WORKERS_FILES and f"/{folder.SHARDS}/" not in name

    remote_names = remote.pull(uri, sweep_dir, below, is_wanted)
    for path in (sweep_dir / below).rglob(folder.FAILURE):
        if path.relative_to(sweep_dir).as_posix() not in remote_names:
            path.unlink(missing_ok=True)
    return remote_names


def _name(trial_dir: Path) -> str:
    return f"trials/{trial_dir.name}"
