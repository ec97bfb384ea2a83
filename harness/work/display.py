"""What a person sees while jobs are done: bars in a terminal, lines elsewhere."""

import math
import threading
import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, Self

from rich import progress
from rich.console import Console
from rich.text import Text

from harness.common import names
from harness.common.terminal import LINE_SECONDS, one_line, percent, printable, repeated, with_plural
from harness.storage import folder, training_progress
from harness.storage.state import EvaluationState, read_state
from harness.work.jobs import Job
from harness.work.queue import Listener, Queue

_ERRORS = (names.STANDARD_ERROR, names.ATTACK_ERROR, names.CERTIFIED_ERROR)
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
    """Shows jobs: what each does that runs, and a line for what has ended, which a subclass words.

    In a terminal each running job has a bar; elsewhere a line every half a minute names them, from a thread of its
    own: a job of this process reports nothing while its steps are compiled, say.

    unit: what is counted, such as networks. total: how many there are. done: before.
    """

    def __init__(self, console: Console, unit: str, total: int, done: int = 0):
        super().__init__(console)
        self.unit, self.total, self.done, self.note = unit, total, done, ""
        self.text = ""  # the last line that was not about a job
        self.running: dict[Job, tuple[float, str]] = {}  # the share of each that is done, and what it does
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

    def on_start(self, job: Job) -> None:
        """Show that a job begins."""
        self._update(job, 0.0, "starts")

    def on_report(self, job: Job, row: dict[str, Any]) -> None:
        """Show what a job reports: what it does, an epoch's row, or how many of its images are evaluated."""
        share, _ = self.running.get(job, (0.0, ""))
        if names.ACTIVITY in row:
            self._update(job, share, row[names.ACTIVITY])
        elif row.get(names.EPOCH) == 0:
            self._update(job, 0.0, "trains its first epoch")
        elif names.EPOCH in row:
            self.has_begun, epochs = True, job.record.config.epochs
            numbers = ", ".join([f"epoch {row[names.EPOCH]} of {epochs}", *_short_metrics(row)])
            self._update(job, row[names.EPOCH] / epochs, numbers)
        elif names.EVALUATED in row:
            self.has_begun = True
            images = f"image {row[names.EVALUATED]} of {row[names.IMAGES]}"
            self._update(job, 1.0, f"evaluates {images} at eps {row[names.EVALUATION_EPS]}")

    def print_running(self) -> None:
        """Where there is no terminal, print a line about what runs, or is done before the first job, if it is time."""
        with self.lock:
            each = [f"{job.label}: {what}" for job, (_, what) in self.running.items()]
            each = each or ([] if self.has_begun else [self.text])
            if any(each) and not self.console.is_terminal and time.monotonic() >= self.next_line:
                self.next_line = time.monotonic() + LINE_SECONDS
                self.console.print(f"running: {'; '.join(each)} ({self.summary()})")

    def end(self, job: Job, is_done: bool) -> None:
        """Note that a job has ended. is_done: whether with it one more of what is counted is done."""
        self.has_begun = True
        self.remove(job)
        with self.lock:
            self.running.pop(job, None)
        self.done += is_done
        self._move_all()

    def print_outcome(self, what: str, style: str, job: Job, text: str) -> None:
        """Print a line about a job above the bars, such as "done cnn5 ibp seed 0: ..."."""
        self.next_line = time.monotonic() + LINE_SECONDS
        self.console.print(Text.assemble((what, style), printable(f" {job.name}: {text}")))

    def show_teacher(self, job: Job, error: str | None) -> None:
        """Print what came of a teacher."""
        if error is None:
            self.print_outcome("done", "green", job, f"trained ({self.summary()})")
        else:
            self.print_outcome("failed", "red", job, error)

    def summary(self) -> str:
        """Return how much is done and the time that is left, such as "3 of 12 trials, about 4.0 min left".

        There is no estimate while jobs are evaluated: that may take seconds or hours.
        """
        is_evaluated = any(share >= 1 for share, _ in self.running.values())
        seconds = self.seconds_left(self) if self.done < self.total and not is_evaluated else None
        return f"{self._count()}{'' if seconds is None else f', about {minutes(seconds)} left'}"

    def _update(self, job: Job, share: float, activity: str) -> None:
        """Note how far a running job is and what it does, and move its bar; print that before anything is done."""
        if not self.console.is_terminal and not self.has_begun:
            self.on_text(f"{job.label}: {activity}")
        with self.lock:
            self.running[job] = share, activity
        self.move(job, job.label, share, activity)
        self._move_all()
        self.print_running()

    def _move_all(self) -> None:
        """Move the bar of all jobs, by the shares of those that run, too."""
        done = self.done + sum(share for job, (share, _) in self.running.items() if job.trains)
        self.move(self, self._count(), done / max(1, self.total), self.note)

    def _count(self) -> str:
        return f"{self.done} of {self.total} {self.unit}"


Log = Callable[[Path, bool], None]
"""Takes the folder of a network that has something new, and whether it is worked on."""


class StudyProgress(Progress):
    """Shows and logs the networks of a study: what they report, and how their evaluations end.

    networks: their folders; other jobs train teachers.
    """

    def __init__(self, console: Console, queue: Queue, networks: Collection[Path], log: Log | None):
        self.queue, self.networks, self.log = queue, networks, log or (lambda *_: None)
        self.warned, self.started = set[tuple[Path, str]](), dict[Path, None]()
        super().__init__(console, "networks", len(networks))

    def __exit__(self, *error: object) -> None:
        for network_dir in self.started:  # MLflow then says that nobody works on them
            self.log(network_dir, False)
        super().__exit__(*error)

    def on_start(self, job: Job) -> None:
        """Show that a job begins."""
        super().on_start(job)
        if job.network_dir in self.networks:
            self.started[job.network_dir] = None

    def on_report(self, job: Job, row: dict[str, Any]) -> None:
        """Show what a job does, and log the row of an epoch, except a teacher's."""
        super().on_report(job, row)
        if names.EPOCH in row:
            self._warn(job, training_progress.read_lines(job.network_dir / folder.TRAINING_WARNINGS))
        if job.network_dir in self.networks and job.trains and (names.EPOCH in row or names.ACTIVITY in row):
            self.log(job.network_dir, True)

    def on_end(self, job: Job, error: str | None) -> None:
        """Show and log what came of a network's training, or of an evaluation."""
        is_network, left = job.network_dir in self.networks, self.queue.left(job.network_dir)
        self.end(job, is_done=is_network and not left)
        if not is_network:
            self.show_teacher(job, error)
            return
        self.log(job.network_dir, bool(left))
        if job.evaluation_dir is not None and (job.ends_evaluation or error is not None):
            self._show(job, read_state(job.evaluation_dir))
        elif error is not None:
            self.print_outcome("failed", "red", job, error)

    def summary(self) -> str:
        """Return how much is done; there is no estimate of the time while workers share images."""
        return self._count() if self.queue.shared_images() else super().summary()

    def _count(self) -> str:
        """Return how many networks are done, and how many images of evaluations that workers share are left."""
        images = self.queue.shared_images()
        left = f", {with_plural(images, 'image')} left to evaluate" if images else ""
        return super()._count() + left

    def _show(self, job: Job, state: EvaluationState) -> None:
        """Show the result or the failure of an evaluation."""
        text = ""
        if state.trained and state.evaluation and len(folder.evaluation_folders(job.network_dir)) > 1:
            text = f"{state.evaluation.config.description}: "
        if state.result is None:
            self.print_outcome("failed", "red", job, text + state.description)
            return
        errors = [f"{name.replace('_', ' ')} {percent(state.result.metrics[name])}" for name in _ERRORS]
        taken = sum(state.result.taken_over.values())
        text += ", ".join(errors) + (f", {with_plural(taken, 'answer')} taken over" if taken else "")
        self.print_outcome("done", "green", job, f"{text} ({self.summary()})")
        self._warn(job, state.result.warnings)

    def _warn(self, job: Job, warnings: Iterable[str]) -> None:
        """Show warnings of a network that were not shown before: each evaluation repeats those of training."""
        for warning in warnings:
            if (job.network_dir, warning) not in self.warned:
                self.warned.add((job.network_dir, warning))
                self.print_outcome("warning", "yellow", job, one_line(warning))


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
