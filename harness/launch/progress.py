"""What a person sees while trials run, in a terminal and elsewhere.

`Progress` is for a sweep, `Bar` or `Lines` for one trial, `Counts` for a certification.
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.text import Text

from harness.storage import names
from harness.storage.folder import Trial, TrialResult
from harness.terminal import make_table, one_line

WAITING, RUNNING, DONE, FAILED, STOPPED = "waiting", "running", "done", "failed", "stopped"
_URGENT = (RUNNING, FAILED, WAITING, STOPPED, DONE)
_OTHER_LINES = 6  # of the screen: the table's head, the note below it and what was printed last
_ERRORS = (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR)
_WIDTH = names.in_training(names.BOUND_WIDTH)
_EPOCH_METRICS = (
    *(names.TRAIN_EPS, names.TRAIN_LOSS, names.TRAIN_CERTIFIED_ERROR, _WIDTH, names.TRAIN_EXAMPLES_PER_SECOND),
    names.TRAIN_ACCUMULATE,
)
_SHORT_NAMES = {"eps": names.TRAIN_EPS, "loss": names.TRAIN_LOSS, "accumulate": names.TRAIN_ACCUMULATE}


class Pace:
    """Estimates the time left of work in equal parts from its speed since the first call."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None

    def left(self, done: int, parts: int) -> float | None:
        """Return the seconds until all parts are done, None at the first call."""
        now = time.monotonic()
        self.first = began, before = self.first or (now, done)
        return (now - began) / (done - before) * (parts - done) if done > before else None


def minutes(seconds: float | None) -> str:
    """Return a text such as '12.3 min', empty for None."""
    return "" if seconds is None else f"{seconds / 60:.1f} min"


@dataclass
class _Row:
    label: str
    epochs: int
    state: str = WAITING
    last: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    left: float | None = None  # seconds until all its images are evaluated


class Progress:
    """Shows the trials of a sweep: one live table in a terminal, a line for each finished trial elsewhere.

    A context manager around the running trials. labels: by trial key.
    """

    def __init__(self, trials: list[Trial], labels: dict[str, str], console: Console):
        self.console = console
        self.rows = {trial.key: _Row(labels[trial.key], trial.config.train.epochs) for trial in trials}
        self.started, self.pace = time.monotonic(), Pace()
        self.pace.left(0, 1)  # the first call
        self.live = Live(console=console, get_renderable=self._render, refresh_per_second=2, transient=True)

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def epoch(self, key: str, row: dict[str, Any]) -> None:
        """Show that a trial has finished an epoch."""
        self.rows[key].state, self.rows[key].last = RUNNING, row

    def evaluated(self, key: str, done: int, images: int) -> None:
        """Show how many of a trial's images are evaluated."""
        row = self.rows[key]
        row.left = row.pace.left(done, images)

    def finished(self, key: str, result: TrialResult) -> None:
        """Show the result of a trial."""
        row = self.rows[key]
        row.state, row.metrics = DONE, result.metrics
        errors = [f"{name.replace('_', ' ')} {_number(result.metrics[name])} %" for name in _ERRORS]
        ended = sum(each.state in (DONE, FAILED) for each in self.rows.values())
        left = f", about {minutes(self._left())} left" if ended < len(self.rows) else ""
        self._print("[green]done[/]", row, f"{', '.join(errors)} ({ended} of {len(self.rows)} trials{left})")
        for warning in result.warnings:
            self._print("[yellow]warning[/]", row, one_line(warning))

    def failed(self, key: str, error: str) -> None:
        """Show that a trial has failed, after all retries."""
        self.rows[key].state = FAILED
        self._print("[red]failed[/]", self.rows[key], error)

    def stopped(self, key: str) -> None:
        """Show that a trial was stopped, or has not begun, since the sweep stops."""
        self.rows[key].state = STOPPED

    def print_line(self, text: str) -> None:
        """Print a line above the table."""
        self.console.print(escape(text), highlight=False, soft_wrap=True)

    def _left(self) -> float | None:
        """Return the seconds until all trials have ended, as if evaluation took an epoch."""
        parts = sum(row.epochs + 1 for row in self.rows.values())
        return self.pace.left(sum(map(_parts_done, self.rows.values())), parts)

    def _best(self) -> str:
        """Describe the trial with the smallest certified error so far."""
        done = [row for row in self.rows.values() if row.metrics.get(names.CERTIFIED_ERROR) is not None]
        if not done:
            return ""
        best = min(done, key=lambda row: row.metrics[names.CERTIFIED_ERROR])
        return f"best so far: {best.label}, certified error {_number(best.metrics[names.CERTIFIED_ERROR])} %; "

    def _print(self, what: str, row: _Row, text: str) -> None:
        self.console.print(f"{what} {escape(row.label)}: {escape(text)}", highlight=False, soft_wrap=True)

    def _visible_rows(self) -> list[_Row]:
        """Return the trials that fit on the screen: all in order, or running ones first and finished ones last."""
        rows, lines = list(self.rows.values()), max(1, self.console.height - _OTHER_LINES)
        return rows if len(rows) <= lines else sorted(rows, key=lambda row: _URGENT.index(row.state))[:lines]

    def _render(self) -> Group:
        titles = ("trial", "state", "epoch", "eps", "loss", "standard", "certified", "left")
        table = make_table(titles, map(_cells, self._visible_rows()))
        states = [row.state for row in self.rows.values()]
        left = minutes(self._left())
        duration = minutes(time.monotonic() - self.started) + (f", about {left} left" if left else "")
        counts = ", ".join(
            f"{states.count(state)} {state}" for state in (DONE, RUNNING, WAITING, STOPPED, FAILED) if state in states
        )
        note = "errors in percent: of training images at the present eps while running, of test images at the end"
        return Group(table, Text(f"{counts}; {duration}; {self._best()}{note}", style="dim"))


def _parts_done(row: _Row) -> int:
    """Return the epochs that are done, and one more for evaluation."""
    return row.epochs + 1 if row.state in (DONE, FAILED) else int(row.last.get(names.EPOCH, 0))


def _cells(row: _Row) -> list[str]:
    done = row.last.get(names.EPOCH, 0)
    state = "evaluating" if row.state == RUNNING and done == row.epochs else row.state
    metrics = row.metrics if row.state == DONE else {}
    return [
        row.label,
        state,
        f"{done}/{row.epochs}",
        _number(row.last.get(names.TRAIN_EPS), 4),
        _number(row.last.get(names.TRAIN_LOSS), 3),
        _number(metrics.get(names.STANDARD_ERROR, row.last.get(names.TRAIN_STANDARD_ERROR))),
        _number(metrics.get(names.CERTIFIED_ERROR, row.last.get(names.TRAIN_CERTIFIED_ERROR))),
        minutes(_seconds_left(row, done)) if row.state == RUNNING else "",
    ]


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _seconds_left(row: _Row, done: int) -> float | None:
    """Return the seconds until the last epoch ends, or until all images are evaluated."""
    if done == row.epochs:
        return row.left
    seconds = row.last.get(names.TRAIN_EPOCH_SECONDS)
    return None if seconds is None else seconds * (row.epochs - done)


class Lines:
    """Prints a line for each epoch of a trial, and two while it is evaluated. A context manager."""

    def __init__(self) -> None:
        self.pace, self.estimated = Pace(), False

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def epoch(self, row: dict[str, Any]) -> None:
        """Show an epoch's row; epoch 0 is the untrained network."""
        metrics = ", ".join(f"{name} {row[name]:.5g}" for name in _EPOCH_METRICS if row.get(name) is not None)
        print(f"epoch {row[names.EPOCH]}: {metrics}", flush=True)

    def evaluated(self, done: int, images: int) -> None:
        """Show how many images are evaluated."""
        left = self.pace.left(done, images)
        if left is None:
            print(f"evaluating {images - done:,} images", flush=True)
        elif done < images and not self.estimated:
            self.estimated = True
            print(f"evaluated {done:,} of {images:,} images, {minutes(left)} left", flush=True)


class Bar:
    """Shows in a terminal one bar for a trial's epochs, then one for its images. Used as `Lines` is."""

    def __init__(self, epochs: int, console: Console):
        self.epochs = epochs
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")
        self.bars = Bars(*columns, console=console, transient=True)
        self.tasks: dict[str, tuple[TaskID, Pace]] = {}

    def __enter__(self) -> "Bar":
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def epoch(self, row: dict[str, Any]) -> None:
        """Show an epoch's row; epoch 0 is the untrained network."""
        metrics = [f"{short} {row[name]:.4g}" for short, name in _SHORT_NAMES.items() if row.get(name) is not None]
        self._move("epochs", row[names.EPOCH], self.epochs, metrics)

    def evaluated(self, done: int, images: int) -> None:
        """Show how many images are evaluated."""
        self._move("images evaluated", done, images, [])

    def _move(self, name: str, done: int, parts: int, metrics: list[str]) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=parts, note=""), Pace()
        task, pace = self.tasks[name]
        left = minutes(pace.left(done, parts))
        note = ", ".join([f"{left} left", *metrics] if left else metrics)
        self.bars.update(task, completed=done, note=note)


class Counts:
    """Shows in a terminal a bar with counts of verdicts, elsewhere nothing. A context manager."""

    def __init__(self, images: int, console: Console):
        columns = TextColumn("images"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}")
        self.bars = Bars(*columns, console=console, transient=True, disable=not console.is_terminal)
        self.task, self.images, self.pace = self.bars.add_task("images", total=images, note=""), images, Pace()
        self.verdicts: Counter[str] = Counter()

    def __enter__(self) -> "Counts":
        self.pace.left(0, self.images)
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def add(self, verdicts: dict[str, int]) -> None:
        """Add the number of images with each verdict."""
        self.verdicts.update(verdicts)
        done, undecided = self.verdicts.total(), sum(self.verdicts[kind] for kind in names.UNDECIDED)
        left = minutes(self.pace.left(done, self.images))
        certified, falsified = self.verdicts[names.CERTIFIED], self.verdicts[names.FALSIFIED]
        note = f"{certified:,} certified, {falsified:,} falsified, {undecided:,} undecided"
        self.bars.update(self.task, completed=done, note=f"{note}, {left} left" if left else note)
