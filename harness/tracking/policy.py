"""MLflow beside the running trials.

The policy for MLflow being away, all of it: at the start that is bad input, and nothing is started. Later it is a
warning, and MLflow is tried again no sooner than `PAUSE` seconds later, and at the end: folders have what it lacks by
then, and each point is logged once. Where it is away at the end, that is said again and the command ends with exit
status 1; results are safe in their folders, and the same command logs what is missing.
"""

import math
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from harness.analysis.leaderboard import Leaderboard
from harness.errors import InputError
from harness.storage import folder
from harness.storage.files import DamagedFileError
from harness.tracking.notes import of_experiment

PAUSE = 20.0  # seconds
# harness.tracking.store is imported late: MLflow takes seconds, and bad input is told first.


class Mirror:
    """Keeps an MLflow experiment up to date with a sweep's folders. rows: what trials' rows are called, by their keys.

    Raises InputError where the store cannot be used. broken: whether it has failed since.
    """

    def __init__(self, sweep: str, uri: str | None, rows: dict[str, str], console: Console):
        from harness.tracking.client import TrackingError
        from harness.tracking.store import Tracker

        self.rows, self.console, self.broken, self.failure = rows, console, False, TrackingError
        self.lacking, self.again = dict[Path, bool](), -math.inf
        try:
            self.tracker = Tracker.open(sweep, uri)
        except TrackingError as error:
            raise InputError(str(error)) from None

    def sync(self, place: Path, running: bool = True) -> None:
        """Log what the trial's folder has and MLflow lacks. running: whether a trial without a result is at work.

        Where MLflow was away, what other trials lack is logged, too.
        """
        self.lacking[place] = running
        if time.monotonic() < self.again:
            return
        was_broken, self.broken = self.broken, False
        while self.lacking and not self.broken:
            self._sync_one(*self.lacking.popitem(), was_broken)
        if was_broken and not self.broken:
            self.console.print("MLflow is back, and has what it lacked")

    def _sync_one(self, place: Path, running: bool, known: bool) -> None:
        self._try(lambda: self.tracker.sync(place, self.rows.get(place.name), running), silent=known)
        if self.broken:
            self.lacking[place] = running
            self.again = time.monotonic() + PAUSE

    def finish(self, directory: Path, table: Leaderboard, trials: Collection[str]) -> None:
        """Log whatever is missing, imported trials too, attach the tables and say how to look at them.

        table: the sweep's. trials: keys of those of the sweep file, of which the best one's network is registered.
        """
        self.broken, self.again = False, -math.inf
        for place in folder.trial_folders(directory):
            try:
                self.sync(place, running=False)
            except DamagedFileError as error:
                self.console.print(f"[yellow]warning[/] {escape(str(error))}", soft_wrap=True)
        self._try(lambda: self.tracker.sync_tables(directory))
        self._try(lambda: self.tracker.describe(of_experiment(table)))
        if not self.broken:
            self._register(trials)
        self._try(lambda: self.console.print(f"\nMLflow:\n{escape(self.tracker.how_to_open())}", soft_wrap=True))

    def _register(self, trials: Collection[str]) -> None:
        """Register the best network. Some stores have no registry: that is said, and is no failure."""
        try:
            self.tracker.register(trials)
        except self.failure as error:
            self.console.print(f"no network is registered as a model: {escape(str(error))}", soft_wrap=True)

    def _try(self, action: Callable[[], Any], silent: bool = False) -> None:
        if self.broken:
            return
        try:
            action()
        except self.failure as error:
            self.broken = True
            if not silent:
                told = "results are safe, and are logged once it is back, or by the same command later"
                self.console.print(f"[yellow]warning[/] {escape(str(error))}; {told}")
