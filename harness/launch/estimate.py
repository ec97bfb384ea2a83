"""How long trials will take: what finished trials of the same row took in the sweep's directory, else unknown."""

from collections import defaultdict
from pathlib import Path
from statistics import mean

from harness.config.trial import identity
from harness.launch.study import Study
from harness.storage import folder, names
from harness.storage.files import DamagedFileError
from harness.storage.folder import Trial


def seconds_left(study: Study, trials: list[Trial]) -> dict[str, float | None]:
    """Return the seconds that each trial has left, by key; None where no trial of its row has finished."""
    measured = _measured_seconds(study.directory)
    return {trial.key: _seconds_left(trial, study.places[trial.key], measured) for trial in trials}


def longest_first(study: Study, trials: list[Trial]) -> list[Trial]:
    """Return the trials with the longest first, then unknown ones, then those that failed before."""
    left = seconds_left(study, trials)

    def rank(trial: Trial) -> tuple[bool, float]:
        has_failed = folder.read_failure(study.places[trial.key]) is not None
        return has_failed, -(left[trial.key] or 0.0)

    return sorted(trials, key=rank)


def _measured_seconds(sweep_dir: Path) -> dict[str, list[tuple[float, float]]]:
    """Return the seconds of an epoch and of evaluation of each finished trial, by row."""
    measured = defaultdict(list)
    for trial_dir in folder.trial_folders(sweep_dir):
        try:
            config = folder.read_trial(trial_dir / folder.TRIAL).config
            epochs, result = folder.read_epochs(trial_dir), folder.read_result(trial_dir)
        except DamagedFileError:
            continue
        seconds = [row[names.TRAIN_EPOCH_SECONDS] for row in epochs if names.TRAIN_EPOCH_SECONDS in row]
        if result is not None and seconds:
            measured[identity(config)].append((mean(seconds), result.metrics.get(names.EVALUATION_SECONDS) or 0.0))
    return measured


def _seconds_left(trial: Trial, trial_dir: Path, measured: dict[str, list[tuple[float, float]]]) -> float | None:
    of_row = measured.get(identity(trial.config))
    if of_row is None:
        return None
    done = max((row[names.EPOCH] for row in folder.read_epochs(trial_dir)), default=0)
    epoch, evaluation = (mean(values) for values in zip(*of_row, strict=True))
    return epoch * (trial.config.train.epochs - done) + evaluation
