"""A rough estimate of the time that trials need: as long as like ones took, here or before."""

from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from statistics import mean
from typing import Any

from harness.common import names
from harness.storage import folder, training_record
from harness.storage.files import DamagedFileError
from harness.storage.folder import TrialRecord


def minutes(seconds: float) -> str:
    """Return a text such as '12.3 min', or '40 s' below a minute."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


class TimeLeft:
    """The seconds of an epoch, and those of an evaluation, of each row of a table of trials."""

    def __init__(self) -> None:
        self.epochs = defaultdict[str, list[float]](list)
        self.evaluations = defaultdict[str, list[float]](list)

    @classmethod
    def measured_in(cls, sweep_dir: Path) -> "TimeLeft":
        """Return what the finished trials of a sweep's directory took."""
        times = cls()
        for trial_dir in folder.trial_folders(sweep_dir):
            with suppress(DamagedFileError):
                if result := folder.read_result(trial_dir):
                    row = folder.read_trial(trial_dir / folder.TRIAL).config.identity
                    for epoch in training_record.read_epochs(trial_dir):
                        times.add_epoch(row, epoch)
                    times.add_evaluation(row, result.metrics)
        return times

    def add_epoch(self, row: str, numbers: dict[str, Any]) -> None:
        """Count an epoch of a trial of this row."""
        if seconds := numbers.get(names.TRAIN_EPOCH_SECONDS):
            self.epochs[row].append(seconds)

    def add_evaluation(self, row: str, metrics: dict[str, float | None]) -> None:
        """Count the evaluation of a trial of this row."""
        self.evaluations[row].append(metrics.get(names.EVALUATION_SECONDS) or 0.0)

    def is_measured(self, trial: TrialRecord) -> bool:
        """Return True if a trial of this one's row has finished."""
        return trial.config.identity in self.evaluations

    def seconds(self, trial: TrialRecord, epochs_done: int) -> float | None:
        """Return the seconds that a trial still needs, by its own row or else by all; None before any epoch."""
        row, epochs = trial.config.identity, trial.config.epochs - epochs_done
        epoch = _mean(self.epochs, row) if trial.config.epochs else 0.0
        evaluation = _mean(self.evaluations, row)
        if epoch is None or (evaluation is None and not trial.config.epochs):
            return None
        return epoch * epochs + (evaluation or 0.0)


def _mean(seconds: dict[str, list[float]], row: str) -> float | None:
    """Return the mean of a row, or of all rows' means if it has none."""
    if row in seconds:
        return mean(seconds[row])
    return mean(map(mean, seconds.values())) if seconds else None


def wall_seconds(seconds: Iterable[float], at_once: int) -> float:
    """Return how long trials take, of which so many run at a time."""
    each = list(seconds)
    return max(max(each, default=0.0), sum(each) / max(1, at_once))
