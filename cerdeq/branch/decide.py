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
of the input box instead.
"""

import heapq
import itertools
from dataclasses import replace

import torch
from torch import Tensor

from cerdeq.bounds.memory import SEARCH_COPIES, bytes_per_example
from cerdeq.branch.ascent import Ascent, Steps, ascend_leaves
from cerdeq.branch.counterexample import find_counterexample
from cerdeq.branch.decision import CERTIFIED, FALSIFIED, OUT_OF_MEMORY, TIMEOUT, UNKNOWN, Budget, Decision
from cerdeq.branch.hidden import HiddenBounds
from cerdeq.branch.inputs import InputSearch, is_searched_by_parts
from cerdeq.branch.leaves import Layout, Leaves, Problem, certificate_tensors, root_leaves
from cerdeq.branch.polytope import solve_leaf
from cerdeq.branch.split import Candidates, split
from cerdeq.branch.tensor_rows import concatenate
from cerdeq.branch.threads import map_parts, slices

_CPU_CACHE, _MOST_AT_ONCE, _BATCHES = 2**26, 256, 4
_ROOT_STEPS = Steps(40, rate=1.0)  # alpha-CROWN's rate, so that what it certifies is certified at the root, too
_STEPS = Steps(5)
_FEWEST_LEAVES = 512  # of the first search
_FIRST_TURN = 1.0  # leaves of the first search for each row of hidden units, if these are more
_TURN = 0.5  # leaves of each search for each leaf by which hidden boxes were tightened before it
_PARTS = 2  # of the input box for each leaf of a search
_FIRST_LEAVES, _GROWTH = 16, 4  # of a hidden row: at first, and how many times more in each turn


def decide(
    exact: Problem, fast: Problem, lower: Tensor, budget: Budget, memory: int, certificates: bool = False
) -> Decision:  # fmt: skip
    """Decide whether all rows of the spec are positive over the whole box of one image.

    exact: the query in float64, with values of a sound pass. fast: the same query for the search.
    lower: the bounds [K] proved so far. memory: about how many bytes to use. certificates: whether to return one.
    """
    if bool((lower > 0).all()):
        return Decision(CERTIFIED, lower)
    if is_searched_by_parts(exact):
        return _decide_with_parts(exact, fast, lower, budget, memory, certificates)
    return _decide_with_hidden_boxes(exact, fast, lower, budget, memory, certificates)


def _decide_with_parts(
    exact: Problem, fast: Problem, lower: Tensor, budget: Budget, memory: int, certificates: bool
) -> Decision:  # fmt: skip
    """Return the decision of two searches in turn: over parts of the input box, and over leaves."""
    input_search, batch_size, turn = InputSearch(exact, lower, memory), _batch_size(fast, memory), _FEWEST_LEAVES
    can_split_leaves = True
    while True:
        decision = input_search.run(budget, budget.used + _PARTS * turn)
        if decision.status == CERTIFIED and certificates:
            return replace(decision, certificate=input_search.certificate())
        if decision.status != TIMEOUT or budget.is_exhausted:
            return decision
        if can_split_leaves:
            end = budget.used + turn
            decision = _decide_over(exact, fast, lower, budget, end, batch_size, memory, certificates)
            if decision.status not in (TIMEOUT, UNKNOWN) or budget.is_exhausted:
                return decision
            can_split_leaves = decision.status == TIMEOUT
        turn *= 2


def _decide_with_hidden_boxes(
    exact: Problem, fast: Problem, lower: Tensor, budget: Budget, memory: int, certificates: bool
) -> Decision:  # fmt: skip
    """Return the decision of searches over leaves, each over tighter boxes of hidden units than the one before."""
    batch_size = _batch_size(fast, memory)
    hidden, leaves_each = HiddenBounds(exact, fast, batch_size, memory), _FIRST_LEAVES
    turn = _FIRST_TURN * max(_FEWEST_LEAVES, hidden.row_count) if hidden.row_count else 0

    while True:
        end = budget.used + turn if turn else None
        decision = _decide_over(exact, fast, lower, budget, end, batch_size, memory, certificates)
        if decision.status not in (TIMEOUT, UNKNOWN) or budget.is_exhausted or not turn:
            break
        before = budget.used
        exact, fast = hidden.tighten(leaves_each, budget)
        leaves_each, turn = _GROWTH * leaves_each, max(2 * turn, _TURN * (budget.used - before))
        if budget.used == before:  # nothing is left to split in hidden rows
            turn = 0
    if decision.status == CERTIFIED and decision.certificate:
        decision = replace(decision, certificate=decision.certificate | hidden.certificate())
    return decision


def _decide_over(
    exact: Problem, fast: Problem, lower: Tensor, budget: Budget, end: float | None, batch_size: int, memory: int,
    certificates: bool,
) -> Decision:  # fmt: skip
    """Return the decision over these boxes. It is TIMEOUT, too, if as many branches as `end` are used."""
    layout, leaves = root_leaves(exact, fast, (~(lower > 0)).nonzero()[:, 0])
    queue: list[tuple[float, int, Leaves, Candidates]] = []  # a heap, the worst leaf first
    row_bounds, closed = torch.full_like(lower, torch.inf), [leaves.of(slice(0))]
    numbers, steps, has_unsplittable = itertools.count(), _ROOT_STEPS, False
    while True:
        ascents = _bound_leaves(exact, fast, layout, leaves, steps, batch_size)
        points, values = (torch.cat([getattr(ascent, name) for ascent in ascents]) for name in ("points", "values"))
        budget.used += len(points)
        if (point := find_counterexample(exact, fast, points, values)) is not None:
            return Decision(FALSIFIED, lower, point)
        for ascent in ascents:
            bounds, next_units = ascent.leaves.lower.tolist(), ascent.candidates.units[:, 0].tolist()
            proved = ascent.leaves.of((ascent.leaves.lower > 0).nonzero()[:, 0])
            row_bounds.scatter_reduce_(0, proved.row, proved.lower, "amin")
            if certificates:
                closed.append(proved)
            for number, (bound, unit) in enumerate(zip(bounds, next_units, strict=True)):
                if bound > 0:
                    continue
                if unit < 0:
                    has_unsplittable = True
                    continue
                leaf = ascent.leaves.of(slice(number, number + 1))
                heapq.heappush(queue, (bound, next(numbers), leaf, ascent.candidates.of(slice(number, number + 1))))
        if not queue and not has_unsplittable:
            tensors = certificate_tensors(layout, concatenate(closed)) if certificates else {}
            return Decision(CERTIFIED, torch.where(lower > 0, lower, row_bounds), certificate=tensors)
        if not queue:
            return Decision(UNKNOWN, lower)
        if budget.is_exhausted or (end is not None and budget.used >= end):
            return Decision(TIMEOUT, lower)
        memory_left = memory - len(queue) * queue[0][2].nbytes
        if memory_left < 0:
            return Decision(OUT_OF_MEMORY, lower)
        if sum(leaves.nbytes for leaves in closed) > memory_left:  # the answer matters more than its certificate
            certificates, closed = False, closed[:1]
        popped = [heapq.heappop(queue) for _ in range(min(len(queue), max(1, _BATCHES * batch_size // 2)))]
        parents = concatenate([leaf for *_, leaf, _ in popped])
        candidates = concatenate([candidates for *_, candidates in popped])
        leaves, steps = split(fast, layout, parents, candidates, batch_size), _STEPS


def _bound_leaves(
    exact: Problem, fast: Problem, layout: Layout, leaves: Leaves, steps: Steps, batch_size: int
) -> list[Ascent]:
    """Return the leaves in parts, their bounds improved and, where above 0, proved."""

    def bound(part: slice) -> Ascent:
        ascent = ascend_leaves(fast, layout, leaves.of(part), steps)
        ascent = _solve_unsplittable(exact, fast, layout, ascent, batch_size)
        return replace(ascent, leaves=_prove_leaves(exact, layout, ascent.leaves))

    return map_parts(bound, slices(len(leaves.row), batch_size), leaves.row.device)


def _batch_size(fast: Problem, memory: int) -> int:
    """Return how many leaves to bound together."""
    if fast.spec.device.type == "cpu":
        memory = min(memory, _CPU_CACHE)
    return max(2, min(_MOST_AT_ONCE, memory // (SEARCH_COPIES * bytes_per_example(fast.values))))


def _solve_unsplittable(exact: Problem, fast: Problem, layout: Layout, ascent: Ascent, batch_size: int) -> Ascent:
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


def _prove_leaves(exact: Problem, layout: Layout, leaves: Leaves) -> Leaves:
    """Round the choices of the leaves that the search bounds above 0, and prove their bounds; return all leaves."""
    to_prove = (leaves.lower > 0).nonzero()[:, 0]
    if not len(to_prove):
        return leaves
    rounded = layout.round_choices(leaves.of(to_prove))
    choices, lower = leaves.choices.clone(), leaves.lower.clone()
    choices[to_prove], lower[to_prove] = rounded.choices, exact.lower(rounded, layout, sound=True)
    return replace(leaves, choices=choices, lower=lower)
