"""When a trial stops, and when it saves what is done."""

import time
from collections.abc import Callable


class Stopped(BaseException):
    """The trial was asked to stop, and what is done is saved: no error, and so no Exception."""


class Clock:
    """When to save and when to stop.

    keep_every: seconds between two saves.
    asked: returns True once the trial is to stop.
    """

    def __init__(self, keep_every: float = 30.0, asked: Callable[[], bool] = lambda: False):
        self.keep_every, self.asked = keep_every, asked
        self.saved = time.monotonic()

    def check(self) -> None:
        """Raise Stopped if the trial is to stop."""
        if self.asked():
            raise Stopped

    def due(self) -> bool:
        """Return True if it is time to save, and take it as done."""
        now = time.monotonic()
        if now - self.saved < self.keep_every:
            return False
        self.saved = now
        return True
