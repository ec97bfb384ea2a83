"""What a person sees while trials run or images are evaluated: bars in a terminal, lines elsewhere."""

import math
import time
from typing import Any, Self

from rich import progress
from rich.console import Console
from rich.text import Text

from harness.common import names
from harness.common.terminal import one_line, printable
from harness.storage.folder import TrialRecord, TrialResult
from harness.tune.time_left import TimeLeft, minutes, wall_seconds

LINE_SECONDS = 30.0
"""How long after a line about running trials the next one comes, where there is no terminal."""
_ERRORS = (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR)
_SHORT_NAMES = {"eps": names.TRAIN_EPS, "loss": names.TRAIN_LOSS, "accumulate": names.TRAIN_ACCUMULATE}


class Bars:
    """Shows bars in a terminal, and elsewhere nothing. A context manager.

    has_clock: each bar has the time left, at the speed since its start.
    """

    def __init__(self, console: Console, has_clock: bool = True):
        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            *([progress.TimeRemainingColumn()] if has_clock else []),
            progress.TextColumn("{task.fields[note]}", markup=False),
        )
        self.console = console
        self.bars = progress.Progress(
            *columns,
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=math.inf,  # parts may take minutes
        )
        self.tasks: dict[str, progress.TaskID] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def move(self, name: str, done: int, parts: int, note: str = "", label: str = "") -> None:
        """Move the bar of this name, which the first call makes. label: what stands before it; note: after."""
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(label or name, total=parts, note="")
        self.bars.update(self.tasks[name], completed=done, total=parts, note=note)

    def remove(self, name: str) -> None:
        """Remove the bar of this name, if there is one."""
        if name in self.tasks:
            self.bars.remove_task(self.tasks.pop(name))


class SweepProgress(Bars):
    """Shows the trials of a sweep: a line for each that has ended, and what each does that runs.

    In a terminal each running trial has a bar; elsewhere a line every half a minute names them.

    times: of trials that have finished before.
    """

    def __init__(self, trials: list[TrialRecord], console: Console, times: TimeLeft | None = None):
        super().__init__(console, has_clock=False)
        self.labels, self.times = {trial.key: trial.config.label for trial in trials}, times or TimeLeft()
        self.trials = {trial.key: trial for trial in trials}
        self.done = dict.fromkeys(self.trials, 0)  # epochs, of trials that have not ended
        self.running: dict[str, str] = {}  # what each running trial does
        self.at_once = 1
        self.has_begun = False  # whether a trial has trained an epoch
        self.warned = set[tuple[str, str]]()
        self.last_line = time.monotonic()
        self._move_all()

    def begin(self, key: str) -> None:
        """Show that a worker is started for a trial."""
        self._begin(key, "starts a worker")

    def report(self, key: str, row: dict[str, Any]) -> None:
        """Show what a trial reports: what it does, an epoch's row, or how many of its images are evaluated."""
        if names.ACTIVITY in row:
            self._begin(key, row[names.ACTIVITY])
        elif names.EPOCH in row:
            self.done[key] = row[names.EPOCH]
            self.times.add_epoch(self.trials[key].config.identity, row)
            self.has_begun |= row[names.EPOCH] > 0
            if row[names.EPOCH]:
                self._show(key, _short_metrics(row))
            else:
                self._begin(key, "trains its first epoch")
        elif names.EVALUATED in row:
            self.done[key] = self.trials[key].config.epochs
            self._show(key, f"evaluates image {row[names.EVALUATED]} of {row[names.IMAGES]}")

    def finished(self, key: str, result: TrialResult) -> None:
        """Show the result of a trial."""
        self.times.add_evaluation(self.trials[key].config.identity, result.metrics)
        self._end(key)
        errors = [f"{name.replace('_', ' ')} {percent(result.metrics[name])}" for name in _ERRORS]
        self._print("done", "green", key, f"{', '.join(errors)} ({self._summary()})")
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

    def print_line(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(text, soft_wrap=True)

    def tick(self) -> None:
        """Where there is no terminal, print a line about the running trials if it is time for one."""
        if self.running and not self.console.is_terminal and time.monotonic() >= self.last_line + LINE_SECONDS:
            each = [f"{self.labels[key]}: {self._epochs(key)}{what}" for key, what in self.running.items()]
            self.print_line(f"running: {'; '.join(each)} ({self._summary()})")

    def _begin(self, key: str, what: str) -> None:
        """Show what a trial begins; where there is no terminal, in a line of its own until there are epochs to show."""
        if not self.console.is_terminal and not self.has_begun:
            self.print_line(f"{self.labels[key]}: {what}")
        self._show(key, what)

    def _show(self, key: str, what: str) -> None:
        """Show what a running trial does."""
        self.running[key] = what
        self.at_once = max(self.at_once, len(self.running))
        self.move(key, self.done[key], self.trials[key].config.epochs, what, self.labels[key])
        self._move_all()
        self.tick()

    def _end(self, key: str) -> None:
        self.remove(key)
        self.running.pop(key, None)
        self.done.pop(key)
        self._move_all()

    def _move_all(self) -> None:
        """Move the bar of the sweep."""
        self.move("all trials", len(self.trials) - len(self.done), len(self.trials), self._left())

    def _summary(self) -> str:
        self.last_line = time.monotonic()
        left = f", {left}" if (left := self._left()) else ""
        return f"{len(self.trials) - len(self.done)} of {len(self.trials)} trials{left}"

    def _left(self) -> str:
        """Return how long all trials will take; an empty text if that is unknown, or nothing is left."""
        left = [self.times.seconds(self.trials[key], done) for key, done in self.done.items()]
        estimates = [seconds for seconds in left if seconds is not None]
        if not estimates or len(estimates) < len(left):
            return ""
        return f"about {minutes(wall_seconds(estimates, self.at_once))} left"

    def _epochs(self, key: str) -> str:
        """Return how many epochs a trial has trained."""
        epochs = self.trials[key].config.epochs
        return f"epoch {self.done[key]} of {epochs}, " if epochs else ""

    def _print(self, what: str, style: str, key: str, text: str) -> None:
        self.last_line = time.monotonic()
        self.console.print(Text.assemble((what, style), printable(f" {self.labels[key]}: {text}")), soft_wrap=True)


def _short_metrics(row: dict[str, Any]) -> str:
    texts = [f"{short} {row[name]:.4g}" for short, name in _SHORT_NAMES.items() if row.get(name) is not None]
    if rate := row.get(names.TRAIN_EXAMPLES_PER_SECOND):
        texts.append(f"{rate:,.0f} images/s")
    return ", ".join(texts)


def percent(value: float | None) -> str:
    """Return a text such as '12.34 %', for None that the value is not finite."""
    return "not finite" if value is None else f"{value:.2f} %"
