"""What a search may use, and what it decides."""

from dataclasses import dataclass, field

from torch import Tensor

CERTIFIED, FALSIFIED, UNKNOWN, TIMEOUT, OUT_OF_MEMORY = "certified", "falsified", "unknown", "timeout", "out of memory"


@dataclass
class Budget:
    """The limit of branches of one image, each the bounding of one leaf; None for no limit. used: so many already."""

    branches: int | None = None
    used: int = 0

    @property
    def is_exhausted(self) -> bool:
        """True if the limit is reached."""
        return self.branches is not None and self.used >= self.branches


@dataclass(frozen=True)
class Decision:
    """The result for one image.

    status: CERTIFIED, FALSIFIED or the reason for neither.
    lower: proved lower bounds [K].
    point: if FALSIFIED, an adversarial example [1, ...].
    closest: else, if there was an attack, the point with the smallest value, [1, ...] or flat.
    certificate: if CERTIFIED and requested, `certificate_tensors` of the leaves, or the splits of `InputSearch`; empty
        if neither was needed, or if the leaves do not fit into memory.
    """

    status: str
    lower: Tensor
    point: Tensor | None = None
    closest: Tensor | None = None
    certificate: dict[str, Tensor] = field(default_factory=dict)
