"""What a person sees while trials run: one live table in a terminal, a line for each finished trial elsewhere."""

import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from harness.launch.pace import Pace, minutes
from harness.storage import names
from harness.storage.folder import Trial, TrialResult
from harness.terminal import make_table, one_line

WAITING, RUNNING, DONE, FAILED, STOPPED = "waiting", "running", "done", "failed", "stopped"
_URGENT = (RUNNING, FAILED, WAITING, STOPPED, DONE)
_AROUND = 6  # lines of the screen that are the table's head, the note below it and what was printed last


@dataclass
class _Row:
    label: str
    epochs: int
    state: str = WAITING
    last: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    left: float | None = None  # seconds until it is judged


class Progress:
    """A context manager around the running trials; its methods are told what happens to them. labels: by trial key."""

    def __init__(self, trials: list[Trial], labels: dict[str, str], console: Console):
        self.console = console
        self.rows = {trial.key: _Row(labels[trial.key], trial.config.train.epochs) for trial in trials}
        self.started, self.pace = time.monotonic(), Pace()
        self.pace.left(0, 1)  # from now on
        self.live = Live(console=console, get_renderable=self._render, refresh_per_second=2, transient=True)

    def __enter__(self) -> "Progress":
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.console.is_terminal:
            self.live.stop()

    def epoch(self, key: str, row: dict[str, Any]) -> None:
        """A trial has finished an epoch."""
        self.rows[key].state, self.rows[key].last = RUNNING, row

    def judged(self, key: str, done: int, images: int) -> None:
        """So many of a trial's images are judged."""
        row = self.rows[key]
        row.left = row.pace.left(done, images)

    def finished(self, key: str, result: TrialResult) -> None:
        """A trial has its result."""
        row = self.rows[key]
        row.state, row.metrics = DONE, result.metrics
        figures = [f"{name.replace('_', ' ')} {_number(result.metrics[name])} %" for name in _ERRORS]
        ended = sum(each.state in (DONE, FAILED) for each in self.rows.values())
        left = f", about {minutes(self._left())} left" if ended < len(self.rows) else ""
        self._say("[green]done[/]", row, f"{', '.join(figures)} ({ended} of {len(self.rows)} trials{left})")
        for warning in result.warnings:
            self._say("[yellow]warning[/]", row, one_line(warning))

    def failed(self, key: str, error: str) -> None:
        """A trial has failed for good."""
        self.rows[key].state = FAILED
        self._say("[red]failed[/]", self.rows[key], error)

    def stopped(self, key: str) -> None:
        """A trial has ended as it was asked to, or has not begun."""
        self.rows[key].state = STOPPED

    def say(self, text: str) -> None:
        """Print a line above the table."""
        self.console.print(escape(text), highlight=False, soft_wrap=True)

    def _left(self) -> float | None:
        """Seconds until all trials have ended, as if judging took an epoch."""
        parts = sum(row.epochs + 1 for row in self.rows.values())
        return self.pace.left(sum(map(_done, self.rows.values())), parts)

    def _best(self) -> str:
        """The least certified error so far, and whose it is."""
        done = [row for row in self.rows.values() if row.metrics.get(names.CERTIFIED_ERROR) is not None]
        if not done:
            return ""
        best = min(done, key=lambda row: row.metrics[names.CERTIFIED_ERROR])
        return f"best so far: {best.label}, certified error {_number(best.metrics[names.CERTIFIED_ERROR])} %; "

    def _say(self, what: str, row: _Row, text: str) -> None:
        self.console.print(f"{what} {escape(row.label)}: {escape(text)}", highlight=False, soft_wrap=True)

    def _shown(self) -> list[_Row]:
        """The trials that fit on the screen: all in their order, or those at work first, and what is done last."""
        rows, room = list(self.rows.values()), max(1, self.console.height - _AROUND)
        return rows if len(rows) <= room else sorted(rows, key=lambda row: _URGENT.index(row.state))[:room]

    def _render(self) -> Group:
        titles = ("trial", "state", "epoch", "eps", "loss", "standard", "certified", "left")
        table = make_table(titles, map(_cells, self._shown()))
        states = [row.state for row in self.rows.values()]
        left = minutes(self._left())
        took = minutes(time.monotonic() - self.started) + (f", about {left} left" if left else "")
        counts = ", ".join(
            f"{states.count(state)} {state}" for state in (DONE, RUNNING, WAITING, STOPPED, FAILED) if state in states
        )
        note = "errors in percent: of training images at the present eps while running, of test images at the end"
        return Group(table, Text(f"{counts}; {took}; {self._best()}{note}", style="dim"))


_ERRORS = (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR)


def _done(row: _Row) -> int:
    """How many epochs of it are behind, and judging as one."""
    return row.epochs + 1 if row.state in (DONE, FAILED) else int(row.last.get(names.EPOCH, 0))


def _cells(row: _Row) -> list[str]:
    done = row.last.get(names.EPOCH, 0)
    state = "evaluating" if row.state == RUNNING and done == row.epochs else row.state
    shown = row.metrics if row.state == DONE else {}
    return [
        row.label,
        state,
        f"{done}/{row.epochs}",
        _number(row.last.get(names.TRAIN_EPS), 4),
        _number(row.last.get(names.TRAIN_LOSS), 3),
        _number(shown.get(names.STANDARD_ERROR, row.last.get(names.TRAIN_STANDARD_ERROR))),
        _number(shown.get(names.CERTIFIED_ERROR, row.last.get(names.TRAIN_CERTIFIED_ERROR))),
        minutes(_left(row, done)) if row.state == RUNNING else "",
    ]


def _number(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _left(row: _Row, done: int) -> float | None:
    """Seconds until the last epoch, or until all images are judged."""
    if done == row.epochs:
        return row.left
    seconds = row.last.get(names.TRAIN_EPOCH_SECONDS)
    return None if seconds is None else seconds * (row.epochs - done)
