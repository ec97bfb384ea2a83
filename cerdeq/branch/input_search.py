"""Branch and bound over parts of the input box, for networks of few inputs (ReluVal: Wang et al. 2018).

CROWN bounds all hidden units and the rows of the specification over each part anew, in float64 with rounding counted. A
part of which some row is not proved is halved along one input. The parts cover the input box, so a row is positive
everywhere if it is positive over each part.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.backward import linear_lower_bound
from cerdeq.bounds.batch_sizes import bytes_per_example, examples_at_once
from cerdeq.bounds.crown import tighten_boxes
from cerdeq.boxes import outward_ends
from cerdeq.branch.attack import find_counterexample
from cerdeq.branch.budget_and_decision import CERTIFIED, FALSIFIED, TIMEOUT, UNKNOWN, Budget, Decision
from cerdeq.branch.leaves import SearchQuery, TensorRows, concatenate
from cerdeq.branch.threads import map_parts, slices
from cerdeq.operators.backward import Backward
from cerdeq.operators.interval import Interval

SPLITS = "splits"  # the tensor of a certificate
_MOST_INPUTS = 8  # halves of more inputs are too many
_MOST_BYTES = 2**15  # of the values of all layers: of larger networks, bounding all units of a part takes too long
_MOST_AT_ONCE = 512  # parts
_NEAR = 1e-6  # of a bound to a value, relative to the values: rounding may be all that is between them
_SMALLEST_SLOPE = 0.01  # of the largest one's: so that every input is halved in the end


@dataclass(frozen=True)
class _Parts(TensorRows):
    """D parts of the input box.

    low, high: their ends [D, n].
    parent_lower: [D], the bound of the smallest row over the part whose half this is.
    number: [D]; the input box is part 0, the halves of the k-th split are parts 2 k + 1, the lower one, and 2 k + 2.
    """

    low: Tensor
    high: Tensor
    parent_lower: Tensor
    number: Tensor


@dataclass(frozen=True)
class _Bounds(TensorRows):
    """Of D parts: lower [D, R], bounds of the rows; halved [D], the input to halve; points [D, ...] of small values."""

    lower: Tensor
    halved: Tensor
    points: Tensor


def is_searched_by_parts(query: SearchQuery) -> bool:
    """Return whether to search parts of the box: there are few inputs that are not fixed, and the network is small."""
    box, limits = query.values[0], torch.finfo(torch.float64)
    is_free = box.radius > 4 * limits.eps * box.center.abs() + limits.tiny  # a fixed one has the radius of its rounding
    return int(is_free.sum()) <= _MOST_INPUTS and bytes_per_example(query.values) <= _MOST_BYTES


class InputSearch:
    """The parts of one image's box that are not proved yet: fewer, or smaller ones, after each call of `run`."""

    def __init__(self, proof: SearchQuery, lower: Tensor, memory: int):
        """proof, lower, memory: as in `decide`."""
        self._proof, self._lower, self._memory = proof, lower, memory
        self._rows = (~(lower > 0)).nonzero()[:, 0]
        at_once = examples_at_once(proof.program, proof.values[0], len(self._rows), memory)
        self._at_once = max(2, min(_MOST_AT_ONCE, at_once))
        low, high = (end.flatten(1) for end in outward_ends(proof.values[0].box))
        self._queue = _Parts(low, high, low.new_zeros(1), torch.zeros_like(self._rows[:1]))
        self._row_bounds = low.new_full((len(self._rows),), torch.inf)
        self._has_unprovable = False
        self._splits = [torch.zeros(0, 2, dtype=torch.long, device=low.device)]

    def run(self, budget: Budget, end: float) -> Decision:
        """Bound and halve parts, those with the worst bounds first.

        The decision is TIMEOUT if the budget is exhausted, or if as many branches as `end` are used; each is a part. It
        is UNKNOWN if only parts are left whose smallest value is 0 but for rounding, which no halving would prove.
        """
        while True:
            order = self._queue.parent_lower.argsort()
            parts, queue = self._queue.of(order[: self._at_once]), self._queue.of(order[self._at_once :])
            bounds = self._bound(parts)
            budget.used += len(parts.number)
            values, _ = self._proof.at(bounds.points)
            if (point := find_counterexample(self._proof, self._proof, bounds.points, values)) is not None:
                return Decision(FALSIFIED, self._lower, point)
            is_proved = (bounds.lower > 0).all(1)
            self._row_bounds = torch.cat([self._row_bounds[None], bounds.lower[is_proved]]).amin(0)
            is_unprovable = self._are_unprovable(parts, bounds, values)
            self._has_unprovable |= bool(is_unprovable.any())
            is_open = (~is_proved & ~is_unprovable).nonzero()[:, 0]
            parts = replace(parts, parent_lower=bounds.lower.amin(1)).of(is_open)
            self._queue = concatenate([queue, *self._halve(parts, bounds.halved[is_open])])
            if not len(self._queue.parent_lower) and self._has_unprovable:
                return Decision(UNKNOWN, self._lower)
            if not len(self._queue.parent_lower):
                return Decision(CERTIFIED, self._lower.index_copy(0, self._rows, self._row_bounds))
            if budget.is_exhausted or budget.used >= end:
                return Decision(TIMEOUT, self._lower)

    def certificate(self) -> dict[str, Tensor]:
        """Return the tensor SPLITS, int32 [S, 2]: of each split the number of the part and the input, in order."""
        return {SPLITS: torch.cat(self._splits).int().cpu()}

    def _are_unprovable(self, parts: _Parts, bounds: _Bounds, values: Tensor) -> Tensor:
        """Return where the smallest bound is not above 0 and is a value of its row, but for rounding: bool [D]."""
        lowest, row = bounds.lower.min(1)
        gap = values[:, self._rows].gather(1, row[:, None])[:, 0] - lowest
        is_unprovable = ~(lowest > 0) & (gap <= _NEAR * (1 + values.abs().amax(1)))
        near = is_unprovable.nonzero()[:, 0]
        if len(near):
            computed = self._bound(parts.of(near), sound=False).lower.gather(1, row[near, None])[:, 0]
            is_unprovable[near] = gap[near] <= 2 * (computed - lowest[near])
        return is_unprovable

    def _bound(self, parts: _Parts, sound: bool = True) -> _Bounds:
        """Return bounds of the parts, without counting the last pass's rounding if not `sound`."""
        cuts = slices(len(parts.number), self._at_once)
        return concatenate(map_parts(lambda cut: self._bound_at_once(parts.of(cut), sound), cuts, parts.low.device))

    def _bound_at_once(self, parts: _Parts, sound: bool) -> _Bounds:
        program, rows, low, high = self._proof.program, self._proof.spec[self._rows], parts.low, parts.high
        center = low / 2 + high / 2
        radius = torch.maximum(high - center, center - low)
        outward = torch.nextafter(radius, torch.full_like(radius, torch.inf))
        shape = self._proof.values[0].center.shape[1:]
        box = Interval(center.unflatten(1, shape), outward.unflatten(1, shape))
        values = tighten_boxes(program, box, self._memory, all_units=True)
        coefficients = rows.unflatten(1, values[program.output].center.shape[1:])
        coefficients = coefficients.expand(len(low), *coefficients.shape)
        relaxations: dict[str, Any] = {}
        lower = linear_lower_bound(
            program, values, coefficients, program.output, Backward(sound, relaxations=relaxations)
        )
        slopes = relaxations[""].flatten(2)[torch.arange(len(low), device=low.device), lower.argmin(1)]
        sizes = slopes.abs() + _SMALLEST_SLOPE * slopes.abs().amax(1, keepdim=True) + torch.finfo(slopes.dtype).tiny
        points = (center - radius * slopes.sign()).unflatten(1, shape)
        return _Bounds(lower, (sizes * radius).argmax(1), points)

    def _halve(self, parts: _Parts, inputs: Tensor) -> tuple[_Parts, _Parts]:
        """Return the lower and the upper halves of parts along these inputs [D], and note the splits."""
        column, count = inputs[:, None], sum(map(len, self._splits))
        middle = (parts.low / 2 + parts.high / 2).gather(1, column)
        number = 2 * torch.arange(count, count + len(inputs), device=column.device)
        self._splits.append(torch.stack([parts.number, inputs], dim=1))
        lower_half = replace(parts, high=parts.high.scatter(1, column, middle), number=number + 1)
        return lower_half, replace(parts, low=parts.low.scatter(1, column, middle), number=number + 2)
