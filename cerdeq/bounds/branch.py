"""Branch and bound: cases of ReLUs, until linear bounds decide each of them (Bunel et al. 2020; beta-CROWN: Wang et al.
2021).

A leaf says which sign the inputs of some ReLUs have. The leaves of a row of `spec` together cover every input, so that
the row is positive everywhere if it is bounded above 0 in each leaf. The worst leaves come first, many at a time: in
each a ReLU is chosen, and both of its cases start from the leaf's slopes and multipliers and ascend further. The search
is in float32 where it may be. A leaf is closed by a bound in float64 that counts its rounding, and an image is broken by
a point alone whose value is proved.
"""

import heapq
import itertools
import math
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cerdeq.bounds.forward import propagate
from cerdeq.bounds.graph import run
from cerdeq.bounds.interval import Context, Interval
from cerdeq.bounds.leaves import Layout, Leaves, Side, open_units, rooted, together
from cerdeq.bounds.memory import bytes_per_example
from cerdeq.bounds.optimise import adam_step
from cerdeq.bounds.polytope import solved
from cerdeq.bounds.precision import uncounted_rounding
from cerdeq.boxes import outward_ends

CERTIFIED, ATTACKED, UNKNOWN, TIMEOUT, OUT_OF_MEMORY = "certified", "attacked", "unknown", "timeout", "out of memory"

_CPU_CACHE = 2**25
_SEARCH_COPIES = 12  # of a backward pass, when it is differentiated
_ROOT_ITERATIONS, _ITERATIONS = 40, 12
_CANDIDATES = 8  # units of a leaf that are remembered
_FILLED = 8  # leaves up to which several units of each are split at once
_COMPARED = 3  # of them, those whose cases are bounded before one is chosen
_RATE = 0.2
_DESCENT_STEPS = 8


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
        late = self.seconds is not None and time.monotonic() - self.began >= self.seconds
        return late or (self.branches is not None and self.used >= self.branches)


@dataclass(frozen=True)
class Decision:
    """status: CERTIFIED, ATTACKED or why not. lower: proved bounds [K]. point: where ATTACKED, an input [...]."""

    status: str
    lower: Tensor
    point: Tensor | None = None


@dataclass(frozen=True)
class _Bounded:
    """Leaves after their ascent, with the units to split next [D, C], best first, -1 for none, the inputs [D, ...]
    where their linear bounds are least, and the values [D, K] of all rows there."""

    leaves: Leaves
    candidates: Tensor
    points: Tensor
    values: Tensor


def decide(proof: Side, search: Side, lower: Tensor, budget: Budget, memory: int) -> Decision:
    """Decide one image, whose rows `spec` of `proof` are wanted positive over all of its box.

    proof: in float64, values of a sound pass. search: the same, for what proves nothing. lower: proved bounds [K] so
    far. memory: about how many bytes to use.
    """
    lower, rows = lower.clone(), (~(lower > 0)).nonzero()[:, 0]
    if not len(rows):
        return Decision(CERTIFIED, lower)
    layout, leaves = rooted(search, rows)
    at_once = _at_once(search, memory)
    heap: list[tuple[float, int, Leaves, Tensor]] = []
    numbers = itertools.count()
    closed = torch.full_like(lower, torch.inf)
    iterations, kept = _ROOT_ITERATIONS, 0
    while True:
        for start in range(0, len(leaves.row), at_once):
            bounded = _ascended(search, layout, leaves.of(slice(start, start + at_once)), iterations, budget)
            budget.used += len(bounded.leaves.row)
            bounded = _with_exact(proof, search, layout, bounded, at_once)
            if (point := _broken(proof, search, bounded)) is not None:
                return Decision(ATTACKED, lower, point)
            proved = _proved(proof, layout, bounded.leaves)
            row = bounded.leaves.row
            entries = replace(bounded.leaves, lower=torch.minimum(bounded.leaves.lower, proved.to(search.spec)))
            closed.scatter_reduce_(0, row, torch.where(proved > 0, proved, torch.inf).to(closed), "amin")
            for number in (~(proved > 0)).nonzero()[:, 0].tolist():
                one = slice(number, number + 1)
                entry = entries.of(one)
                heapq.heappush(heap, (float(entry.lower), next(numbers), entry, bounded.candidates[one]))
                kept += entry.choices.nbytes + entry.signs.nbytes
        if not heap:
            lower[rows] = closed[rows]
            return Decision(CERTIFIED, lower)
        if budget.over:
            import os
            if os.environ.get("DBG"):
                for e in heap[:8]: print(round(e[0],6), e[2].signs.tolist(), e[3].tolist())
                print(len(heap), layout.units)
            return Decision(TIMEOUT, lower)
        if kept > memory:
            return Decision(OUT_OF_MEMORY, lower)
        worst = [heapq.heappop(heap) for _ in range(min(len(heap), max(1, at_once // 2)))]
        kept -= sum(entry.choices.nbytes + entry.signs.nbytes for _, _, entry, _ in worst)
        parents = together([entry for _, _, entry, _ in worst])
        leaves = _split(search, layout, parents, torch.cat([units for *_, units in worst]), at_once)
        iterations = _ITERATIONS


def _at_once(search: Side, memory: int) -> int:
    """How many leaves are bounded together."""
    if search.spec.device.type == "cpu":
        memory = min(memory, _CPU_CACHE)
    return max(2, min(256, memory // (_SEARCH_COPIES * bytes_per_example(search.values))))


def _ascended(search: Side, layout: Layout, leaves: Leaves, iterations: int, budget: Budget) -> _Bounded:
    """The leaves with better choices, until their bounds are above 0 or the iterations are over."""
    choices, best, lower = leaves.choices.float().to(search.spec), leaves.choices.clone(), leaves.lower.clone()
    moments = torch.zeros_like(choices), torch.zeros_like(choices)
    largest = layout.largest(choices)
    active = torch.arange(len(lower), device=lower.device)
    for iteration in range(iterations):
        waiting = ~(lower[active] > 0)
        active, choices, moments = active[waiting], choices[waiting], (moments[0][waiting], moments[1][waiting])
        if not len(active) or budget.over:
            break
        now = leaves.of(active)
        with torch.enable_grad(), uncounted_rounding():
            free = choices.detach().requires_grad_()
            reached = search.lower(Leaves(now.row, now.signs, free, now.lower), layout, sound=False)
            (gradient,) = torch.autograd.grad(reached.sum(), free)
        reached = reached.detach()
        better = reached > lower[active]
        lower[active] = torch.where(better, reached, lower[active])
        best[active] = torch.where(better[:, None], choices, best[active])
        adam_step(choices, gradient, moments, iteration, _RATE * layout.scales[now.row], largest)
    met: dict[str, Any] = {}
    with uncounted_rounding():
        reached = search.lower(Leaves(leaves.row, leaves.signs, best, lower), layout, sound=False, met=met)
        box = search.values[0]
        points = box.center - box.radius * torch.sign(met[""][:, 0])
        values, preactivations = search.at(points)
    ascended = Leaves(leaves.row, leaves.signs, best, torch.maximum(lower, reached))
    return _Bounded(ascended, _candidates(layout, met, preactivations), points, values)


def _with_exact(proof: Side, search: Side, layout: Layout, bounded: _Bounded, at_once: int) -> _Bounded:
    """The leaves, those without anything to split and open all the same solved exactly."""
    whole = ((bounded.candidates[:, 0] < 0) & ~(bounded.leaves.lower > 0)).nonzero()[:, 0].tolist()
    parts, points, values = [], bounded.points.clone(), bounded.values.clone()
    for number in range(len(bounded.candidates)):
        leaf = bounded.leaves.of(slice(number, number + 1))
        found = solved(proof, layout, leaf, at_once) if number in whole else None
        if found is not None:
            leaf, point = found
            lower = proof.lower(leaf, layout, sound=False)
            leaf = replace(leaf, choices=leaf.choices.to(search.spec), lower=lower.to(search.spec))
            points[number] = point[0].to(points)
            values[number] = search.at(point.to(points))[0][0]
        parts.append(leaf)
    return replace(bounded, leaves=together(parts), points=points, values=values)


def _candidates(layout: Layout, met: dict[str, Any], preactivations: dict[str, Tensor]) -> Tensor:
    """The units [D, C] that may be split, best first, -1 for none.

    At the point where the linear bound is least, the row's value exceeds it by the sum over units of |coefficient| times
    the distance of the line from the activation. What costs most is best.
    """
    scores = [met[""].new_zeros(len(met[""]), 0)]
    for columns in layout.units:
        coefficients, around = met[columns.name]
        a, p, open_ = coefficients[:, 0], preactivations[columns.name], open_units(around)
        cost = a.abs() * around.distance(p, upper=a < 0)
        scores.append((open_ * (cost + 1e-30)).flatten(1)[:, columns.elements])
    every = torch.cat(scores, dim=1)
    best = F.pad(every, (0, max(0, _CANDIDATES - every.shape[1]))).topk(_CANDIDATES, dim=1)
    return torch.where(best.values > 0, best.indices, -1)


def _proved(proof: Side, layout: Layout, leaves: Leaves) -> Tensor:
    """The leaves' bounds [D], proved where the search found them above 0."""
    proved = leaves.lower.double()
    hopeful = (leaves.lower > 0).nonzero()[:, 0]
    if len(hopeful):
        proved[hopeful] = proof.lower(leaves.of(hopeful), layout, sound=True)
    return proved


def _split(search: Side, layout: Layout, parents: Leaves, candidates: Tensor, at_once: int) -> Leaves:
    """All cases of so many units of each leaf as fill a batch; a leaf without any units to split stays as it is."""
    divisible = candidates[:, 0] >= 0
    parts = [parents.of(~divisible)]
    leaves, candidates = parents.of(divisible), candidates[divisible]
    if len(candidates):
        candidates = _ranked(search, layout, leaves, candidates, at_once)
        depth = max(1, int(math.log2(min(at_once, _FILLED) / len(candidates))))
        parts.append(_cases(leaves, candidates[:, :depth]))
    return together(parts)


def _ranked(search: Side, layout: Layout, parents: Leaves, candidates: Tensor, at_once: int) -> Tensor:
    """The first candidates [D, C], in the order of the bounds of both of their cases before any ascent."""
    first = candidates[:, :_COMPARED]
    cases = together([_cases(parents, units[:, None].clamp(min=0)) for units in first.T])
    parts = [cases.of(slice(s, s + at_once)) for s in range(0, len(cases.row), at_once)]
    with uncounted_rounding():
        reached = torch.cat([search.lower(part, layout, sound=False) for part in parts])
    pairs = torch.minimum(reached, reached.new_zeros(())).view(first.shape[1], -1, len(first))
    scores = pairs.amin(1) + 0.1 * pairs.amax(1) - 1e30 * (first.T < 0)
    order = scores.argsort(dim=0, descending=True, stable=True).T
    return torch.cat([first.gather(1, order), candidates[:, _COMPARED:]], dim=1)


def _cases(leaves: Leaves, units: Tensor) -> Leaves:
    """The leaves with all signs of their units [D, depth], of which -1 names none: first all at least 0."""
    signs, alive = leaves.signs, leaves.row >= 0
    for column in units.T:
        named, half = column.repeat(len(signs) // len(column)), len(signs)
        some = (named >= 0).nonzero()[:, 0]
        signs, alive = signs.repeat(2, 1), torch.cat([alive, alive & (named >= 0)])
        signs[some, named[some]], signs[half + some, named[some]] = 1, -1
    parent = torch.arange(len(leaves.row), device=signs.device).repeat(len(signs) // len(leaves.row))[alive]
    return replace(leaves.of(parent), signs=signs[alive])


def _broken(proof: Side, search: Side, bounded: _Bounded) -> Tensor | None:
    """A point where a row is proved to be negative, near those where the linear bounds are least; None if none is."""
    box, points, values = search.values[0], bounded.points, bounded.values
    low, high = box.center - box.radius, box.center + box.radius
    least = values.amin(1)
    worst = least.argmin()
    point = points[worst : worst + 1]
    row = search.spec[values[worst].argmin()]
    for step in range(_DESCENT_STEPS):
        if float(least.min()) < 0:
            break
        with torch.enable_grad():
            free = point.detach().requires_grad_()
            value = run(search.program, free).flatten(1) @ row
            (gradient,) = torch.autograd.grad(value.sum(), free)
        point = point - box.radius / 2 * (1 - step / _DESCENT_STEPS) * gradient.sign()
        point = torch.minimum(torch.maximum(point, low), high).detach()
        least = (run(search.program, point).flatten(1) @ search.spec.T).amin(1)
    if not float(least.min()) < 0:
        return None
    return proved_point(proof, point)


def proved_point(proof: Side, point: Tensor) -> Tensor | None:
    """The point [1, ...], moved into the box, where a row of the spec is proved to be negative there, else None."""
    box = proof.values[0]
    reach = (box.radius * (1 - 1e-9) - 4 * torch.finfo(torch.float64).eps * box.center.abs()).clamp(min=0)
    inside = box.center + torch.minimum(torch.maximum(point.double() - box.center, -reach), reach)
    value = propagate(proof.program, Interval(inside, torch.zeros_like(inside)), Context(sound=True), proof.spec[None])
    _, upper = outward_ends(value.box)
    return inside[0] if bool((upper < 0).any()) else None
