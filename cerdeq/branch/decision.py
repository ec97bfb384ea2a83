"""What a search may use, and what it decides."""

import time
from dataclasses import dataclass, field

from torch import Tensor

CERTIFIED, FALSIFIED, UNKNOWN, TIMEOUT, OUT_OF_MEMORY = "certified", "falsified", "unknown", "timeout", "out of memory"


@dataclass
class Budget:
    """The limits of one image: seconds, and branches, each the bounding of one leaf; None for no limit."""

    seconds: float | None
    branches: int | None
    began: float = field(default_factory=time.monotonic)
    used: int = 0

    @property
    def is_exhausted(self) -> bool:
        """True if a limit is reached."""
        return self.is_late or (self.branches is not None and self.used >= self.branches)

    @property
    def is_late(self) -> bool:
        """True if the time is up."""
        return self.seconds is not None and time.monotonic() - self.began >= self.seconds


@dataclass(frozen=True)
class Decision:
    """The result for one image.

    status: CERTIFIED, FALSIFIED or the reason for neither.
    lower: proved lower bounds [K].
    point: if FALSIFIED, an adversarial example [1, ...].
    certificate: if CERTIFIED and requested, `certificate_tensors` of the leaves, or the splits of `InputSearch`; empty
        if neither was needed, or if the leaves do not fit into memory.
    """

    status: str
    lower: Tensor
    point: Tensor | None = None
    certificate: dict[str, Tensor] = field(default_factory=dict)
