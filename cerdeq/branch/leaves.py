"""Leaves of a branch-and-bound tree, packed, and their linear bounds.

A leaf is one row of `spec` and the signs that it fixes for some pre-activations. Its free choices are the slopes and
multipliers of its linear bound. Only unstable units of the root are stored, those whose box contains 0: one row of
numbers a leaf, instead of tensors as large as the values.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from cerdeq.bounds.crown_pass import linear_lower_bound
from cerdeq.bounds.float32 import cast_to_float32
from cerdeq.bounds.query import with_boxes
from cerdeq.branch.parallel import ParallelUnits, parallel_units
from cerdeq.deadline import check
from cerdeq.operators.backward import Backward
from cerdeq.operators.interval import Interval
from cerdeq.operators.relu import Relaxation, line_share_name, split_name
from cerdeq.tracing.program import Program


@dataclass(frozen=True)
class TensorRows:
    """The base of dataclasses with a row for each of D things, such as leaves: every field is a tensor [D, ...]."""

    def of(self: "Rows", numbers: Tensor | slice) -> "Rows":
        """Return the rows with these numbers, in this order."""
        return replace(self, **{name: tensor[numbers] for name, tensor in vars(self).items()})


Rows = TypeVar("Rows", bound=TensorRows)


def concatenate(parts: Sequence[Rows]) -> Rows:
    """Return all rows of the parts."""
    return replace(parts[0], **{name: torch.cat([vars(part)[name] for part in parts]) for name in vars(parts[0])})


@dataclass(frozen=True)
class Columns:
    """The columns of packed rows, from `start` on, that hold some elements of one tensor.

    name, shape: of the tensor [*shape]. elements: flat indices into it. elsewhere: the value of the elements that are
    not stored. is_of_relu: True if the tensor belongs to a ReLU; then the search needs only these elements.
    """

    name: str
    shape: torch.Size
    elements: Tensor
    start: int
    elsewhere: float = 0.0
    is_of_relu: bool = True

    @property
    def stop(self) -> int:
        """One past the last column."""
        return self.start + len(self.elements)

    def of(self, rows: Tensor, sound: bool) -> Tensor:
        """Unpack rows [D, columns]: to [D, *shape], or in a search of a ReLU to [D, elements]."""
        if self.is_of_relu and not sound:
            return rows[:, self.start : self.stop]
        tensor = rows.new_full((len(rows), self.shape.numel()), self.elsewhere)
        return tensor.index_copy(1, self.elements, rows[:, self.start : self.stop]).unflatten(1, self.shape)


@dataclass(frozen=True)
class Leaves(TensorRows):
    """D leaves.

    row: [D], the index of a row of `spec`.
    signs: int8 [D, units], 1 or -1 where the leaf fixes the sign, else 0.
    choices: [D, choices], packed.
    lower: [D], lower bounds in float64.
    """

    row: Tensor
    signs: Tensor
    choices: Tensor
    lower: Tensor

    @property
    def nbytes(self) -> int:
        """Their size in bytes."""
        return sum(tensor.nbytes for tensor in vars(self).values())


@dataclass(frozen=True)
class SearchQuery:
    """A query in one precision: a program, its values over one image's box, [1, ...], and a spec [K, N]."""

    program: Program
    values: list[Any]
    spec: Tensor

    def in_float32(self, program: Program | None) -> "SearchQuery":
        """Return the query for a search with the program in float32, the query itself if there is none."""
        if program is None:
            return self
        return SearchQuery(program, cast_to_float32(program, self.values), self.spec.float())

    def repeat_values(self, count: int) -> list[Any]:
        """Return the values expanded to `count` examples."""

        def expand(box: Interval, number: int) -> Interval:
            return Interval(*(end.expand(count, *end.shape[1:]) for end in (box.center, box.radius)))

        return with_boxes(self.program, self.values, expand)

    def rows(self, numbers: Tensor) -> Tensor:
        """Return rows of the spec, by their numbers [D], as coefficients of the output, [D, 1, *shape]."""
        return self.spec[numbers].view(len(numbers), 1, *self.values[self.program.output].center.shape[1:])

    def at(self, points: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the rows' values [D, K] at points [D, ...], and by step the pre-activations [D, *shape] there."""
        values: list[Any] = [points.clone()]  # operators may work in place
        preactivations = {}
        for step in self.program.steps:
            values.append(step.run(values))
            check(values[-1] if step.record is not None else None)
            if step.record is not None and step.record.preactivation is not None:
                arguments, options = step.call(values)
                preactivations[step.name] = step.record.preactivation(values[-1], *arguments, **options)
        return values[self.program.output].flatten(1) @ self.spec.T, preactivations

    def lower(self, leaves: Leaves, layout: "Layout", sound: bool, relaxations: dict[str, Any] | None = None) -> Tensor:
        """Return the lower bounds [D]: in float64 and rounded down if `sound`, else differentiable in the choices.

        relaxations: as in Backward.
        """
        choices, signs = leaves.choices.to(self.spec), leaves.signs.to(self.spec)
        slopes = {columns.name: columns.of(choices, sound).unsqueeze(1) for columns in layout.choices}
        splits = {columns.name: columns.of(signs, sound) for columns in layout.units}
        units = {c.name: c.elements for c in layout.units if c.is_of_relu and not sound}
        ctx = Backward(sound, slopes=slopes, splits=splits, units=units, relaxations=relaxations)
        values = self.repeat_values(len(leaves.row))
        return linear_lower_bound(self.program, values, self.rows(leaves.row), self.program.output, ctx)[:, 0]


@dataclass(frozen=True)
class Layout:
    """The packing of one image's leaves.

    units: the columns of the units that may be split, one Columns for each step. choices: the columns of free choices,
    by their name among a pass's slopes. scales: [K, choices], the size of each choice for each row of the spec.
    parallel: units whose signs follow from each other.
    """

    units: list[Columns]
    choices: list[Columns]
    scales: Tensor
    parallel: ParallelUnits

    def largest(self, like: Tensor) -> Tensor:
        """Return the largest allowed value of each choice, [choices]: 1, infinity for multipliers of splits."""
        splits = {split_name(columns.name) for columns in self.units}
        ends = [like.new_full((len(c.elements),), torch.inf if c.name in splits else 1.0) for c in self.choices]
        return torch.cat(ends) if ends else like.new_zeros(0)

    @property
    def slope_columns(self) -> Tensor:
        """The column of each unit's slope among the choices, [units]."""
        return self._columns_of({columns.name for columns in self.units})

    @property
    def multiplier_columns(self) -> Tensor:
        """The column of each unit's multiplier among the choices, [units]."""
        return self._columns_of({split_name(columns.name) for columns in self.units})

    def _columns_of(self, names: set[str]) -> Tensor:
        device = self.scales.device
        numbers = [torch.arange(c.start, c.stop, device=device) for c in self.choices if c.name in names]
        return torch.cat(numbers) if numbers else torch.arange(0, device=device)

    def round_choices(self, leaves: Leaves) -> Leaves:
        """Round choices to what `certificate_tensors` stores: eight bits, multipliers of splits in float32."""
        small = self.largest(leaves.choices) <= 1
        choices = leaves.choices.clamp(min=0).float().to(leaves.choices)
        return replace(leaves, choices=torch.where(small, (choices.clamp(max=1) * 255).round() / 255, choices))


def root_leaves(exact: SearchQuery, fast: SearchQuery, rows: Tensor) -> tuple[Layout, Leaves]:
    """Return the layout of an image's leaves, and the root leaves of these rows [D], which fix no sign.

    exact, fast: the same query in float64 and for the search.
    """
    relaxations: dict[str, Any] = {}
    ctx = Backward(sound=False, choices={}, relaxations=relaxations)
    boxes, spec = fast.repeat_values(len(rows)), fast.rows(rows)
    lower = linear_lower_bound(fast.program, boxes, spec, fast.program.output, ctx)[:, 0]
    units: list[Columns] = []
    choices: list[Columns] = []
    defaults, first, sizes = ctx.choices or {}, [], []
    for step, (coefficients, relaxation) in ((step, pair) for step, pair in relaxations.items() if step):
        unstable, is_of_relu = unstable_units(relaxation)[0], line_share_name(step) not in defaults
        elements = unstable.flatten().nonzero()[:, 0]
        units.append(Columns(step, unstable.shape, elements, units[-1].stop if units else 0, is_of_relu=is_of_relu))
        slopes = defaults[step][0].flatten()[elements]
        free = {step: (elements, slopes, 0.0), split_name(step): (elements, torch.zeros_like(slopes), 0.0)}
        if (line_share := defaults.get(line_share_name(step))) is not None:
            share = line_share[0].flatten()
            free[line_share_name(step)] = torch.arange(len(share), device=share.device), share, 1.0
        for name, (members, values, elsewhere) in free.items():
            start = choices[-1].stop if choices else 0
            choices.append(Columns(name, unstable.shape, members, start, elsewhere, is_of_relu))
            first.append(values)
            size = coefficients.flatten(2).abs().amax(2) if name == split_name(step) else lower.new_ones(len(rows), 1)
            sizes.append(size.expand(-1, len(values)))
    scales = lower.new_zeros(len(fast.spec), choices[-1].stop if choices else 0)
    scales[rows] = torch.cat(sizes, dim=1) if sizes else scales[rows]
    packed = torch.cat(first) if first else lower.new_zeros(0)
    signs = torch.zeros(len(rows), units[-1].stop if units else 0, dtype=torch.int8, device=rows.device)
    parallel = parallel_units(exact.program, exact.values, {columns.name: columns.elements for columns in units})
    return Layout(units, choices, scales, parallel), Leaves(rows, signs, packed.repeat(len(rows), 1), lower.double())


def certificate_tensors(layout: Layout, leaves: Leaves) -> dict[str, Tensor]:
    """Return the tensors for a check of the leaves beside the network and the box; choices must be rounded.

    "row": int16 [D]. Of each step with units: "<step>/neurons", int32 [U], their elements; "<step>/slopes", uint8
    [D, U], in units of 1 / 255; "<step>/signs", int8 [D, U]; "<step>/multipliers", float32 [D, U]; of equilibria
    "<step>/line_shares" too, uint8 [D, elements], in units of 1 / 255.
    """
    tensors = {"row": leaves.row.short()}
    free = {columns.name: leaves.choices[:, columns.start : columns.stop] for columns in layout.choices}
    for columns in layout.units:
        step = columns.name
        tensors[f"{step}/neurons"] = columns.elements.int()
        tensors[f"{step}/slopes"] = (free[step] * 255).round().byte()
        tensors[f"{step}/signs"] = leaves.signs[:, columns.start : columns.stop]
        tensors[f"{step}/multipliers"] = free[split_name(step)].float()
        if line_share_name(step) in free:
            tensors[f"{step}/line_shares"] = (free[line_share_name(step)] * 255).round().byte()
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def unstable_units(relaxation: Relaxation) -> Tensor:
    """Return which units are unstable, bool [D, *shape]: their pre-activation may have either sign."""
    return (relaxation.low < 0) & (relaxation.high > 0)
