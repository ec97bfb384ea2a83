"""Branch and bound over parts of the input box, for networks of few inputs (ReluVal: Wang et al. 2018).

CROWN bounds all hidden units and the rows of the specification over each part anew, in float64 with rounding counted. A
part of which some row is not proved is halved along one input. The parts cover the input box, so a row is positive
everywhere if it is positive over each part. In wide networks of two inputs affine forms bound all hidden units, and
CROWN only the few of each layer that are furthest from having one sign, none where sparse layers are minima of pairs.

The slopes of the last few ReLUs are optimised; halves of a part start with its slopes. Where a row is the largest of
several constraints' values, made of ReLUs, these slopes are the constraints' weights.

The input to halve is the one that moves unstable pre-activations most, by what each of them costs the worst row.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.affine_forms import has_forms, values_by_forms
from cerdeq.bounds.alpha_crown import ascend
from cerdeq.bounds.batch_sizes import bytes_per_example, examples_at_once
from cerdeq.bounds.crown import tighten_boxes
from cerdeq.bounds.crown_pass import linear_lower_bound
from cerdeq.bounds.query import examples_of
from cerdeq.bounds.relu_sums import relu_sums
from cerdeq.boxes import outward_ends
from cerdeq.branch.attack import PROMISING, find_counterexample
from cerdeq.branch.cutting_planes import descend_by_planes
from cerdeq.branch.leaves import SearchQuery, TensorRows, concatenate
from cerdeq.branch.search import CERTIFIED, FALSIFIED, TIMEOUT, UNKNOWN, Budget, Decision, Problem
from cerdeq.branch.threads import map_parts, slices
from cerdeq.operators.backward import Backward
from cerdeq.operators.interval import Interval
from cerdeq.operators.relu import Relaxation, line_share_name

SPLITS, PART = "splits", "part"  # tensors of a certificate
_MOST_INPUTS = 8  # halves of more inputs are too many
_MOST_BYTES = 2**15  # of the values of all layers: of larger networks, bounding all units of a part takes too long
_MOST_INPUTS_OF_FORMS = 2
_MOST_AT_ONCE = 512  # parts
_NEAR = 1e-6  # of a bound to a value, relative to the values: rounding may be all that is between them
_FEW_UNITS = 16  # whose slopes are optimised, of the last ReLUs together
_STEPS = 10  # of the ascent of slopes
_SMALLEST_SHARE = 0.01  # of the largest score, for the width of each input: so that every input is halved in the end


@dataclass(frozen=True)
class _Parts(TensorRows):
    """D parts of the input box.

    low, high: their ends [D, n].
    parent_lower: [D], the bound of the smallest row over the part whose half this is.
    number: [D]; the input box is part 0, the halves of the k-th split are parts 2 k + 1, the lower one, and 2 k + 2.
    slopes: uint8 [D, R, C], the optimised slopes of each row, in units of 1 / 255.
    """

    low: Tensor
    high: Tensor
    parent_lower: Tensor
    number: Tensor
    slopes: Tensor


@dataclass(frozen=True)
class _Bounds(TensorRows):
    """Of D parts: lower [D, R], bounds of the rows, and the slopes uint8 [D, R, C] that prove them.

    halved: [D], the input to halve. points: [D, ...], where the smallest rows have small values.
    """

    lower: Tensor
    slopes: Tensor
    halved: Tensor
    points: Tensor


def is_searched_by_parts(query: SearchQuery) -> bool:
    """Return whether to search parts of the box: there are few inputs that are not fixed, and the network is small.

    In networks of affine operators and ReLUs that are not small there may be two.
    """
    is_small = len(_free_inputs(query)) <= _MOST_INPUTS and bytes_per_example(query.values) <= _MOST_BYTES
    return is_small or is_bounded_by_forms(query)


def is_bounded_by_forms(query: SearchQuery) -> bool:
    """Return whether parts have boxes by affine forms. Then no other search is as fast as that over parts."""
    is_large = bytes_per_example(query.values) > _MOST_BYTES
    return is_large and len(_free_inputs(query)) <= _MOST_INPUTS_OF_FORMS and has_forms(query.program)


def _free_inputs(query: SearchQuery) -> Tensor:
    """Return the flat numbers of the inputs that are not fixed: a fixed one has the radius of its rounding."""
    box, limits = query.values[0], torch.finfo(torch.float64)
    return (box.radius > 4 * limits.eps * box.center.abs() + limits.tiny).flatten().nonzero()[:, 0]


class InputSearch:
    """The parts of one image's box that are not proved yet."""

    def __init__(self, problem: Problem):
        self._proof, self._lower, self._points, self._rows = problem.exact, problem.lower, problem.points, problem.rows
        self._memory, self._certificates, proof = problem.memory, problem.certificates, problem.exact
        at_once = examples_at_once(proof.program, proof.values[0], len(self._rows), self._memory)
        self._at_once = max(2, min(_MOST_AT_ONCE, at_once))
        low, high = (end.flatten(1) for end in outward_ends(proof.values[0].box))
        self._radius, free = proof.values[0].radius.flatten(), _free_inputs(proof)
        self._free = free if len(free) else self._radius.argmax()[None]
        self._has_forms = is_bounded_by_forms(proof)
        self._sums = relu_sums(proof.program) if self._has_forms else {}
        self._shapes, slopes = _last_slopes(proof, len(self._rows))
        self._queue = _Parts(low, high, low.new_zeros(1), torch.zeros_like(self._rows[:1]), slopes)
        self._proved = [(self._queue.number[:0], slopes[:0])]  # numbers, and slopes if there are any
        self._row_bounds = low.new_full((len(self._rows),), torch.inf)
        self._has_unprovable = False
        self._splits = [torch.zeros(0, 2, dtype=torch.long, device=low.device)]

    def advance(self, budget: Budget) -> Decision:
        """Bound and halve parts, those with the worst bounds first, as in `Search`; each is a branch.

        The decision is UNKNOWN if only parts are left whose smallest value is 0 but for rounding, which no halving
        would prove. First, cutting planes start from the points with the smallest values of the turn before, or the
        first attack.
        """
        if (point := descend_by_planes(self._proof, self._points, self._free)) is not None:
            return Decision(FALSIFIED, self._lower, point)
        self._points, lowest = self._points[:0], self._lower[:0]
        while True:
            order = self._queue.parent_lower.argsort()
            parts, queue = self._queue.of(order[: self._at_once]), self._queue.of(order[self._at_once :])
            bounds = self._bound(parts)
            budget.used += len(parts.number)
            values, _ = self._proof.at(bounds.points)
            if (point := find_counterexample(self._proof, self._proof, bounds.points, values)) is not None:
                return Decision(FALSIFIED, self._lower, point)
            lowest = torch.cat([lowest, values.amin(1)])
            best = lowest.argsort(stable=True)[:PROMISING]
            self._points, lowest = torch.cat([self._points.to(values), bounds.points])[best], lowest[best]
            is_proved = (bounds.lower > 0).all(1)
            self._row_bounds = torch.cat([self._row_bounds[None], bounds.lower[is_proved]]).amin(0)
            parts = replace(parts, parent_lower=bounds.lower.amin(1), slopes=bounds.slopes)
            if self._shapes:
                self._proved.append((parts.number[is_proved], bounds.slopes[is_proved]))
            is_unprovable = self._are_unprovable(parts, bounds, values)
            self._has_unprovable |= bool(is_unprovable.any())
            is_open = (~is_proved & ~is_unprovable).nonzero()[:, 0]
            self._queue = concatenate([queue, *self._halve(parts.of(is_open), bounds.halved[is_open])])
            if not len(self._queue.parent_lower) and self._has_unprovable:
                return Decision(UNKNOWN, self._lower)
            if not len(self._queue.parent_lower):
                lower = self._lower.index_copy(0, self._rows, self._row_bounds)
                return Decision(CERTIFIED, lower, certificate=self._certificate() if self._certificates else {})
            if budget.is_turn_over:
                return Decision(TIMEOUT, self._lower)

    def _certificate(self) -> dict[str, Tensor]:
        """Return SPLITS, int32 [S, 2]: of each split the number of the part and the input, in order.

        If slopes are optimised, also PART, int32 [L], the numbers of all other parts, once for each row, and "row",
        "<step>/neurons" and "<step>/slopes" of these as in `certificate_tensors`.
        """
        tensors = {SPLITS: torch.cat(self._splits).int()}
        numbers, packed = map(torch.cat, zip(*self._proved, strict=True))
        if not self._shapes:
            return {name: tensor.cpu() for name, tensor in tensors.items()}
        tensors[PART] = numbers.int().repeat_interleave(len(self._rows))
        tensors["row"] = self._rows.short().repeat(len(numbers))
        sizes = [shape.numel() for shape in self._shapes.values()]
        for name, slopes in zip(self._shapes, packed.flatten(0, 1).split(sizes, dim=1), strict=True):
            tensors[f"{name}/neurons"] = torch.arange(slopes.shape[1], dtype=torch.int32)
            tensors[f"{name}/slopes"] = slopes
        return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}

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
        """Return bounds of the parts by improved slopes; if not `sound`, by theirs, and rounding is not counted."""
        cuts = slices(len(parts.number), self._at_once)
        return concatenate(map_parts(lambda cut: self._bound_at_once(parts.of(cut), sound), cuts, parts.low.device))

    def _bound_at_once(self, parts: _Parts, sound: bool) -> _Bounds:
        low, high = parts.low, parts.high
        center = low / 2 + high / 2
        radius = torch.maximum(high - center, center - low)
        outward = torch.nextafter(radius, torch.full_like(radius, torch.inf))
        shape = self._proof.values[0].center.shape[1:]
        box = Interval(center.unflatten(1, shape), outward.unflatten(1, shape))
        program = self._proof.program
        if self._has_forms:
            values = values_by_forms(program, box, self._free, self._memory, self._sums)
        else:
            values = tighten_boxes(program, box, self._memory, all_units=True)
        bounds = self._linear_bounds(values, parts.slopes, sound)
        is_open = (~(bounds.lower > 0).all(1)).nonzero()[:, 0]
        if not sound or not self._shapes or not len(is_open):
            return bounds
        values = examples_of(self._proof.program, values, is_open)
        before = bounds.of(is_open)
        after = self._linear_bounds(values, self._ascend(values, before), sound)
        is_better = (after.lower > before.lower)[..., None]  # rounded slopes may be worse
        slopes = torch.where(is_better, after.slopes, before.slopes)
        after = replace(after, lower=torch.maximum(before.lower, after.lower), slopes=slopes)
        merged = {name: old.index_copy(0, is_open, vars(after)[name]) for name, old in vars(bounds).items()}
        return replace(bounds, **merged)

    def _ascend(self, values: list[Any], bounds: _Bounds) -> Tensor:
        """Return slopes, as in _Bounds, that improve these bounds."""

        def evaluate(numbers: Tensor, free: dict[str, Tensor]) -> Tensor:
            boxes = examples_of(self._proof.program, values, numbers)
            return self._row_lower(boxes, Backward(False, slopes=free))

        best, _ = ascend(evaluate, self._unpacked(bounds.slopes), bounds.lower, 0.0, _STEPS)
        return torch.cat([(slopes * 255).round().byte().flatten(2) for slopes in best.values()], dim=2)

    def _unpacked(self, packed: Tensor) -> dict[str, Tensor]:
        """Return slopes uint8 [D, R, C] by the step's name, [D, R, *shape]."""
        parts = packed.split([shape.numel() for shape in self._shapes.values()], dim=2) if self._shapes else []
        of_steps = zip(self._shapes.items(), parts, strict=True)
        return {name: part.to(self._proof.spec).unflatten(2, shape) / 255 for (name, shape), part in of_steps}

    def _row_lower(self, values: list[Any], ctx: Backward) -> Tensor:
        """Return bounds of the rows, [D, R], over boxes of D parts."""
        program, rows = self._proof.program, self._proof.spec[self._rows]
        coefficients = rows.unflatten(1, values[program.output].center.shape[1:])
        coefficients = coefficients.expand(len(values[0].center), *coefficients.shape)
        return linear_lower_bound(program, values, coefficients, program.output, ctx)

    def _linear_bounds(self, values: list[Any], slopes: Tensor, sound: bool) -> _Bounds:
        """Return bounds by these slopes, uint8 [D, R, C]."""
        relaxations, box = dict[str, Any](), values[0]
        lower = self._row_lower(values, Backward(sound, slopes=self._unpacked(slopes), relaxations=relaxations))
        each, worst = torch.arange(len(lower), device=lower.device), lower.argmin(1)
        of_inputs = relaxations.pop("").flatten(2)[each, worst]
        costs = {
            name: (coefficients.flatten(2)[each, worst].abs() * _chord_share(relaxation).flatten(1))
            for name, (coefficients, relaxation) in relaxations.items()
            if isinstance(relaxation, Relaxation)
        }
        points = box.center - box.radius * of_inputs.sign().view_as(box.center)
        return _Bounds(lower, slopes, self._inputs_to_halve(box, of_inputs, costs), points)

    def _inputs_to_halve(self, box: Interval, of_inputs: Tensor, costs: dict[str, Tensor]) -> Tensor:
        """Return the input to halve of each part, [D]: the one along which units move most, weighted by their costs.

        of_inputs: [D, n], coefficients of the worst row's bound; they decide where no unit has a cost. costs: by step.
        """
        center, radius = box.center.flatten(1), box.radius.flatten(1)
        scores = list[Tensor]()
        for number in self._free.tolist():
            step = torch.zeros_like(center)
            step[:, number] = radius[:, number]
            _, above = self._proof.at((center + step).view_as(box.center))
            _, below = self._proof.at((center - step).view_as(box.center))
            moved = [((above[name] - below[name]).flatten(1).abs() * cost).sum(1) for name, cost in costs.items()]
            scores.append(sum(moved, torch.zeros_like(center[:, 0])))
        score = torch.stack(scores, dim=1)
        of_bound = (of_inputs.abs() * radius)[:, self._free]
        score = torch.where(score.amax(1, keepdim=True) > 0, score, of_bound)
        shares = radius[:, self._free] / self._radius[self._free]
        score = score + _SMALLEST_SHARE * score.amax(1, keepdim=True) * shares + torch.finfo(score.dtype).tiny * shares
        return self._free[score.argmax(1)]

    def _halve(self, parts: _Parts, inputs: Tensor) -> tuple[_Parts, _Parts]:
        """Return the lower and the upper halves of parts along these inputs [D], and note the splits."""
        column, count = inputs[:, None], sum(map(len, self._splits))
        middle = (parts.low / 2 + parts.high / 2).gather(1, column)
        number = 2 * torch.arange(count, count + len(inputs), device=column.device)
        self._splits.append(torch.stack([parts.number, inputs], dim=1))
        lower_half = replace(parts, high=parts.high.scatter(1, column, middle), number=number + 1)
        return lower_half, replace(parts, low=parts.low.scatter(1, column, middle), number=number + 2)


def _last_slopes(query: SearchQuery, rows: int) -> tuple[dict[str, torch.Size], Tensor]:
    """Return the shapes of the slopes of the last ReLUs, by the step's name, and uint8 [1, rows, C] to start with.

    Of these ReLUs as many as have together at most _FEW_UNITS units.
    """
    choices, relaxations = dict[str, Tensor](), dict[str, Any]()
    ctx = Backward(False, choices=choices, relaxations=relaxations)
    first = torch.zeros(1, dtype=torch.long, device=query.spec.device)
    linear_lower_bound(query.program, query.values, query.rows(first), query.program.output, ctx)
    del relaxations[""]
    shapes, starts, size = dict[str, torch.Size](), [query.spec.new_zeros(1, 0)], 0
    for name, (_, relaxation) in relaxations.items():
        if not isinstance(relaxation, Relaxation) or name not in choices or line_share_name(name) in choices:
            break
        size += choices[name].numel()
        if size > _FEW_UNITS:
            break
        shapes[name] = choices[name].shape[2:]
        starts.append(choices[name].flatten(1))
    packed = (torch.cat(starts, dim=1) * 255).round().byte()
    return shapes, packed[:, None].repeat(1, rows, 1)


def _chord_share(relaxation: Relaxation) -> Tensor:
    """Return a unit's largest distance from its chord in units of the width of its box, [D, *shape]: 0 if stable."""
    low, high = relaxation.low.clamp(max=0), relaxation.high.clamp(min=0)
    return -low * high / (high - low).square().clamp(min=torch.finfo(low.dtype).tiny)
