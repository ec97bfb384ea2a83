"""Stop running trials: SIGTERM or one Ctrl-C stops each after its epoch, another Ctrl-C stops at once."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from harness.storage.files import write_text

_SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopping:
    """A context manager around running trials, entered in the main thread.

    flag: the file that trials look for, in the sweep's directory, which workers on other machines see, too; None if
    trials run in this process and look at `asked`.
    asked: trials are to stop. interrupted: a signal asked for it.
    """

    def __init__(self, flag: Path | None, print_line: Callable[[str], None]):
        self.flag, self.print_line = flag, print_line
        self.asked = self.interrupted = False
        self._is_delaying = self._is_due = False  # within `delayed`; a signal that stops at once came within it
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "Stopping":
        self._remove_flag()  # of a run that was killed
        self._handlers = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._remove_flag()

    def _remove_flag(self) -> None:
        if self.flag is not None:
            self.flag.unlink(missing_ok=True)

    def ask(self, reason: str) -> None:
        """Let running trials stop after their epoch, or their batch of evaluation, and start no other."""
        if self.asked:
            return
        self.asked = True
        keys = "Ctrl-C" if self.interrupted else "Ctrl-C twice"
        self.print_line(f"{reason}: running trials end with their epoch, which is saved; to stop at once, press {keys}")
        if self.flag is not None:
            write_text(self.flag, reason)

    @contextmanager
    def delayed(self) -> Iterator[None]:
        """Delay a second Ctrl-C, or one after SIGTERM, until the end of the block; the next one stops at once.

        A transaction that is broken off leaves its database locked.
        """
        self._is_delaying = True
        try:
            yield
        finally:
            self._is_delaying = False
            if self._is_due:
                raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = _SIGNALS[signal.Signals(number)]
        if number == signal.SIGTERM and self.interrupted:  # schedulers repeat it, and it may come through a parent, too
            return
        if self._is_due or (self.interrupted and not self._is_delaying):
            raise KeyboardInterrupt
        if self.interrupted:
            self._is_due = True
            self.print_line(f"{name}: stops as soon as the current write to MLflow is done; press it again to stop now")
        self.interrupted = True
        self.ask(name)
