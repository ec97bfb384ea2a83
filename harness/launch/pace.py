"""How much longer something takes that is done in equal parts."""

import time


class Pace:
    """The seconds that are left, from how fast it went since it was first asked."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None

    def left(self, done: int, parts: int) -> float | None:
        """Seconds until all parts are done; None at first, when nothing is known."""
        now = time.monotonic()
        self.first = began, before = self.first or (now, done)
        return (now - began) / (done - before) * (parts - done) if done > before else None


def minutes(seconds: float | None) -> str:
    """'12.3 min', and nothing for None."""
    return "" if seconds is None else f"{seconds / 60:.1f} min"
