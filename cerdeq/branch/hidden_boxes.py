"""Tighter boxes of hidden units, by the search that decides rows of the specification.

A row is a pre-activation or its negative. Its root is alpha-CROWN with slopes of its own; splits of earlier layers
tighten it further. Layers come in order, so that each is bounded over the tighter boxes of those before. A row's bound
is the smallest of its leaves' bounds, in float64 with rounding counted. A certificate stores these leaves as it stores
those of the specification.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.crown import is_exact
from cerdeq.bounds.ibp import values_of
from cerdeq.boxes import outward_ends, smaller_box
from cerdeq.branch.ascent import Ascent, Steps, ascend_leaves
from cerdeq.branch.leaves import Layout, Leaves, SearchQuery, certificate_tensors, concatenate, root_leaves
from cerdeq.branch.parallel import activation_inputs
from cerdeq.branch.search import Budget, Problem
from cerdeq.branch.split import Candidates, no_candidates, split
from cerdeq.branch.threads import map_parts, slices
from cerdeq.operators.interval import Context, Interval
from cerdeq.operators.relu import is_unstable
from cerdeq.tracing.program import Program

HIDDEN = "hidden"  # the first part of these tensors' names in a certificate
ROOT_STEPS, STEPS = Steps(20), Steps(5)  # of the ascent of a row's root, and of later leaves
_LARGEST = 2**18  # coefficients of a layer's rows at any layer before; convolutions mostly have more
_LAG = 16  # a layer with most units unstable has fewer leaves by this factor: layers before it come first


@dataclass(frozen=True)
class _Rows:
    """The leaves of one layer's rows: row 2 k is the k-th of these units, row 2 k + 1 its negative.

    units: [U], flat numbers. candidates: the units to split next in each leaf.
    """

    units: Tensor
    layout: Layout
    leaves: Leaves
    candidates: Candidates

    def of(self, mask: Tensor) -> "_Rows":
        """Return the leaves where the mask [D] is True."""
        return replace(self, leaves=self.leaves.of(mask.nonzero()[:, 0]), candidates=self.candidates.of(mask))


class HiddenBounds:
    """The leaves of all layers of one image, more with each call of `tighten`.

    numbers: of the values that it tightens. row_count: the number of rows of all of them.
    """

    def __init__(self, problem: Problem):
        self._problem, self._exact, self._fast = problem, problem.exact, problem.fast
        self._units, self._rows, most_before = dict[int, Tensor](), dict[int, _Rows](), 0
        for number in _inputs_of_activations(self._exact.program):
            units = is_unstable(self._exact.values[number].box)[0].flatten().nonzero()[:, 0]
            most_before = max(most_before, self._exact.values[number].center.numel())
            if len(units) and not is_exact(self._exact.program, number):
                if 2 * len(units) * most_before > _LARGEST:
                    self._units = {}  # boxes of later layers alone are not worth the time
                    break
                self._units[number] = units
        self.numbers = list(self._units)
        self.row_count = 2 * sum(len(units) for units in self._units.values())

    def tighten(self, leaves_each: int, budget: Budget) -> Problem:
        """Return the problem over boxes that are tightened by up to `leaves_each` leaves of each row.

        If the search ends early, the remaining layers keep the leaves that they have.
        """
        exact, program, done = self._exact, self._exact.program, set[int]()

        def before(number: int, values: list[Any]) -> None:
            for source in {*program.steps[number - 1].sources} & self._units.keys() - done:
                done.add(source)
                values[source] = self._tighten_layer(source, values, leaves_each, budget)

        def after(number: int, values: list[Any]) -> None:
            if isinstance(values[number], Interval):
                low, high = outward_ends(exact.values[number].box)
                box = smaller_box(values[number].box, low, high)
                values[number] = Interval(box.center, box.radius)

        values = values_of(program, exact.values[0], Context(sound=True), before, after)
        tight = replace(exact, values=values)
        fast = tight.in_float32(None if self._fast is exact else self._fast.program)
        return replace(self._problem, exact=tight, fast=fast)

    def certificate(self) -> dict[str, Tensor]:
        """Return the tensors "hidden/<step>/<name>", for names as in `certificate_tensors`, by the activation's step.

        A row, here int32, is 2 n for unit n of the activation's input and 2 n + 1 for its negative. Signs and
        multipliers of a layer are left out if nothing in it is split.
        """
        tensors = dict[str, Tensor]()
        steps = _inputs_of_activations(self._exact.program)
        for number, rows in self._rows.items():
            stored = certificate_tensors(rows.layout, rows.leaves)
            row = rows.leaves.row
            stored["row"] = (2 * rows.units[row // 2] + row % 2).int().cpu()
            for columns in rows.layout.units:
                if not stored[f"{columns.name}/signs"].any():
                    del stored[f"{columns.name}/signs"], stored[f"{columns.name}/multipliers"]
            tensors |= {f"{HIDDEN}/{steps[number]}/{name}": tensor for name, tensor in stored.items()}
        return tensors

    def _tighten_layer(self, number: int, values: list[Any], leaves_each: int, budget: Budget) -> Interval:
        """Return the box of a value, tightened by its rows. values: all up to it."""
        units, box = self._units[number], values[number].box
        spec = torch.zeros(2 * len(units), box.center.numel(), dtype=box.center.dtype, device=box.center.device)
        spec[torch.arange(len(spec)), units.repeat_interleave(2)] = spec.new_tensor([1.0, -1.0]).repeat(len(units))
        exact = SearchQuery(_up_to(self._exact.program, number), values[: number + 1], spec)
        fast = exact.in_float32(None if self._fast is self._exact else _up_to(self._fast.program, number))
        if not budget.is_exhausted:
            rows = self._grow(number, exact, fast, leaves_each, budget)
            self._rows[number] = replace(rows, leaves=rows.layout.round_choices(rows.leaves))
        if number not in self._rows:
            return values[number]
        lower = self._prove(exact, self._rows[number]).to(box.center)
        low, high = (end.flatten().clone() for end in outward_ends(box))
        low[units] = torch.maximum(low[units], lower[::2])
        high[units] = torch.minimum(high[units], -lower[1::2])
        tight = smaller_box(box, low.view_as(box.center), high.view_as(box.center))
        return Interval(tight.center, tight.radius)

    def _grow(self, number: int, exact: SearchQuery, fast: SearchQuery, leaves_each: int, budget: Budget) -> _Rows:
        """Return the rows with leaves split until each has `leaves_each`, worst leaves first; nothing is proved."""
        rows = self._rows.get(number)
        if rows is None:
            units = self._units[number]
            layout, leaves = root_leaves(exact, fast, torch.arange(2 * len(units), device=units.device))
            rows = _Rows(units, layout, leaves, no_candidates(leaves))
            unstable = _are_unstable(rows)[leaves.row]
            if unstable.any():
                ascended = self._ascend(fast, layout, rows.of(unstable).leaves, ROOT_STEPS, budget)
                rows = _concatenate_rows(rows.of(~unstable), _Rows(rows.units, layout, *ascended))
        lower = rows.leaves.lower.masked_fill(_are_empty(fast, rows), torch.inf)
        rows = replace(rows, leaves=replace(rows.leaves, lower=lower))
        before = rows
        size, row_bytes = fast.values[number].center.numel(), rows.leaves.of(slice(1)).nbytes
        largest = self._problem.memory // (2 * len(self.numbers) * len(rows.units) * 2 * row_bytes)
        while not budget.is_exhausted:
            share = 1 if int(_are_unstable(rows).sum()) <= size else _LAG
            to_split = _worst_half(rows, min(leaves_each // share, largest))
            if not to_split.any():
                break
            parents, candidates = rows.leaves.of(to_split.nonzero()[:, 0]), rows.candidates.of(to_split)
            cases = split(fast, rows.layout, parents, candidates, self._problem.batch_size)
            leaves, candidates = self._ascend(fast, rows.layout, cases, STEPS, budget)
            rows = _concatenate_rows(rows.of(~to_split), replace(rows, leaves=leaves, candidates=candidates))
        worse = _row_bounds(rows) < _row_bounds(before)  # an ascent may end below the bound that it began from
        return _concatenate_rows(before.of(worse[before.leaves.row]), rows.of(~worse[rows.leaves.row]))

    def _ascend(
        self, fast: SearchQuery, layout: Layout, leaves: Leaves, steps: Steps, budget: Budget
    ) -> tuple[Leaves, Candidates]:
        """Return the leaves after their ascent, with the bounds of their own choices, and the units to split next."""
        leaves = replace(leaves, lower=torch.full_like(leaves.lower, -torch.inf))

        def bound(part: slice) -> Ascent:
            return ascend_leaves(fast, layout, leaves.of(part), steps)

        parts = map_parts(bound, slices(len(leaves.row), self._problem.batch_size), leaves.row.device)
        budget.used += len(leaves.row)
        return concatenate([part.leaves for part in parts]), concatenate([p.candidates for p in parts])

    def _prove(self, exact: SearchQuery, rows: _Rows) -> Tensor:
        """Return the proved bounds of the rows, [2 U]: of each the smallest of its leaves."""
        lower = torch.full((2 * len(rows.units),), torch.inf, dtype=torch.float64, device=rows.units.device)
        leaves = rows.leaves.of((~_are_empty(exact, rows)).nonzero()[:, 0])

        def prove(part: slice) -> Tensor:
            return exact.lower(leaves.of(part), rows.layout, sound=True)

        bounds = map_parts(prove, slices(len(leaves.row), self._problem.batch_size), leaves.row.device)
        lower.scatter_reduce_(0, leaves.row, torch.cat([*bounds, lower[:0]]), "amin")
        return torch.where(lower.isfinite(), lower, -torch.inf)


def _are_empty(query: SearchQuery, rows: _Rows) -> Tensor:
    """Return which leaves are empty, bool [D]: boxes say that a unit has the other sign.

    Boxes become tighter after a leaf was split. The lines of a unit with the other sign would bound nothing well.
    """
    numbers = {step: number for number, step in _inputs_of_activations(query.program).items()}
    empty = torch.zeros_like(rows.leaves.row, dtype=torch.bool)
    for columns in rows.layout.units:
        if columns.name in numbers:
            low, high = outward_ends(query.values[numbers[columns.name]].box)
            low, high = (end.flatten()[columns.elements] for end in (low, high))
            signs = rows.leaves.signs[:, columns.start : columns.stop]
            empty |= (((signs > 0) & (high < 0)) | ((signs < 0) & (low > 0))).any(1)
    return empty


def _concatenate_rows(first: _Rows, second: _Rows) -> _Rows:
    """Return the leaves of both parts of a layer."""
    candidates = concatenate([first.candidates, second.candidates])
    return replace(first, leaves=concatenate([first.leaves, second.leaves]), candidates=candidates)


def _row_bounds(rows: _Rows) -> Tensor:
    """Return the search's bounds of the rows, [2 U]."""
    lower = rows.leaves.lower.new_full((2 * len(rows.units),), torch.inf)
    return lower.scatter_reduce(0, rows.leaves.row, rows.leaves.lower, "amin")


def _are_unstable(rows: _Rows) -> Tensor:
    """Return the rows of units that may have either sign, as far as the search knows: bool [2 U]."""
    return (~(_row_bounds(rows) > 0)).view(-1, 2).all(1).repeat_interleave(2)


def _worst_half(rows: _Rows, leaves_each: int) -> Tensor:
    """Return which leaves to split, bool [D]: of each row the worse half, at least one, up to `leaves_each` leaves.

    A leaf is done if its unit has one sign there or everywhere, or if it has nothing to split.
    """
    lower, row = rows.leaves.lower, rows.leaves.row
    is_open = ~(lower > 0) & _are_unstable(rows)[row] & (rows.candidates.units[:, 0] >= 0)
    order = torch.where(is_open, lower, torch.inf).argsort(stable=True)
    order = order[row[order].argsort(stable=True)]  # by row, the worst leaf first
    counts = torch.bincount(row, minlength=2 * len(rows.units))
    rank = torch.empty_like(row)
    rank[order] = torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row[order]]
    return is_open & (rank < torch.minimum((counts + 1) // 2, leaves_each - counts)[row])


def _inputs_of_activations(program: Program) -> dict[int, str]:
    """Return the numbers of the values that ReLUs read, in order, each with the first such step's name."""
    inputs = dict[int, str]()
    for name, number in activation_inputs(program).items():
        inputs.setdefault(number, name)
    return inputs


def _up_to(program: Program, number: int) -> Program:
    """Return the program that computes an earlier value."""
    return Program(program.steps[:number], number)
