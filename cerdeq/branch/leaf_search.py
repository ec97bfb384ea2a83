"""Branch and bound over the signs of ReLU inputs (Bunel et al. 2020; beta-CROWN: Wang et al. 2021).

A leaf fixes the sign of the inputs of some ReLUs. The leaves of a row of `spec` together cover every input, so the row
is positive everywhere if its lower bound is above 0 in each leaf. The search takes the leaves with the worst bounds
first, many at a time. In each it splits one ReLU; both cases start from the leaf's slopes and multipliers and improve
them.

The search runs in float32 if it can. It proves nothing. A leaf is closed by a bound in float64 with rounding counted
outwards, whose slopes are rounded to eight bits so that a certificate can store them. An image is falsified only by a
point whose value is proved.

If the search uses many leaves, the boxes of hidden units are tightened and the search starts again over them. The two
alternate; each turn is longer than the one before. If there are few inputs, the search alternates with one over parts
of the input box instead. Linear programs of leaves (`ProgramSearch`), over the same boxes, get a share of the time, and
all of it while their end is near: they close more than the ascent where programs are small.
"""

import heapq
import itertools
import math
import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cerdeq.bounds.batch_sizes import leaves_at_once
from cerdeq.branch.ascent import Ascent, Steps, ascend_leaves
from cerdeq.branch.attack import find_counterexample
from cerdeq.branch.budget_and_decision import CERTIFIED, FALSIFIED, OUT_OF_MEMORY, TIMEOUT, UNKNOWN, Budget, Decision
from cerdeq.branch.hidden_boxes import HiddenBounds
from cerdeq.branch.input_search import InputSearch, is_bounded_by_forms, is_searched_by_parts
from cerdeq.branch.leaves import Layout, Leaves, SearchQuery, certificate_tensors, concatenate, root_leaves
from cerdeq.branch.polytope import solve_leaf
from cerdeq.branch.program_search import ProgramSearch
from cerdeq.branch.split import Candidates, split
from cerdeq.branch.threads import map_parts, slices
from cerdeq.deadline import DeadlineError, seconds_left, stop_at

_BATCHES = 4  # of leaves, between two looks at the queue
_ROOT_STEPS = Steps(40, rate=1.0)  # alpha-CROWN's rate, so that what it certifies is certified at the root, too
_STEPS = Steps(5)
_FEWEST_LEAVES = 64  # of the search over the first boxes: programs close most of what is left then
_FIRST_TURN = 1.0  # leaves of the first search for each row of hidden units, if these are more
_TURN = 0.5  # leaves of each search for each leaf by which hidden boxes were tightened before it
_PROGRAMS_SHARE, _SHORTEST = 0.25, 0.05  # of a turn's seconds, for linear programs; fewest seconds
_FIRST_PROGRAMS = 1.0  # seconds that the first turn of programs has at least
_PARTS = 2  # of the input box for each leaf of a search
_FIRST_LEAVES, _GROWTH = 16, 4  # of a hidden row: at first, and how many times more in each turn


@dataclass(frozen=True)
class Search:
    """What the searches over the box of one image share.

    exact: the query in float64, with values of a sound pass. fast: the same query for the search.
    lower: the bounds [K] proved so far. points: [D, ...], the best ones of the first attack.
    memory: about how many bytes to use. certificates: whether to return one.
    """

    exact: SearchQuery
    fast: SearchQuery
    lower: Tensor
    points: Tensor
    budget: Budget
    memory: int
    certificates: bool = False

    def decide(self) -> Decision:
        """Decide whether all rows of the spec are positive over the whole box."""
        if bool((self.lower > 0).all()):
            return Decision(CERTIFIED, self.lower)
        return self._with_parts() if is_searched_by_parts(self.exact) else self._with_hidden_boxes()

    @property
    def batch_size(self) -> int:
        """How many leaves to bound together."""
        return leaves_at_once(self.fast.values, self.memory)

    def _with_parts(self) -> Decision:
        """Return the decision of searches in turn: over parts of the input box, by programs, and over leaves."""
        budget, turn = self.budget, _FEWEST_LEAVES
        parts = InputSearch(self.exact, self.lower, self.points, self.memory)
        is_alone = is_bounded_by_forms(self.exact)
        leaves, programs = (None, None) if is_alone else (_LeafSearch(self), _Programs(self))
        while True:
            began = time.monotonic()
            decision = parts.run(budget, budget.used + _PARTS * turn)
            if decision.status == CERTIFIED and self.certificates:
                return replace(decision, certificate=parts.certificate())
            if decision.status != TIMEOUT or budget.is_exhausted:
                return decision
            turn *= 2
            if leaves is None or programs is None:
                continue
            decision = programs.run(time.monotonic() - began)
            if decision.status in (TIMEOUT, UNKNOWN) and not budget.is_exhausted:
                decision = leaves.run(budget.used + turn // 2)
            if decision.status not in (TIMEOUT, UNKNOWN) or budget.is_exhausted:
                return decision

    def _with_hidden_boxes(self) -> Decision:
        """Return the decision of searches over leaves, each over tighter boxes of hidden units than the one before.

        Programs have turns between them, over the same boxes.
        """
        budget, leaves, programs, leaves_each = self.budget, _LeafSearch(self), _Programs(self), _FIRST_LEAVES
        hidden = HiddenBounds(self.exact, self.fast, self.batch_size, self.memory)
        turn, can_tighten = _FIRST_TURN * max(_FEWEST_LEAVES, hidden.row_count), hidden.row_count > 0
        while True:
            began = time.monotonic()
            decision = leaves.run(budget.used + turn)
            is_over = decision.status == UNKNOWN and not can_tighten
            if decision.status in (TIMEOUT, UNKNOWN) and not budget.is_exhausted:
                decision = programs.run(math.inf if is_over else time.monotonic() - began)
            if is_over or decision.status not in (TIMEOUT, UNKNOWN) or budget.is_exhausted:
                break
            turn, before = 2 * turn, budget.used
            if can_tighten:
                exact, fast = hidden.tighten(leaves_each, budget)
                leaves_each, can_tighten = _GROWTH * leaves_each, budget.used > before
                turn = max(turn, _TURN * (budget.used - before))
                if can_tighten:  # else nothing is left to split in hidden rows
                    tight = replace(self, exact=exact, fast=fast)
                    leaves = _LeafSearch(tight)
                    programs.restart(tight)
        if decision.status == CERTIFIED and decision.certificate:
            decision = replace(decision, certificate=decision.certificate | hidden.certificate())
        return decision


class _Programs:
    """The turns of a `ProgramSearch`, which is made before the first one."""

    def __init__(self, search: Search):
        self._search, self._last = search, Decision(TIMEOUT, search.lower)
        self._programs: ProgramSearch | None = None
        self._began, self._seconds, self._are_slow = time.monotonic(), 0.0, False

    def restart(self, search: Search) -> None:
        """Begin anew over tighter boxes: that closes more than what is given up."""
        self._search, self._programs, self._last = search, None, Decision(TIMEOUT, search.lower)

    def run(self, seconds: float) -> Decision:
        """Return the decision after a share of these seconds, or at the end if that is near.

        Without a deadline, they run at the end alone: turns by the clock would make limited branches depend on it. Else
        turns wait until all before them took no more than their share. If the first one takes longer than all other
        searches did, and a second, the programs are too large, and no other follows: the solution of the first ones may
        take long.
        """
        others = time.monotonic() - self._began - self._seconds
        waits = self._seconds > _PROGRAMS_SHARE * others or self._are_slow or seconds_left() == math.inf
        if self._last.status != TIMEOUT or (waits and seconds < math.inf):
            return self._last
        began = time.monotonic()
        is_limited = self._programs is None and seconds < math.inf
        try:
            self._run_turns(
                max(_PROGRAMS_SHARE * seconds, _SHORTEST),
                began + max(others, _FIRST_PROGRAMS) if is_limited else math.inf,
            )
        except DeadlineError:
            if seconds_left() <= 0:
                raise
            self._programs, self._are_slow = None, True  # it lacks the leaves that it was solving
        self._seconds += time.monotonic() - began
        return self._last

    def _run_turns(self, seconds: float, deadline: float) -> None:
        """Run the programs for these seconds, and go on while the end is near. deadline: of the first turn.

        It is near if what is left takes no longer than all searches have taken, at the pace of the last turn: that at
        most doubles the time.
        """
        search, to_go = self._search, 0.0
        while to_go <= min(seconds_left(), time.monotonic() - self._began):
            with stop_at(deadline):
                if self._programs is None:
                    self._programs = ProgramSearch(search.exact, search.lower, search.memory, search.certificates)
                programs, deadline = self._programs, math.inf
                began, before = time.monotonic(), programs.open_share
                self._last = programs.run(search.budget, seconds)
            if self._last.status != TIMEOUT or search.budget.is_exhausted:
                break
            closed = before - programs.open_share
            to_go = (time.monotonic() - began) * programs.open_share / closed if closed > 0 else math.inf


class _LeafSearch:
    """The leaves of one image that are not proved yet: fewer, or smaller ones, after each call of `run`."""

    def __init__(self, search: Search):
        rows = (~(search.lower > 0)).nonzero()[:, 0]
        self._search = search
        self._layout, self._roots = root_leaves(search.exact, search.fast, rows)
        self._tree = _Tree(self._roots, len(search.lower), search.certificates)
        self._is_new = True

    def run(self, end: float) -> Decision:
        """Bound and split leaves, the worst ones first.

        The decision is TIMEOUT if the budget is exhausted, or if as many branches as `end` are used.
        """
        search, tree, layout, budget = self._search, self._tree, self._layout, self._search.budget
        while tree.queue or self._is_new:
            if self._is_new:
                leaves, steps, self._is_new = self._roots, _ROOT_STEPS, False
            else:
                count = min(_BATCHES * search.batch_size, end - budget.used)
                parents, candidates = tree.pop_worst(max(1, int(count) // 2))
                leaves, steps = split(search.fast, layout, parents, candidates, search.batch_size), _STEPS
            ascents = self._bound_leaves(leaves, steps)
            points = torch.cat([ascent.points for ascent in ascents])
            values = torch.cat([ascent.values for ascent in ascents])
            budget.used += len(points)
            if (point := find_counterexample(search.exact, search.fast, points, values)) is not None:
                return Decision(FALSIFIED, search.lower, point)
            for ascent in ascents:
                tree.add(ascent)
            if not tree.queue:
                break
            if budget.is_exhausted or budget.used >= end:
                return Decision(TIMEOUT, search.lower)
            if not tree.fits(search.memory):
                return Decision(OUT_OF_MEMORY, search.lower)
        if tree.has_unsplittable:
            return Decision(UNKNOWN, search.lower)
        lower = torch.where(search.lower > 0, search.lower, tree.row_bounds)
        return Decision(CERTIFIED, lower, certificate=tree.certificate(layout))

    def _bound_leaves(self, leaves: Leaves, steps: Steps) -> list[Ascent]:
        """Return the leaves in parts, their bounds improved and, where above 0, proved."""
        search, layout, batch_size = self._search, self._layout, self._search.batch_size

        def bound(part: slice) -> Ascent:
            ascent = ascend_leaves(search.fast, layout, leaves.of(part), steps)
            ascent = _solve_unsplittable(search.exact, search.fast, layout, ascent, batch_size)
            return replace(ascent, leaves=_prove_leaves(search.exact, layout, ascent.leaves))

        return map_parts(bound, slices(len(leaves.row), batch_size), leaves.row.device)


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


def _solve_unsplittable(
    exact: SearchQuery, fast: SearchQuery, layout: Layout, ascent: Ascent, batch_size: int
) -> Ascent:
    """Solve exactly the leaves whose bound is not above 0 and that have nothing left to split; return all leaves."""
    is_unsplittable = (ascent.candidates.units[:, 0] < 0) & ~(ascent.leaves.lower > 0)
    parts, points, values = [], ascent.points.clone(), ascent.values.clone()
    for number, has_no_split in enumerate(is_unsplittable.tolist()):
        leaf = ascent.leaves.of(slice(number, number + 1))
        solution = solve_leaf(exact, layout, leaf, batch_size) if has_no_split else None
        if solution is not None:
            leaf, points[number] = solution[0], solution[1][0].to(points)
            values[number] = fast.at(points[number : number + 1])[0][0]
        parts.append(leaf)
    return replace(ascent, leaves=concatenate(parts), points=points, values=values)


def _prove_leaves(exact: SearchQuery, layout: Layout, leaves: Leaves) -> Leaves:
    """Round the choices of the leaves that the search bounds above 0, and prove their bounds; return all leaves."""
    to_prove = (leaves.lower > 0).nonzero()[:, 0]
    if not len(to_prove):
        return leaves
    rounded = layout.round_choices(leaves.of(to_prove))
    choices, lower = leaves.choices.clone(), leaves.lower.clone()
    choices[to_prove], lower[to_prove] = rounded.choices, exact.lower(rounded, layout, sound=True)
    return replace(leaves, choices=choices, lower=lower)
