"""What a person sees while items are done: bars in a terminal, lines elsewhere."""

import math
import threading
import time
from typing import Any, Self

from rich import progress
from rich.console import Console
from rich.text import Text

from harness.common import names
from harness.common.terminal import LINE_SECONDS, one_line, printable, repeated
from harness.tune.items import Item, Listener

_SHORT_NAMES = {"eps": names.TRAIN_EPS, "loss": names.TRAIN_LOSS}


class Bars:
    """Shows bars in a terminal, and elsewhere nothing. A context manager."""

    def __init__(self, console: Console):
        self.console = console
        self.bars = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[note]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
            speed_estimate_period=math.inf,  # parts may take minutes
        )
        self.tasks: dict[Any, progress.TaskID] = {}

    def __enter__(self) -> Self:
        self.bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bars.stop()

    def move(self, key: Any, name: str, share: float, note: str = "") -> None:
        """Move the bar of this key, which the first call makes. name: what stands before it; note: after."""
        if key not in self.tasks:
            self.tasks[key] = self.bars.add_task(name, total=1.0, note="")
        self.bars.update(self.tasks[key], description=name, completed=share, note=note)

    def remove(self, key: Any) -> None:
        """Remove the bar of this key, if there is one."""
        if key in self.tasks:
            self.bars.remove_task(self.tasks.pop(key))

    def seconds_left(self, key: Any) -> float | None:
        """Return how long the rest will take, at the speed so far; None before there is one."""
        return next(task.time_remaining for task in self.bars.tasks if task.id == self.tasks[key])


class Progress(Bars, Listener):
    """Shows items: what each does that runs, and a line for each that has ended, which a subclass words.

    In a terminal each running item has a bar; elsewhere a line every half a minute names them, from a thread of its
    own: an item of this process reports nothing while its steps are compiled, say.

    unit: what is counted, such as networks. total: how many there are. done: before.
    """

    def __init__(self, console: Console, unit: str, total: int, done: int = 0):
        super().__init__(console)
        self.unit, self.total, self.done, self.note = unit, total, done, ""
        self.text = ""  # the last line that was not about an item
        self.running: dict[Item, tuple[float, str]] = {}  # the share of each that is done, and what it does
        self.has_begun = False  # an epoch or a range is done: from then on lines come by the clock alone
        self.next_line = time.monotonic() + LINE_SECONDS
        self.lock = threading.RLock()
        self.thread = repeated(self.print_running, LINE_SECONDS / 30)
        self._move_all()

    def __enter__(self) -> Self:
        self.thread.__enter__()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self.thread.__exit__(None, None, None)
        super().__exit__(*error)

    def on_text(self, text: str) -> None:
        """Print a line above the bars."""
        self.text = text
        self.console.print(text)

    def on_start(self, item: Item) -> None:
        """Show that an item begins."""
        self._update(item, 0.0, "starts")

    def on_report(self, item: Item, row: dict[str, Any]) -> None:
        """Show what an item reports: what it does, an epoch's row, or how many of its images are evaluated."""
        share, _ = self.running.get(item, (0.0, ""))
        if names.ACTIVITY in row:
            self._update(item, share, row[names.ACTIVITY])
        elif row.get(names.EPOCH) == 0:
            self._update(item, 0.0, "trains its first epoch")
        elif names.EPOCH in row:
            self.has_begun, epochs = True, item.settings["train"]["epochs"]
            numbers = ", ".join([f"epoch {row[names.EPOCH]} of {epochs}", *_short_metrics(row)])
            self._update(item, row[names.EPOCH] / epochs, numbers)
        elif names.EVALUATED in row:
            self.has_begun = True
            images = f"image {row[names.EVALUATED]} of {row[names.IMAGES]}"
            self._update(item, 1.0, f"evaluates {images} at eps {row[names.EVALUATION_EPS]}")

    def print_running(self) -> None:
        """Where there is no terminal, print a line about what runs, or is done before the first item, if it is time."""
        with self.lock:
            each = [f"{item.label}: {what}" for item, (_, what) in self.running.items()]
            each = each or ([] if self.has_begun else [self.text])
            if any(each) and not self.console.is_terminal and time.monotonic() >= self.next_line:
                self.next_line = time.monotonic() + LINE_SECONDS
                self.console.print(f"running: {'; '.join(each)} ({self.summary()})")

    def end(self, item: Item, is_done: bool = True) -> None:
        """Note that an item has ended. is_done: whether with it one more of what is counted is done."""
        self.has_begun = True
        self.remove(item)
        with self.lock:
            self.running.pop(item, None)
        self.done += is_done
        self._move_all()

    def print_outcome(self, what: str, style: str, item: Item, text: str) -> None:
        """Print a line about an item above the bars, such as "done cnn5 ibp seed 0: ..."."""
        self.next_line = time.monotonic() + LINE_SECONDS
        self.console.print(Text.assemble((what, style), printable(f" {item.label}: {text}")))

    def warn(self, item: Item, warning: str) -> None:
        """Print a warning of an item."""
        self.print_outcome("warning", "yellow", item, one_line(warning))

    def summary(self) -> str:
        """Return how much is done and the time that is left, such as "3 of 12 trials, about 4.0 min left".

        There is no estimate while items are evaluated: that may take seconds or hours.
        """
        is_evaluated = any(share >= 1 for share, _ in self.running.values())
        seconds = self.seconds_left(self) if self.done < self.total and not is_evaluated else None
        return f"{self._count()}{'' if seconds is None else f', about {minutes(seconds)} left'}"

    def _update(self, item: Item, share: float, activity: str) -> None:
        """Note how far a running item is and what it does, and move its bar; print that before anything is done."""
        if not self.console.is_terminal and not self.has_begun:
            self.on_text(f"{item.label}: {activity}")
        with self.lock:
            self.running[item] = share, activity
        self.move(item, item.label, share, activity)
        self._move_all()
        self.print_running()

    def _move_all(self) -> None:
        """Move the bar of all items, by the shares of those that run, too."""
        done = self.done + sum(share for item, (share, _) in self.running.items() if item.images is None)
        self.move(self, self._count(), done / max(1, self.total), self.note)

    def _count(self) -> str:
        return f"{self.done} of {self.total} {self.unit}"


def _short_metrics(row: dict[str, Any]) -> list[str]:
    texts = [f"{short} {row[name]:.4g}" for short, name in _SHORT_NAMES.items() if row.get(name) is not None]
    rate = row.get(names.TRAIN_EXAMPLES_PER_SECOND)
    return [*texts, f"{rate:,.0f} images/s"] if rate else texts


def describe_work(seconds: list[float], what: str, at_once: int) -> str:
    """Return a text about the time of work, by the seconds of each part. at_once: how many run side by side."""
    work = f"time: {minutes(sum(seconds))} of work for {what}"
    return f"{work}; {minutes(max([*seconds, sum(seconds) / at_once]))} side by side" if at_once > 1 else work


def minutes(seconds: float) -> str:
    """Return a text such as '12.3 min', or '40 s' below a minute."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s"
