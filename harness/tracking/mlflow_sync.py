"""Keeps a sweep's MLflow experiment up to date with the trial folders.

MLflow that is away at the start is wrong input, and nothing is started. If it goes away later, one warning says so and
nothing more is sent until the end of the sweep, which logs what is missing: folders hold everything, and each point is
logged once. If MLflow is away at the end, the command warns again and ends with exit status 1; the same command logs
the rest.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from harness.leaderboard.table import Leaderboard
from harness.storage import folder
from harness.storage.files import DamagedFileError
from harness.tracking import TrackingError
from harness.tracking.notes import describe_experiment

if TYPE_CHECKING:
    from harness.tracking.store import Tracker  # imported late: MLflow takes seconds, and wrong input is refused first


class MlflowSync:
    """Logs trial folders while MLflow answers. `is_away` is True once it has not.

    rows: the name of each trial's row, by the trial's key.
    """

    def __init__(self, tracker: "Tracker", rows: dict[str, str], console: Console):
        self.tracker, self.rows, self.console, self.is_away = tracker, rows, console, False

    @classmethod
    def open(cls, sweep: str, uri: str | None, rows: dict[str, str], console: Console) -> "MlflowSync":
        """Connect to the store, as `Tracker.open` does. Raises InputError if it cannot be used."""
        from harness.tracking.store import Tracker

        return cls(Tracker.open(sweep, uri), rows, console)

    def sync(self, trial_dir: Path, running: bool = True) -> None:
        """Log what the trial's folder has and MLflow lacks. running: whether a worker trains the trial now."""
        self._try(lambda: self.tracker.sync(trial_dir, self.rows.get(trial_dir.name), running))

    def finish(self, sweep_dir: Path, table: Leaderboard, trials: Collection[str]) -> str | None:
        """Log whatever is missing, imported trials too, attach the tables and print how to open MLflow.

        Returns how to open it if MLflow has everything, None if something could not be logged.

        Args:
            table: the sweep's leaderboard.
            trials: keys of the sweep file's own trials, of which the best network is registered.
        """
        self.is_away, has_everything = False, True
        for trial_dir in folder.trial_folders(sweep_dir):
            try:
                self.sync(trial_dir, running=False)
            except DamagedFileError as error:
                has_everything = False
                self.console.print(f"warning: {error}", style="yellow", soft_wrap=True)
        self._try(lambda: self.tracker.sync_tables(sweep_dir))
        self._try(lambda: self.tracker.describe(describe_experiment(table)))
        if self.is_away:
            return None
        try:
            self.tracker.register(trials)
        except TrackingError as error:  # a store without a registry is no failure
            has_everything = False
            self.console.print(f"no network is registered as a model: {error}", soft_wrap=True)
        how_to_open = self.tracker.how_to_open()
        print_how_to_open(how_to_open, self.console)
        return how_to_open if has_everything else None

    def _try(self, action: Callable[[], Any]) -> None:
        if self.is_away:
            return
        try:
            action()
        except TrackingError as error:
            self.is_away = True
            advice = "results are safe; the end of this command, or the same command later, logs what is missing"
            self.console.print(f"warning: {error}; {advice}", style="yellow")


def print_how_to_open(text: str, console: Console) -> None:
    """Print how to open MLflow, as `Tracker.how_to_open` returns it."""
    console.print(f"\nMLflow:\n{text}", soft_wrap=True)
