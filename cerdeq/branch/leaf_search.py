"""Branch and bound over the signs of ReLU inputs (Bunel et al. 2020; beta-CROWN: Wang et al. 2021).

A leaf fixes the sign of the inputs of some ReLUs. The leaves of a row of `spec` together cover every input, so the row
is positive everywhere if its lower bound is above 0 in each leaf. The search takes the leaves with the worst bounds
first, many at a time. In each it splits one ReLU; both cases start from the leaf's slopes and multipliers and improve
them.

The search runs in float32 if it can. It proves nothing. A leaf is closed by a bound in float64 with rounding counted
outwards, whose slopes are rounded to eight bits so that a certificate can store them. An image is falsified only by a
point whose value is proved.
"""

import heapq
import itertools
from dataclasses import replace

import torch
from torch import Tensor

from cerdeq.branch.ascent import Ascent, Steps, ascend_leaves
from cerdeq.branch.attack import find_counterexample
from cerdeq.branch.leaves import Layout, Leaves, SearchQuery, certificate_tensors, concatenate, root_leaves
from cerdeq.branch.search import CERTIFIED, FALSIFIED, OUT_OF_MEMORY, TIMEOUT, UNKNOWN, Budget, Decision, Problem
from cerdeq.branch.split import Candidates, split
from cerdeq.branch.threads import map_parts, slices

_BATCHES = 4  # of leaves, between two looks at the queue
_ROOT_STEPS = Steps(40, rate=1.0)  # alpha-CROWN's rate, so that what it certifies is certified at the root, too
_STEPS = Steps(5)


class LeafSearch:
    """The leaves of one image that are not proved yet."""

    def __init__(self, problem: Problem):
        self._problem = problem
        self._layout, self._roots = root_leaves(problem.exact, problem.fast, problem.rows)
        self._tree = _Tree(self._roots, len(problem.lower), problem.certificates)
        self._is_new = True

    def advance(self, budget: Budget) -> Decision:
        """Bound and split leaves, the worst ones first, until the image is decided or the budget's turn is over.

        A later call goes on from there.
        """
        problem, tree, layout = self._problem, self._tree, self._layout
        while tree.queue or self._is_new:
            if self._is_new:
                leaves, steps, self._is_new = self._roots, _ROOT_STEPS, False
            else:
                count = min(_BATCHES * problem.batch_size, budget.turn_end - budget.used)
                parents, candidates = tree.pop_worst(max(1, int(count) // 2))
                leaves, steps = split(problem.fast, layout, parents, candidates, problem.batch_size), _STEPS
            ascents = self._bound_leaves(leaves, steps)
            points = torch.cat([ascent.points for ascent in ascents])
            values = torch.cat([ascent.values for ascent in ascents])
            budget.used += len(points)
            if (point := find_counterexample(problem.exact, problem.fast, points, values)) is not None:
                return Decision(FALSIFIED, problem.lower, point)
            for ascent in ascents:
                tree.add(ascent)
            if not tree.queue:
                break
            if budget.is_turn_over:
                return Decision(TIMEOUT, problem.lower)
            if not tree.fits(problem.memory):
                return Decision(OUT_OF_MEMORY, problem.lower)
        if tree.has_unsplittable:
            return Decision(UNKNOWN, problem.lower)
        lower = torch.where(problem.lower > 0, problem.lower, tree.row_bounds)
        return Decision(CERTIFIED, lower, certificate=tree.certificate(layout))

    def _bound_leaves(self, leaves: Leaves, steps: Steps) -> list[Ascent]:
        """Return the leaves in parts, their bounds improved and, where above 0, proved."""
        problem, layout = self._problem, self._layout

        def bound(part: slice) -> Ascent:
            ascent = ascend_leaves(problem.fast, layout, leaves.of(part), steps)
            return replace(ascent, leaves=_prove_leaves(problem.exact, layout, ascent.leaves))

        return map_parts(bound, slices(len(leaves.row), problem.batch_size), leaves.row.device)


class _Tree:
    """The leaves of one search.

    queue: a heap of those to split, the worst one first. row_bounds: [K], what the proved ones prove. has_unsplittable:
    whether a leaf is neither.
    """

    def __init__(self, roots: Leaves, rows: int, keeps_proved: bool):
        self.queue: list[tuple[float, int, Leaves, Candidates]] = []
        self.row_bounds = roots.lower.new_full((rows,), torch.inf)
        self.has_unsplittable = False
        self._proved: list[Leaves] | None = [roots.of(slice(0))] if keeps_proved else None
        self._numbers = itertools.count()

    def add(self, ascent: Ascent) -> None:
        """Add leaves: proved ones, and others to the queue."""
        bounds, next_units = ascent.leaves.lower.tolist(), ascent.candidates.units[:, 0].tolist()
        proved = ascent.leaves.of((ascent.leaves.lower > 0).nonzero()[:, 0])
        self.row_bounds.scatter_reduce_(0, proved.row, proved.lower, "amin")
        if self._proved is not None:
            self._proved.append(proved)
        for number, (bound, unit) in enumerate(zip(bounds, next_units, strict=True)):
            if bound > 0:
                continue
            if unit < 0:
                self.has_unsplittable = True
                continue
            one = slice(number, number + 1)
            heapq.heappush(self.queue, (bound, next(self._numbers), ascent.leaves.of(one), ascent.candidates.of(one)))

    def pop_worst(self, count: int) -> tuple[Leaves, Candidates]:
        """Take up to so many leaves from the queue, with the units to split."""
        popped = [heapq.heappop(self.queue) for _ in range(min(len(self.queue), count))]
        return concatenate([leaf for *_, leaf, _ in popped]), concatenate([candidates for *_, candidates in popped])

    def fits(self, memory: int) -> bool:
        """Return whether the queue fits into memory. Proved leaves are given up if they do not fit beside it."""
        memory -= len(self.queue) * self.queue[0][2].nbytes
        if self._proved is not None and sum(leaves.nbytes for leaves in self._proved) > memory:
            self._proved = None  # the answer matters more than its certificate
        return memory >= 0

    def certificate(self, layout: Layout) -> dict[str, Tensor]:
        """Return the tensors of the proved leaves, none if they are not kept."""
        return {} if self._proved is None else certificate_tensors(layout, concatenate(self._proved))


def _prove_leaves(exact: SearchQuery, layout: Layout, leaves: Leaves) -> Leaves:
    """Round the choices of the leaves that the search bounds above 0, and prove their bounds; return all leaves."""
    to_prove = (leaves.lower > 0).nonzero()[:, 0]
    if not len(to_prove):
        return leaves
    rounded = layout.round_choices(leaves.of(to_prove))
    choices, lower = leaves.choices.clone(), leaves.lower.clone()
    choices[to_prove], lower[to_prove] = rounded.choices, exact.lower(rounded, layout, sound=True)
    return replace(leaves, choices=choices, lower=lower)
