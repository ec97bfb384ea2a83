"""Stop running trials: SIGTERM or one Ctrl-C stops each after its epoch, a second one stops at once.

Trials look for a file in the sweep's directory, which workers on other machines see, too.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType

from harness.storage.files import write_text

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def signals_call(action: Callable[[str], None]) -> Iterator[None]:
    """Call `action` with the name of each SIGTERM or Ctrl-C within the block; for the main thread."""

    def handle(number: int, frame: FrameType | None) -> None:
        action("Ctrl-C" if number == signal.SIGINT else "SIGTERM")

    before = [signal.signal(number, handle) for number in _SIGNALS]
    try:
        yield
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)


class Stopping:
    """A context manager around running trials, entered in the main thread.

    flag: the file that trials look for. print_line: prints a line. on_change: called after the file has come or gone.
    asked: trials are to stop. interrupted: a signal asked for it. is_delaying: within `delayed`. is_due: a second
    signal came within `delayed`.
    """

    def __init__(self, flag: Path, print_line: Callable[[str], None], on_change: Callable[[], None] = lambda: None):
        self.flag, self.print_line, self.on_change = flag, print_line, on_change
        self.asked = self.interrupted = self.is_delaying = self.is_due = False
        self.stack = ExitStack()

    def __enter__(self) -> "Stopping":
        self._remove()  # of a run that was killed
        self.stack.callback(self._remove)
        self.stack.enter_context(signals_call(self._interrupt))
        return self

    def __exit__(self, *error: object) -> None:
        self.stack.close()

    def _remove(self) -> None:
        self.flag.unlink(missing_ok=True)
        self.on_change()

    def ask(self, reason: str) -> None:
        """Let running trials stop after their epoch, or their batch of evaluation, and start no other."""
        if not self.asked:
            self.asked = True
            write_text(self.flag, reason)
            self.print_line(f"{reason}: running trials end with their epoch, which is saved; Ctrl-C stops at once")
            self.on_change()

    @contextmanager
    def delayed(self) -> Iterator[None]:
        """Delay a second signal until the end of the block; a third one stops at once.

        A transaction that is broken off leaves its database locked.
        """
        self.is_delaying = True
        try:
            yield
        finally:
            self.is_delaying = False
            if self.is_due:
                raise KeyboardInterrupt

    def _interrupt(self, name: str) -> None:
        if self.is_due or (self.interrupted and not self.is_delaying):
            raise KeyboardInterrupt
        if self.interrupted:
            self.is_due = True
            self.print_line(
                f"{name} again: stops as soon as MLflow has what is being written; once more to stop at once"
            )
        self.interrupted = True
        self.ask(name)
