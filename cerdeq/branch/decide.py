"""Branch and bound: cases of ReLUs, until linear bounds decide each of them (Bunel et al. 2020; beta-CROWN: Wang et al.
2021).

A leaf says which sign the inputs of some ReLUs have. The leaves of a row of `spec` together cover every input, so that
the row is positive everywhere if it is bounded above 0 in each leaf. The worst leaves come first, many at a time: in
each a ReLU is chosen, and both of its cases start from the leaf's slopes and multipliers and ascend further. The search
is in float32 where it may be. A leaf is closed by a bound in float64 that counts its rounding, with slopes rounded to
eight bits so that they can be stored, and an image is broken by a point alone whose value is proved.
"""

import heapq
import itertools
import time
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from cerdeq.bounds.memory import SEARCH_COPIES, bytes_per_example
from cerdeq.branch.ascent import Ascended, ascended
from cerdeq.branch.counterexample import broken
from cerdeq.branch.leaves import Layout, Leaves, Side, certificate, rooted, together
from cerdeq.branch.polytope import solved
from cerdeq.branch.split import split

CERTIFIED, ATTACKED, UNKNOWN, TIMEOUT, OUT_OF_MEMORY = "certified", "attacked", "unknown", "timeout", "out of memory"

_CPU_CACHE, _MOST_AT_ONCE = 2**25, 256
_ROOT_ITERATIONS, _ITERATIONS = 40, 5


@dataclass
class Budget:
    """What an image may take: seconds, and branches, each the bounding of one leaf; None where there is no limit."""

    seconds: float | None
    branches: int | None
    began: float = field(default_factory=time.monotonic)
    used: int = 0

    @property
    def over(self) -> bool:
        """Whether it is used up."""
        return self.late or (self.branches is not None and self.used >= self.branches)

    @property
    def late(self) -> bool:
        """Whether the time is up."""
        return self.seconds is not None and time.monotonic() - self.began >= self.seconds


@dataclass(frozen=True)
class Decision:
    """What is known of an image.

    status: CERTIFIED, ATTACKED or why neither.
    lower: proved bounds [K].
    point: where ATTACKED, an input [1, ...].
    certificate: where CERTIFIED, what `certificate` says of the leaves, if it was wanted and there are any.
    """

    status: str
    lower: Tensor
    point: Tensor | None = None
    certificate: dict[str, Tensor] = field(default_factory=dict)


def decide(
    proof: Side, search: Side, lower: Tensor, budget: Budget, memory: int, certified: bool = False
) -> Decision:  # fmt: skip
    """Decide one image, whose rows `spec` of `proof` are wanted positive over all of its box.

    proof: in float64, values of a sound pass. search: the same, for what proves nothing. lower: proved bounds [K] so
    far. memory: about how many bytes to use. certified: whether a certificate is wanted.
    """
    rows = (~(lower > 0)).nonzero()[:, 0]
    if not len(rows):
        return Decision(CERTIFIED, lower)
    layout, leaves = rooted(search, rows)
    at_once = _at_once(search, memory)
    waiting: list[tuple[float, int, Leaves, Tensor]] = []  # a heap, the worst first
    reached, closed = torch.full_like(lower, torch.inf), [leaves.of(slice(0))]
    numbers, iterations, given_up = itertools.count(), _ROOT_ITERATIONS, False
    while True:
        for start in range(0, len(leaves.row), at_once):
            found = ascended(search, layout, leaves.of(slice(start, start + at_once)), iterations, lambda: budget.late)
            found = _exact_where_whole(proof, search, layout, found, at_once)
            budget.used += len(found.leaves.row)
            if (point := broken(proof, search, found.points, found.values)) is not None:
                return Decision(ATTACKED, lower, point)
            found = replace(found, leaves=_proved(proof, layout, found.leaves))
            lowers, best = found.leaves.lower.tolist(), found.candidates[:, 0].tolist()
            proved = found.leaves.of((found.leaves.lower > 0).nonzero()[:, 0])
            reached.scatter_reduce_(0, proved.row, proved.lower, "amin")
            if certified:
                closed.append(proved)
            for number, (bound, unit) in enumerate(zip(lowers, best, strict=True)):
                if bound > 0:
                    continue
                if unit < 0:  # nothing is left to split
                    given_up = True
                    continue
                leaf = found.leaves.of(slice(number, number + 1))
                heapq.heappush(waiting, (bound, next(numbers), leaf, found.candidates[number]))
        if not waiting and not given_up:
            known = certificate(layout, together(closed)) if certified else {}
            return Decision(CERTIFIED, torch.where(lower > 0, lower, reached), certificate=known)
        if not waiting:
            return Decision(UNKNOWN, lower)
        if budget.over:
            return Decision(TIMEOUT, lower)
        if (len(waiting) + sum(len(leaves.row) for leaves in closed)) * waiting[0][2].nbytes > memory:
            return Decision(OUT_OF_MEMORY, lower)
        worst = [heapq.heappop(waiting) for _ in range(min(len(waiting), max(1, at_once // 2)))]
        parents, candidates = together([leaf for *_, leaf, _ in worst]), torch.stack([units for *_, units in worst])
        leaves, iterations = split(search, layout, parents, candidates, at_once), _ITERATIONS


def _at_once(search: Side, memory: int) -> int:
    """How many leaves are bounded together."""
    if search.spec.device.type == "cpu":
        memory = min(memory, _CPU_CACHE)
    return max(2, min(_MOST_AT_ONCE, memory // (SEARCH_COPIES * bytes_per_example(search.values))))


def _exact_where_whole(proof: Side, search: Side, layout: Layout, found: Ascended, at_once: int) -> Ascended:
    """The leaves, those solved exactly that are open with nothing left to split."""
    whole = (found.candidates[:, 0] < 0) & ~(found.leaves.lower > 0)
    parts, points, values = [], found.points.clone(), found.values.clone()
    for number, exact in enumerate(whole.tolist()):
        leaf = found.leaves.of(slice(number, number + 1))
        answer = solved(proof, layout, leaf, at_once) if exact else None
        if answer is not None:
            leaf, points[number] = answer[0], answer[1][0].to(points)
            values[number] = search.at(points[number : number + 1])[0][0]
        parts.append(leaf)
    return replace(found, leaves=together(parts), points=points, values=values)


def _proved(proof: Side, layout: Layout, leaves: Leaves) -> Leaves:
    """The leaves, those that the search found above 0 with choices that can be stored, and bounds proved for these."""
    hopeful = (leaves.lower > 0).nonzero()[:, 0]
    if not len(hopeful):
        return leaves
    stored = layout.stored(leaves.of(hopeful))
    choices, lower = leaves.choices.clone(), leaves.lower.clone()
    choices[hopeful], lower[hopeful] = stored.choices, proof.lower(stored, layout, sound=True)
    return replace(leaves, choices=choices, lower=lower)
