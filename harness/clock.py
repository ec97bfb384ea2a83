"""When a call stops, and when it keeps what is done."""

import math
import time
from collections.abc import Callable


class OutOfTime(BaseException):
    """A call's time is up, or it was asked to stop, and what is done is kept: no error, and so no Exception."""


class Clock:
    """The time a call has, and how long the things it does last.

    seconds: how long it may take from now on, None without end.
    lasted: seconds of the last thing of each kind; another trial's say nothing, so that it begins with none.
    keep_every: so many seconds lie between two keepings of what is done.
    asked: whether the call is to stop as if its time were up.
    until: the epoch that training is to stop after; None where that is the last.
    """

    def __init__(
        self,
        seconds: float | None = None,
        keep_every: float = 30.0,
        asked: Callable[[], bool] = lambda: False,
        until: int | None = None,
    ):
        now = time.monotonic()
        self.asked, self.until = asked, until
        self.seconds = math.inf if seconds is None else seconds
        self.ends, self.kept, self.keep_every = now + self.seconds, now, keep_every
        self.lasted: dict[str, float] = {}
        self.begun = False

    def fits(self, kind: str) -> bool:
        """Whether there is time for one more thing of a kind.

        It is taken to last half as long again as the last one of its kind; the very first wants a quarter of the call.
        The first thing of all always fits, so that every call gets on, and nothing once the call is asked to stop.
        """
        if self.asked():
            return False
        if not self.begun:
            self.begun = True
            return True
        wanted = 1.5 * self.lasted[kind] if kind in self.lasted else self.seconds / 4
        return time.monotonic() + wanted <= self.ends

    def require(self, kind: str) -> None:
        """Raise OutOfTime unless one more fits."""
        if not self.fits(kind):
            raise OutOfTime

    def due(self) -> bool:
        """Whether what is done should be kept now; then it is taken to be."""
        now = time.monotonic()
        if now - self.kept < self.keep_every:
            return False
        self.kept = now
        return True
