"""How running trials are stopped: SIGTERM or one Ctrl-C ends each with its epoch, a second one stops at once.

Trials see a file in the sweep's directory, which workers on other machines see, too.
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
    """Within, SIGTERM and Ctrl-C call `action` with the signal's name; for the main thread."""

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

    flag: the file that trials look for. say: prints a line. pass_on: called after the file has come or gone.
    asked: trials are to stop. interrupted: a signal asked for it. due: a second signal came within `whole`.
    """

    def __init__(self, flag: Path, say: Callable[[str], None], pass_on: Callable[[], None] = lambda: None):
        self.flag, self.say, self.pass_on = flag, say, pass_on
        self.asked = self.interrupted = self.held = self.due = False
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
        self.pass_on()

    def ask(self, why: str) -> None:
        """Let running trials end with their epoch, or their batch of evaluation, and start no other."""
        if not self.asked:
            self.asked = True
            write_text(self.flag, why)
            self.say(f"{why}: running trials end with their epoch, which is saved; Ctrl-C stops at once")
            self.pass_on()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within, a second signal waits for the end of the block; a third does not.

        A transaction that is broken off leaves its database locked.
        """
        self.held = True
        try:
            yield
        finally:
            self.held = False
            if self.due:
                raise KeyboardInterrupt

    def _interrupt(self, name: str) -> None:
        if self.due or (self.interrupted and not self.held):
            raise KeyboardInterrupt
        if self.interrupted:
            self.due = True
            self.say(f"{name} again: stops as soon as MLflow has what is being written; once more to stop at once")
        self.interrupted = True
        self.ask(name)
