"""Check that a sweep's directory holds the right files.

The path says what a folder is (`trials/<key>`, in it `certified/<name>`); its files must agree. Each check returns a
line for each problem.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from harness.common.errors import InputError
from harness.config.trial import Trial
from harness.storage import certification, folder
from harness.storage.certification import is_certification, trial_of
from harness.storage.folder import TrialRecord, TrialResult


@dataclass(frozen=True)
class StoredResult:
    """A finished trial or certification as its files describe it.

    trained: the trial of trial.json. evaluated: the same; of a certification, with its own evaluation settings.
    """

    verdict_dir: Path
    trained: TrialRecord
    evaluated: TrialRecord
    result: TrialResult

    @property
    def config(self) -> Trial:
        """The config of the evaluation."""
        return self.evaluated.config


def find_folders(sweep_dir: Path) -> dict[Path, list[Path]]:
    """Return, for each trial's folder, the folders with verdicts: itself and its certifications."""
    trial_dirs = [path for path in _entries(sweep_dir / folder.TRIALS) if path.is_dir()]
    return {path: [path, *(p for p in _entries(path / certification.FOLDER) if p.is_dir())] for path in trial_dirs}


def check_entries(verdict_dir: Path) -> Iterator[str]:
    """Check that a folder, and its trial's, hold files and folders only."""
    entries = {path for directory in (verdict_dir, trial_of(verdict_dir)) for path in _entries(directory)}
    yield from (f"{path.name} is neither a file nor a folder" for path in sorted(entries) if is_special(path))


def is_special(path: Path) -> bool:
    """Return whether something is neither a file nor a folder; reading a pipe would hang."""
    return not (path.is_file() or path.is_dir())


def check_finished(verdict_dir: Path) -> Iterator[str]:
    """Check that a trial's or certification's config and result are there."""
    config = certification.record_path(verdict_dir).name
    if missing := [name for name in (config, folder.RESULT) if not (verdict_dir / name).is_file()]:
        failure = folder.read_failure(verdict_dir)
        yield f"missing: {', '.join(missing)}" + (f" (the trial failed: {failure.error})" if failure else "")


def read_stored_result(verdict_dir: Path) -> StoredResult:
    """Read the config and the result of a finished trial or certification. Raises DamagedFileError."""
    trained, evaluated = (certification.read_record(path) for path in (trial_of(verdict_dir), verdict_dir))
    result = folder.read_result(verdict_dir)
    if result is None:
        raise InputError(f"{verdict_dir} is not finished")
    return StoredResult(verdict_dir, trained, evaluated, result)


def check_keys(stored: StoredResult) -> Iterator[str]:
    """Check that trial, certification and result lie where their keys, stages and images say, and describe one trial.

    A certification describes its trial in all but the evaluation.
    """
    trial_dir, key = trial_of(stored.verdict_dir), stored.trained.key
    if trial_dir.name != key:
        yield f"{folder.TRIAL} belongs in the folder {key}, not {trial_dir.name}"
    if stored.result.key != key:
        yield f"{folder.RESULT} belongs to another trial, {stored.result.key}"
    of_trial = replace(stored.trained, config=stored.trained.config.replace(evaluation=stored.config.evaluation))
    name = certification.directory_of(trial_dir, stored.config.evaluation).name
    if stored.evaluated != of_trial:
        yield f"{certification.CERTIFICATION} describes another trial than the one that it belongs to"
    elif is_certification(stored.verdict_dir) and stored.verdict_dir.name != name:
        yield f"{certification.CERTIFICATION} belongs in the folder {name}"


def check_plugins(stored: StoredResult, trusted: Collection[str]) -> list[str]:
    """Check that a trial needs no code that is not trusted."""
    return [
        f"not checked: {folder.TRIAL} names the plugin {name}; if you trust it, add --plugin {name}"
        for name in stored.config.plugins
        if name not in trusted
    ]


def check_weights(verdict_dir: Path) -> list[str]:
    """Check that the trial's weights are stored."""
    is_stored = (trial_of(verdict_dir) / folder.WEIGHTS).is_file()
    return [] if is_stored else [f"{folder.WEIGHTS} is not stored here"]


def _entries(directory: Path) -> list[Path]:
    """Return what a directory holds, by name, without hidden files; nothing where there is none."""
    return sorted(path for path in directory.glob("*") if path.is_dir() or not path.name.startswith("."))
