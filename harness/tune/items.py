"""Items of work (a network or a range of images), the worker that does one, and the queue."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from harness.common import names
from harness.config.training import Training
from harness.settings import Evaluation
from harness.storage.lock import HeldError, lock_directory
from harness.training.loop import Report
from harness.training.train_and_evaluate import evaluate_range, train_and_evaluate

Work = Callable[["Item", Report], dict[str, Any]]
"""Does an item and returns its last numbers."""
_WAIT_SECONDS = 5.0  # between two looks at a lock
LEFT = "left"
"""In the result of a network's item: the ranges of its next evaluation, which other items do."""


@dataclass(frozen=True)
class Item:
    """A piece of work: a network that is trained and evaluated, or a range of images of one evaluation.

    A network's item without evaluations only trains: its network is a teacher.

    directory: where its results go, such as the network's folder. label: its name in messages and in Ray's dashboard.
    settings: JSON, such as the network's training; Ray shows it. evaluations: of the network, as JSON texts.
    images: the range; None for all of a network. needs: the folder of the teacher that is trained before.
    """

    directory: Path
    label: str = field(compare=False)
    settings: dict[str, Any] = field(compare=False)
    evaluations: tuple[str, ...] = ()
    images: range | None = None
    needs: Path | None = field(default=None, compare=False)

    @classmethod
    def of(
        cls, network_dir: Path, training: Training, evaluations: Iterable[Evaluation], label: str = ""
    ) -> "Item":  # fmt: skip
        """Return the item of a network; label: by default the network's.

        Evaluations at larger radii come first: what is certified there is taken over at smaller ones.
        """
        largest_first = sorted(evaluations, key=lambda evaluation: evaluation.eps, reverse=True)
        texts = tuple(each.model_dump_json(exclude_defaults=True) for each in largest_first)
        return cls(network_dir, label or training.label, training.model_dump(mode="json"), texts)

    @property
    def asked(self) -> list[Evaluation]:
        """The evaluations."""
        return [Evaluation.model_validate_json(text) for text in self.evaluations]


@dataclass(frozen=True)
class Worker:
    """Does items. data_dir, code: as in `train_and_evaluate`. shares: whether other workers take ranges."""

    data_dir: str | None
    code: str
    shares: bool = False

    def __call__(self, item: Item, report: Report) -> dict[str, Any]:
        """Do an item, and return its last numbers. Raises as the functions that it calls do."""
        training, evaluations = Training.model_validate(item.settings), item.asked
        if item.images is not None:
            report({names.ACTIVITY: f"evaluates images {item.images.start} to {item.images.stop - 1}"})
            evaluate_range(training, evaluations[0], item.directory, item.images, self.data_dir)
            return {LEFT: []}
        with nullcontext() if self.shares else _hold_folder(item.directory, report):
            report({names.ACTIVITY: "reads its data"})
            left = train_and_evaluate(
                training, evaluations, item.directory, report, self.data_dir, code=self.code, leaves_long=self.shares
            )
        return {LEFT: [[images.start, images.stop] for images in left]}


@contextmanager
def _hold_folder(network_dir: Path, report: Report) -> Iterator[None]:
    """Hold a network's folder, which other jobs of an array, each with --here, may want. Under Ray the driver knows."""
    with ExitStack() as lock:
        while True:
            try:
                lock.enter_context(lock_directory(network_dir))
                break
            except HeldError as error:
                report({names.ACTIVITY: f"waits: {error}"})
                time.sleep(_WAIT_SECONDS)
        yield


class Items(Protocol):
    """What is to be done, of which more may come while items are done."""

    def take(self) -> Item | None:
        """Return the next item, which begins; None if there is none now."""

    def end(self, item: Item) -> None:
        """Note that an item has ended; its listener hears of it next."""

    @property
    def is_finished(self) -> bool:
        """True if none will come."""


class Queue:
    """Items in order, to which others may be added when one ends; one that needs a teacher waits for it."""

    def __init__(self, items: Iterable[Item]):
        self.waiting, self.running = deque(items), set[Item]()

    def take(self) -> Item | None:
        """Return the next item whose teacher, or which as a teacher, is not about to be trained."""
        untrained = {item.directory for item in (*self.waiting, *self.running) if not item.evaluations}
        begun = {item.directory for item in self.running}  # a candidate of a search may be a later one's teacher
        ready = (item for item in self.waiting if item.needs not in untrained)
        ready = (item for item in ready if item.evaluations or item.directory not in begun)
        if (item := next(ready, None)) is not None:
            self.waiting.remove(item)
            self.running.add(item)
        return item

    def end(self, item: Item) -> None:
        """Note that an item has ended."""
        self.running.discard(item)

    def add(self, items: list[Item]) -> None:
        """Put items before those that wait."""
        self.waiting.extendleft(reversed(items))

    @property
    def is_finished(self) -> bool:
        """True if nothing waits, and nothing runs that could add more."""
        return not self.waiting and not self.running


class Listener:
    """What happens to items, told to the process of the command; the methods here do nothing."""

    def on_start(self, item: Item) -> None:
        """An item begins, or begins again in another worker."""

    def on_report(self, item: Item, row: dict[str, Any]) -> None:
        """An item has reported."""

    def on_end(self, item: Item, error: str | None, result: dict[str, Any]) -> None:
        """An item has ended, by an error or by none; result: its last numbers."""

    def on_text(self, text: str) -> None:
        """There is something to be said to a person."""
