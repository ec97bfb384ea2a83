"""MLflow beside the running trials.

The policy for MLflow being away, all of it: at the start that is bad input, and nothing is started. Later it is a
warning, and MLflow is left alone until the end, when it is tried once more. Where that fails too, it is said again and
the command ends with exit status 1; results are safe in their folders, and the same command logs what is missing.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from harness.errors import InputError
from harness.storage import folder
from harness.storage.files import DamagedFileError

# harness.launch.mlflow_store is imported late: MLflow takes seconds, and bad input is told first.


class Mirror:
    """Keeps an MLflow experiment up to date with a sweep's folders. labels: names of runs, by trial keys.

    Raises InputError where the store cannot be used. broken: whether it has failed since.
    """

    def __init__(self, sweep: str, uri: str | None, labels: dict[str, str], console: Console):
        from harness.launch.mlflow_store import Tracker, TrackingError

        self.labels, self.console, self.broken, self.failure = labels, console, False, TrackingError
        try:
            self.tracker = Tracker.open(sweep, uri)
        except TrackingError as error:
            raise InputError(str(error)) from None

    def sync(self, place: Path) -> None:
        """Log what the trial's folder has and MLflow lacks."""
        self._try(lambda: self.tracker.sync(place, self.labels.get(place.name)))

    def finish(self, directory: Path) -> None:
        """Log whatever is missing, imported trials too, attach the tables and say how to look at them."""
        self.broken = False
        for place in folder.trial_folders(directory):
            try:
                self.sync(place)
            except DamagedFileError as error:
                self.console.print(f"[yellow]warning[/] {escape(str(error))}", soft_wrap=True)
        self._try(lambda: self.tracker.sync_tables(directory))
        self._try(lambda: self.console.print(f"\nMLflow:\n{escape(self.tracker.how_to_open())}", soft_wrap=True))

    def _try(self, action: Callable[[], Any]) -> None:
        if self.broken:
            return
        try:
            action()
        except self.failure as error:
            self.broken = True
            self.console.print(
                f"[yellow]warning[/] {escape(str(error))}; results are safe, the same command logs them later"
            )
