"""Leaves of a branch-and-bound tree, packed, and linear bounds in them.

A leaf is one row of `spec` and the signs that it says some pre-activations have. Its free choices are the slopes and
multipliers of its linear bound. All are kept for units alone whose sign the root's boxes leave open: a row of numbers a
leaf, instead of tensors of the sizes of values.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.backward import linear_lower_bound
from cerdeq.bounds.forward import with_boxes
from cerdeq.bounds.graph import Program
from cerdeq.bounds.interval import Interval
from cerdeq.bounds.linear import Backward
from cerdeq.bounds.relaxation import Lines, kept_name, split_name


@dataclass(frozen=True)
class Columns:
    """What some columns of packed rows, from `start` on, stand for.

    They are these elements of a tensor [*shape], called `name`, whose other ones are `elsewhere`.
    """

    name: str
    shape: torch.Size
    elements: Tensor
    start: int
    elsewhere: float = 0.0

    @property
    def stop(self) -> int:
        """One past the last column."""
        return self.start + len(self.elements)

    def spread(self, rows: Tensor) -> Tensor:
        """Packed rows [D, columns] -> [D, *shape]."""
        whole = rows.new_full((len(rows), self.shape.numel()), self.elsewhere)
        return whole.index_copy(1, self.elements, rows[:, self.start : self.stop]).unflatten(1, self.shape)


@dataclass(frozen=True)
class Leaves:
    """D leaves.

    row: [D], which of the rows of `spec`.
    signs: int8 [D, units], 1 or -1 where the leaf says so, else 0.
    choices: [D, choices], packed.
    lower: [D], their bounds, in float64.
    """

    row: Tensor
    signs: Tensor
    choices: Tensor
    lower: Tensor

    def of(self, numbers: Tensor | slice) -> "Leaves":
        """Some of them, in that order."""
        return Leaves(self.row[numbers], self.signs[numbers], self.choices[numbers], self.lower[numbers])

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return sum(tensor.nbytes for tensor in vars(self).values())


def together(parts: list[Leaves]) -> Leaves:
    """All leaves of the parts."""
    return Leaves(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])))


@dataclass(frozen=True)
class Side:
    """A program, the values of its forward pass over one image's box, [1, ...], and a spec [K, N], in one precision."""

    program: Program
    values: list[Any]
    spec: Tensor

    def repeated(self, count: int) -> list[Any]:
        """The values as if of so many examples."""

        def expanded(box: Interval) -> Interval:
            return Interval(*(end.expand(count, *end.shape[1:]) for end in (box.center, box.radius)))

        return with_boxes(self.program, self.values, expanded)

    def rows(self, numbers: Tensor) -> Tensor:
        """These rows of the spec as coefficients of the output, [D, 1, *shape]."""
        return self.spec[numbers].view(len(numbers), 1, *self.values[self.program.output].center.shape[1:])

    def at(self, points: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The rows' values [D, K] at points [D, ...], and the pre-activations [D, *shape] there, by step."""
        values: list[Any] = [points.clone()]  # operators may work in place
        preactivations = {}
        for step in self.program.steps:
            values.append(step.run(values))
            if step.record is not None and step.record.preactivation is not None:
                arguments, options = step.call(values)
                preactivations[step.name] = step.record.preactivation(values[-1], *arguments, **options)
        return values[self.program.output].flatten(1) @ self.spec.T, preactivations

    def lower(self, leaves: Leaves, layout: "Layout", sound: bool, met: dict[str, Any] | None = None) -> Tensor:
        """The leaves' lower bounds [D]; in float64, rounded down, if `sound`, else differentiable in their choices.

        met: as in Backward.
        """
        choices, signs = leaves.choices.to(self.spec), leaves.signs.to(self.spec)
        slopes = {columns.name: columns.spread(choices).unsqueeze(1) for columns in layout.choices}
        splits = {columns.name: columns.spread(signs) for columns in layout.units}
        ctx = Backward(sound, slopes=slopes, splits=splits, met=met)
        values = self.repeated(len(leaves.row))
        return linear_lower_bound(self.program, values, self.rows(leaves.row), self.program.output, ctx)[:, 0]


@dataclass(frozen=True)
class Layout:
    """How the leaves of an image are packed.

    units: what may be split, by step. choices: what is free, by its name among a pass's slopes.
    scales: [K, choices], the size of each for each row of the spec.
    """

    units: list[Columns]
    choices: list[Columns]
    scales: Tensor

    def largest(self, like: Tensor) -> Tensor:
        """The most that each choice may be, [choices]: 1, but for multipliers of splits, which have no end."""
        splits = {split_name(columns.name) for columns in self.units}
        ends = [like.new_full((len(c.elements),), torch.inf if c.name in splits else 1.0) for c in self.choices]
        return torch.cat(ends) if ends else like.new_zeros(0)

    def stored(self, leaves: Leaves) -> Leaves:
        """The leaves with choices that `certificate` keeps exactly: in eight bits, multipliers of splits in float32."""
        small = self.largest(leaves.choices) <= 1
        choices = leaves.choices.clamp(min=0).float().to(leaves.choices)
        return replace(leaves, choices=torch.where(small, (choices.clamp(max=1) * 255).round() / 255, choices))


def rooted(side: Side, rows: Tensor) -> tuple[Layout, Leaves]:
    """The layout of an image's leaves, and the leaves of these rows [D] that say nothing yet."""
    met: dict[str, Any] = {}
    ctx = Backward(sound=False, chosen={}, met=met)
    lower = linear_lower_bound(side.program, side.repeated(len(rows)), side.rows(rows), side.program.output, ctx)[:, 0]
    units: list[Columns] = []
    choices: list[Columns] = []
    defaults, first, sizes = ctx.chosen or {}, [], []
    for step, (coefficients, around) in ((step, found) for step, found in met.items() if step):
        unsettled = open_units(around)[0]
        elements = unsettled.flatten().nonzero()[:, 0]
        units.append(Columns(step, unsettled.shape, elements, units[-1].stop if units else 0))
        slopes = defaults[step][0].flatten()[elements]
        free = {step: (elements, slopes, 0.0), split_name(step): (elements, torch.zeros_like(slopes), 0.0)}
        if (kept := defaults.get(kept_name(step))) is not None:
            free[kept_name(step)] = torch.arange(kept[0].numel(), device=kept.device), kept[0].flatten(), 1.0
        for name, (places, values, elsewhere) in free.items():
            start = choices[-1].stop if choices else 0
            choices.append(Columns(name, unsettled.shape, places, start, elsewhere))
            first.append(values)
            size = coefficients.flatten(2).abs().amax(2) if name == split_name(step) else lower.new_ones(len(rows), 1)
            sizes.append(size.expand(-1, len(values)))
    scales = lower.new_zeros(len(side.spec), choices[-1].stop if choices else 0)
    scales[rows] = torch.cat(sizes, dim=1) if sizes else scales[rows]
    packed = torch.cat(first) if first else lower.new_zeros(0)
    signs = torch.zeros(len(rows), units[-1].stop if units else 0, dtype=torch.int8, device=rows.device)
    return Layout(units, choices, scales), Leaves(rows, signs, packed.repeat(len(rows), 1), lower.double())


def certificate(layout: Layout, leaves: Leaves) -> dict[str, Tensor]:
    """What a check of the leaves needs beside the network and the box, for choices that are `stored`.

    "row": int16 [D]. Of each step with units: "<step>/neurons", int32 [U], their elements; "<step>/slopes", uint8
    [D, U], in units of 1 / 255; "<step>/signs", int8 [D, U]; "<step>/multipliers", float32 [D, U]; of equilibria
    "<step>/kept" too, uint8 [D, elements], in units of 1 / 255.
    """
    known = {"row": leaves.row.short()}
    free = {columns.name: leaves.choices[:, columns.start : columns.stop] for columns in layout.choices}
    for columns in layout.units:
        step = columns.name
        known[f"{step}/neurons"] = columns.elements.int()
        known[f"{step}/slopes"] = (free[step] * 255).round().byte()
        known[f"{step}/signs"] = leaves.signs[:, columns.start : columns.stop]
        known[f"{step}/multipliers"] = free[split_name(step)].float()
        if kept_name(step) in free:
            known[f"{step}/kept"] = (free[kept_name(step)] * 255).round().byte()
    return {name: tensor.cpu().contiguous() for name, tensor in known.items()}


def open_units(around: Lines) -> Tensor:
    """Which units may have either sign, [D, *shape]."""
    return (around.low < 0) & (around.high > 0)
