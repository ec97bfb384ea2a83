"""What a person sees while trials run or images are evaluated: bars in a terminal, lines elsewhere."""

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from rich import progress
from rich.console import Console
from rich.text import Text

from harness.common import names
from harness.common.masking import mask_secrets
from harness.common.terminal import one_line, printable, with_plural
from harness.storage import folder
from harness.storage.folder import TrialRecord, TrialResult
from harness.tune.stopping import Stopping

_ERRORS = (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR)
_SHORT_NAMES = {"eps": names.TRAIN_EPS, "loss": names.TRAIN_LOSS, "accumulate": names.TRAIN_ACCUMULATE}


def minutes(seconds: float) -> str:
    """Return a text such as '12.3 min', or '40 s' below a minute."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"


class _TimeLeft(progress.TimeRemainingColumn):
    """The time left of a bar, or nothing while nobody can know it."""

    def render(self, task: progress.Task) -> Text:
        """Return the cell of a bar."""
        return Text("unknown", "progress.remaining") if task.fields["is_unknown"] else super().render(task)


class Bars:
    """Shows bars with the time left in a terminal, and elsewhere nothing. A context manager."""

    def __init__(self, console: Console):
        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            _TimeLeft(),
            progress.TextColumn("{task.fields[note]}", markup=False),
        )
        self.console = console
        self.bars = progress.Progress(
            *columns,
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=math.inf,  # epochs may take minutes
        )
        self.tasks: dict[str, progress.TaskID] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def move(self, name: str, done: int, parts: int, note: str = "", is_unknown: bool = False) -> None:
        """Move the bar of this name, which the first call makes.

        note: what stands beside it. is_unknown: True if parts that are left may take another time than those done.
        """
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=parts, note="", is_unknown=is_unknown)
        self.bars.update(self.tasks[name], completed=done, note=note, is_unknown=is_unknown)

    def remove(self, name: str) -> None:
        """Remove the bar of this name, if there is one."""
        if name in self.tasks:
            self.bars.remove_task(self.tasks.pop(name))


class SweepProgress(Bars):
    """Shows the trials of a sweep: in a terminal a bar for each that runs, and a line for each that has ended.

    labels: by trial key.
    """

    def __init__(self, trials: list[TrialRecord], labels: dict[str, str], console: Console):
        super().__init__(console)
        self.labels = labels
        self.epochs = {trial.key: trial.config.epochs for trial in trials}
        self.rows = {trial.key: trial.config.identity for trial in trials}
        self.known_rows = set[str]()
        self.warned = set[tuple[str, str]]()
        self.done = dict.fromkeys(self.epochs, 0)  # epochs, and one for evaluation
        self.ended = 0
        self._move_all()

    def report(self, key: str, row: dict[str, Any]) -> None:
        """Show an epoch's row of a trial, or how many of its images are evaluated."""
        label = self.labels[key]
        if names.EPOCH in row:
            self.done[key] = row[names.EPOCH]
            self.move(label, row[names.EPOCH], self.epochs[key], _short_metrics(row))
        else:
            self.remove(label)
            self.move(f"{label}: images", row[names.EVALUATED], row[names.IMAGES])
        self._move_all()

    def finished(self, key: str, result: TrialResult) -> None:
        """Show the result of a trial."""
        self.known_rows.add(self.rows[key])
        self._end(key)
        errors = [f"{name.replace('_', ' ')} {percent(result.metrics[name])}" for name in _ERRORS]
        seconds = next(task.time_remaining for task in self.bars.tasks if task.description == "all trials")
        left = f", about {minutes(seconds)} left" if seconds else ""
        if unknown := self._unknown_rows():
            left = f", time left unknown: {with_plural(len(unknown), 'row')} without a finished trial"
        self._print("done", "green", key, f"{', '.join(errors)} ({self.ended} of {len(self.done)} trials{left})")
        self.warn(key, result.warnings)

    def warn(self, key: str, warnings: list[str]) -> None:
        """Show the warnings of a trial that were not shown before."""
        for warning in warnings:
            if (key, warning) not in self.warned:
                self.warned.add((key, warning))
                self._print("warning", "yellow", key, one_line(warning))

    def failed(self, key: str, error: str) -> None:
        """Show that a trial has failed, after all retries."""
        self._end(key)
        self._print("failed", "red", key, error)

    def stopped(self, key: str) -> None:
        """Show that a trial was stopped, or has not begun, since the sweep stops."""
        self.remove(self.labels[key])
        self.remove(f"{self.labels[key]}: images")

    def print_line(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, soft_wrap=True)

    def _end(self, key: str) -> None:
        self.stopped(key)
        self.done[key] = self.epochs[key] + 1
        self.ended += 1
        self._move_all()

    def _move_all(self) -> None:
        """Move the bar of the sweep, as if an evaluation took an epoch."""
        note = f"{self.ended} of {len(self.done)} trials have ended"
        parts = sum(self.epochs.values()) + len(self.epochs)
        self.move("all trials", sum(self.done.values()), parts, note, bool(self._unknown_rows()))

    def _unknown_rows(self) -> set[str]:
        """Return the rows with trials that have not ended, of which none has finished here."""
        return {self.rows[key] for key, epochs in self.epochs.items() if self.done[key] <= epochs} - self.known_rows

    def _print(self, what: str, style: str, key: str, text: str) -> None:
        self.console.print(Text.assemble((what, style), printable(f" {self.labels[key]}: {text}")), soft_wrap=True)


@dataclass
class Callbacks:
    """Shows and logs what trials report and how they end.

    log: called with a trial's folder that has something new, and whether it runs. begun: the trials that have reported.
    """

    progress: SweepProgress
    stopping: Stopping
    log: Callable[[Path, bool], None] = lambda trial_dir, running: None
    fail_fast: bool = False
    begun: set[Path] = field(default_factory=set)

    def on_report(self, trial_dir: Path, row: dict[str, Any]) -> None:
        """Show and log an epoch's row, or how many images are evaluated."""
        if not trial_dir.is_dir():  # `on_end` reports it
            return
        self.progress.report(trial_dir.name, row)
        if names.EPOCH in row:
            self.progress.warn(trial_dir.name, folder.read_training_warnings(trial_dir))
        if names.EPOCH in row or trial_dir not in self.begun:  # a trial that is only evaluated reports no epoch
            with self.stopping.delayed():
                self.log(trial_dir, True)
        self.begun.add(trial_dir)

    def on_end(self, trial_dir: Path, error: str | None) -> None:
        """Show and log the result or the failure of a trial."""
        if not trial_dir.is_dir():
            self.progress.failed(trial_dir.name, f"its folder is gone: {trial_dir}")
            return
        result, failure = read_outcome(trial_dir, error, self.stopping)
        if result is not None:
            self.progress.finished(trial_dir.name, result)
        elif failure is not None:
            self.progress.failed(trial_dir.name, failure["error"])
            if self.fail_fast:
                self.stopping.ask("a trial failed")
        else:
            self.progress.stopped(trial_dir.name)
        with self.stopping.delayed():
            self.log(trial_dir, False)


def read_outcome(
    trial_dir: Path, error: str | None, stopping: Stopping
) -> tuple[TrialResult | None, dict[str, Any] | None]:
    """Return the result of a trial that has ended, or its failure, which is written here if its worker died.

    Neither if the trial was stopped. error: of its worker.
    """
    result, failure = folder.read_result(trial_dir), folder.read_failure(trial_dir)
    if result is None and failure is None and (error is not None or not stopping.asked):
        failure = {"error": mask_secrets(error or "its worker ended without a result")}
        with suppress(OSError):  # of a full disk
            failure = folder.write_failure(trial_dir, failure["error"])
    return result, None if result else failure


def _short_metrics(row: dict[str, Any]) -> str:
    return ", ".join(f"{short} {row[name]:.4g}" for short, name in _SHORT_NAMES.items() if row.get(name) is not None)


def percent(value: float | None) -> str:
    """Return a text such as '12.34 %', for None that the value is not finite."""
    return "not finite" if value is None else f"{value:.2f} %"
