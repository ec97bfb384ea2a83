"""Keeps a sweep's MLflow experiment up to date with the trial folders.

MLflow that is away at the start is wrong input, and nothing is started. If it goes away later, one warning says so and
nothing more is sent until the end of the sweep, which logs what is missing. If MLflow is away at the end, the command
warns again and ends with exit status 1; the same command logs the rest.
"""

from collections.abc import Callable, Collection
from pathlib import Path

from rich.console import Console

from harness.leaderboard.table import Leaderboard
from harness.storage import folder
from harness.storage.files import DamagedFileError
from harness.tracking import TrackingError
from harness.tracking.notes import describe_experiment
from harness.tracking.upload import Tracker


class PatientTracker:
    """Logs trial folders while MLflow answers. `is_away` is True once it has not.

    rows: the name of each trial's row, by the trial's key.
    """

    def __init__(self, tracker: Tracker, rows: dict[str, str], console: Console):
        self.tracker, self.rows, self.console, self.is_away = tracker, rows, console, False

    @classmethod
    def open(cls, sweep: str, uri: str | None, rows: dict[str, str], console: Console) -> "PatientTracker":
        """Connect to the store, as `Tracker.open` does. Raises InputError if it cannot be used."""
        return cls(Tracker.open(sweep, uri), rows, console)

    def sync(self, trial_dir: Path, running: bool = True) -> None:
        """Log what the trial's folder has and MLflow lacks. running: whether a worker trains the trial now."""
        self._try(lambda: self.tracker.sync(trial_dir, self.rows.get(trial_dir.name), running))

    def finish(self, sweep_dir: Path, table: Leaderboard, trials: Collection[str]) -> None:
        """Log whatever is missing, imported trials too, and the tables; print how to open MLflow.

        trials: keys of the sweep file's own trials, of which the best network is registered.
        """
        self.is_away = False
        for trial_dir in folder.trial_folders(sweep_dir):
            try:
                self.sync(trial_dir, running=False)
            except DamagedFileError as error:
                self.console.print(f"warning: {error}", style="yellow", soft_wrap=True)
        self._try(lambda: self.tracker.log_tables(sweep_dir, describe_experiment(table)))
        if self.is_away:
            return
        try:
            self.tracker.register(trials)
        except TrackingError as error:  # a store without a registry is no failure
            self.console.print(f"no network is registered as a model: {error}", soft_wrap=True)
        self.console.print(f"\nMLflow:\n{self.tracker.how_to_open()}", soft_wrap=True)

    def _try(self, action: Callable[[], None]) -> None:
        if self.is_away:
            return
        try:
            action()
        except TrackingError as error:
            self.is_away = True
            advice = "results are safe; the end of this command, or the same command later, logs what is missing"
            self.console.print(f"warning: {error}; {advice}", style="yellow")
