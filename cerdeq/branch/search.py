"""What the searches of `verify` share: the problem, the budget with its turns, and the decision."""

import math
import time
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from cerdeq.bounds.batch_sizes import leaves_at_once
from cerdeq.branch.leaves import SearchQuery

CERTIFIED, FALSIFIED, UNKNOWN, TIMEOUT, OUT_OF_MEMORY = "certified", "falsified", "unknown", "timeout", "out of memory"


@dataclass
class Budget:
    """The limit of branches of one image, each the bounding of one leaf; None for no limit. used: so many already.

    turn_end, turn_deadline: a search's turn is over when so many are used, or at this time of `time.monotonic`.
    """

    branches: int | None = None
    used: int = 0
    turn_end: float = math.inf
    turn_deadline: float = math.inf

    def turn(self, branches: float = math.inf, seconds: float = math.inf) -> "Budget":
        """Begin a turn of so many more branches or seconds, and return the budget."""
        self.turn_end, self.turn_deadline = self.used + branches, time.monotonic() + seconds
        return self

    @property
    def is_exhausted(self) -> bool:
        """True if the limit is reached."""
        return self.branches is not None and self.used >= self.branches

    @property
    def is_turn_over(self) -> bool:
        """True if the search is to return."""
        return self.is_exhausted or self.used >= self.turn_end or time.monotonic() >= self.turn_deadline


@dataclass(frozen=True)
class Decision:
    """The result for one image.

    status: CERTIFIED, FALSIFIED or the reason for neither; TIMEOUT is also the end of a turn.
    lower: proved lower bounds [K].
    point: if FALSIFIED, an adversarial example [1, ...].
    certificate: if CERTIFIED and requested, the search's tensors (docs/developers/certificates.md); empty if
        none were needed, or if they do not fit into memory.
    """

    status: str
    lower: Tensor
    point: Tensor | None = None
    certificate: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """What the searches over the box of one image need.

    exact: the query in float64, with values of a sound pass. fast: the same query for the search.
    lower: the bounds [K] proved so far. memory: about how many bytes to use. certificates: whether to return one.
    """

    exact: SearchQuery
    fast: SearchQuery
    lower: Tensor
    memory: int
    certificates: bool = False

    @property
    def rows(self) -> Tensor:
        """The numbers of the rows of the spec that are not proved yet."""
        return (~(self.lower > 0)).nonzero()[:, 0]

    @cached_property
    def batch_size(self) -> int:
        """How many leaves to bound together."""
        return leaves_at_once(self.fast.values, self.memory)
