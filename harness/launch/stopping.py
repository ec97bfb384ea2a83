"""How a sweep that runs is stopped: Ctrl-C once ends each running trial with its epoch, twice ends all at once, but for
what is just being written to MLflow, for which a third does not wait.

Trials are told by a file in the sweep's directory, which workers on other machines see too, or are told of.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from harness.storage.files import write_text


class Stopping:
    """A context manager around running trials, entered in the main thread.

    flag: the file that tells trials. say: told why, and what Ctrl-C does next. pass_on: called after the file has come
    or gone. asked: whether they are to stop; interrupted: by Ctrl-C; due: again, where `whole` held it.
    """

    def __init__(self, flag: Path, say: Callable[[str], None], pass_on: Callable[[], None] = lambda: None):
        self.flag, self.say, self.pass_on = flag, say, pass_on
        self.asked = self.interrupted = self.held = self.due = False
        self.before: Any = None

    def __enter__(self) -> "Stopping":
        self._remove()  # of a run that was killed
        self.before = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self.before)
        self._remove()

    def _remove(self) -> None:
        self.flag.unlink(missing_ok=True)
        self.pass_on()

    def ask(self, why: str) -> None:
        """Let running trials end with the epoch, or the batch of judging, that they are in, and begin no other."""
        if not self.asked:
            self.asked = True
            write_text(self.flag, why)
            self.say(f"{why}: running trials end with their epoch, which is kept; Ctrl-C stops at once")
            self.pass_on()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """What is done in here is not broken off by the second Ctrl-C, which then ends all; only by a third.

        A transaction broken off leaves its database locked to what is still to be written there.
        """
        self.held = True
        try:
            yield
        finally:
            self.held = False
            if self.due:
                raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.due or (self.interrupted and not self.held):
            raise KeyboardInterrupt
        if self.interrupted:
            self.due = True
            self.say("Ctrl-C again: stops once what is being written to MLflow is there, by Ctrl-C once more at once")
        self.interrupted = True
        self.ask("Ctrl-C")
