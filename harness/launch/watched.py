"""What a person sees of one trial: in a terminal a bar with the time that is left, elsewhere lines."""

from collections import Counter
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bars

from harness.launch.pace import Pace, minutes
from harness.storage import names

_WIDTH = names.in_training(names.BOUND_WIDTH)
_FIGURES = (names.TRAIN_EPS, names.TRAIN_LOSS, names.TRAIN_CERTIFIED_ERROR, _WIDTH, names.TRAIN_EXAMPLES_PER_SECOND)


class Lines:
    """A context manager around a trial, told what it does: a line for each epoch, two for judging."""

    def __init__(self) -> None:
        self.pace, self.estimated = Pace(), False

    def __enter__(self) -> "Lines":
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def epoch(self, row: dict[str, Any]) -> None:
        """The trial has finished an epoch, or is about to begin its first."""
        figures = (*_FIGURES, names.TRAIN_ACCUMULATE)  # which only some epochs have
        told = ", ".join(f"{name} {row[name]:.5g}" for name in figures if row.get(name) is not None)
        print(f"epoch {row[names.EPOCH]}: {told}", flush=True)

    def judged(self, done: int, images: int) -> None:
        """So many of the images are judged."""
        left = self.pace.left(done, images)
        if left is None:
            print(f"judging {images - done:,} images", flush=True)
        elif done < images and not self.estimated:
            self.estimated = True
            print(f"judged {done:,} of {images:,} images, {minutes(left)} left", flush=True)


class Bar:
    """`Lines` for a terminal: one bar for the trial's epochs, then one for the images that are judged."""

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
        """The trial has finished an epoch, or is about to begin its first."""
        shown = {"eps": names.TRAIN_EPS, "loss": names.TRAIN_LOSS, "accumulate": names.TRAIN_ACCUMULATE}
        figures = [f"{what} {row[name]:.4g}" for what, name in shown.items() if row.get(name) is not None]
        self._move("epochs", row[names.EPOCH], self.epochs, figures)

    def judged(self, done: int, images: int) -> None:
        """So many of the images are judged."""
        self._move("images judged", done, images, [])

    def _move(self, name: str, done: int, parts: int, figures: list[str]) -> None:
        if name not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=parts, note=""), Pace()
        task, pace = self.tasks[name]
        left = minutes(pace.left(done, parts))
        note = ", ".join([f"{left} left", *figures] if left else figures)
        self.bars.update(task, completed=done, note=note)


class Counts:
    """A context manager around images that are judged in pieces: in a terminal a bar with counts, elsewhere nothing."""

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
        """So many more images have each verdict."""
        self.verdicts.update(verdicts)
        done, open_ = self.verdicts.total(), sum(self.verdicts[kind] for kind in names.OPEN)
        left = minutes(self.pace.left(done, self.images))
        certified, attacked = self.verdicts[names.CERTIFIED], self.verdicts[names.ATTACKED]
        note = f"{certified:,} certified, {attacked:,} attacked, {open_:,} open"
        self.bars.update(self.task, completed=done, note=f"{note}, {left} left" if left else note)
