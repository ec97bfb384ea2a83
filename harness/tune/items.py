"""Items of work, such as a trial of a sweep or a range of images, done under Ray or in this process."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from harness.common.errors import error_line
from harness.machine.freed_memory import free_memory
from harness.training.trial import Report
from harness.tune.machines import RayOptions


@dataclass(frozen=True)
class Item:
    """A piece of work.

    directory: where its results go, such as a trial's folder.
    label: its name in messages and in Ray's dashboard.
    settings: JSON, such as a trial's config; Ray shows it.
    images: those that an item of `harness.certify` evaluates; None for every other item, which is all of a trial.
    """

    directory: Path
    label: str = field(compare=False)
    settings: dict[str, Any] = field(compare=False)
    images: range | None = None

    @property
    def size(self) -> int:
        """What progress counts: images, or 1 for all of a trial."""
        return 1 if self.images is None else len(self.images)


Work = Callable[[Item, Report], dict[str, Any]]
"""Does an item and returns its last numbers."""


class Listener:
    """What happens to items, told to the process of the command; the methods here do nothing."""

    def on_start(self, item: Item) -> None:
        """An item begins, or begins again in another worker."""

    def on_report(self, item: Item, row: dict[str, Any]) -> None:
        """An item has reported."""

    def on_end(self, item: Item, error: str | None) -> None:
        """An item has ended, by an error or by none."""

    def on_step(self) -> None:
        """Some time has passed; under Ray several times a second."""

    def on_text(self, text: str) -> None:
        """There is something to be said to a person."""


class FailedFast(Exception):  # noqa: N818
    """An item has failed, and no other is wanted: a listener raises it under --fail-fast."""


def run_items(
    items: Iterable[Item], work: Work, listener: Listener, ray: RayOptions | None, directory: Path | None = None
) -> bool:
    """Do items under Ray or, without its options, in this process; return False if `FailedFast` has ended that.

    An item that fails ends no other one. directory: where Ray writes what it knows, if that is to stay. Raises as
    `run_on_ray` does.
    """
    try:
        if ray is None:
            for item in items:
                _do_here(item, work, listener)
        else:
            listener.on_text("connects to Ray" if ray.address else "loads Ray and starts it")
            from harness.tune.ray_tune import run_on_ray  # here, since it takes seconds

            run_on_ray(iter(items), work, listener, ray, directory)
    except FailedFast:
        listener.on_text("a trial failed: the others are stopped")
        return False
    return True


def _do_here(item: Item, work: Work, listener: Listener) -> None:
    error = None
    listener.on_start(item)
    try:
        work(item, partial(listener.on_report, item))
    except Exception as cause:
        error = error_line(cause)
    free_memory()
    listener.on_end(item, error)
