"""The files of a sweep's directory that the checker reads. Each check returns a line for each problem."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from harness.common.errors import InputError
from harness.config.trial import Trial
from harness.storage import certification, folder
from harness.storage.certification import trial_of
from harness.storage.folder import TrialRecord, TrialResult
from harness.storage.state import read_state_or_raise


def find_folders(sweep_dir: Path) -> dict[Path, list[Path]]:
    """Return, for each trial's folder, the folders with verdicts: itself and its certifications."""
    trial_dirs = [path for path in _entries(sweep_dir / folder.TRIALS) if path.is_dir()]
    return {path: [path, *(p for p in _entries(path / certification.FOLDER) if p.is_dir())] for path in trial_dirs}


def read_finished(verdict_dir: Path) -> tuple[TrialRecord, TrialResult]:
    """Return what the files of a finished trial or certification describe, and its result.

    Raises InputError where one is missing or damaged, or the result is another trial's.
    """
    state = read_state_or_raise(verdict_dir)
    if state.trial is None or state.result is None:
        missing = certification.record_path(verdict_dir).name if state.trial is None else folder.RESULT
        raise InputError(f"{missing}: {state.text}")
    return state.trial, state.result


def check_certification(verdict_dir: Path, record: TrialRecord) -> list[str]:
    """Check that a certification describes its trial in all but the evaluation."""
    trial = certification.read_record(trial_of(verdict_dir))
    if record == replace(trial, config=trial.config.replace(evaluation=record.config.evaluation)):
        return []
    return [f"{certification.CERTIFICATION} describes another trial than the one that it belongs to"]


def check_plugins(config: Trial, trusted: Collection[str]) -> list[str]:
    """Check that a trial needs no code that is not trusted."""
    return [
        f"not checked: {folder.TRIAL} names the plugin {name}; if you trust it, add --plugin {name}"
        for name in config.plugins
        if name not in trusted
    ]


def check_weights(verdict_dir: Path) -> list[str]:
    """Check that the trial's weights are stored."""
    is_stored = (trial_of(verdict_dir) / folder.WEIGHTS).is_file()
    return [] if is_stored else [f"{folder.WEIGHTS} is not stored here"]


def _entries(directory: Path) -> list[Path]:
    """Return what a directory holds, by name, without hidden files; nothing where there is none."""
    return sorted(path for path in directory.glob("*") if path.is_dir() or not path.name.startswith("."))
