"""Intermediate boxes by CROWN itself, layer by layer, of the neurons that need them (Zhang et al. 2018)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.backward import Functional, chunked_lower_bound
from cerdeq.bounds.forward import values_of
from cerdeq.bounds.graph import Program
from cerdeq.bounds.interval import Context, Interval
from cerdeq.bounds.patches import Coefficients, one_hot
from cerdeq.boxes import Box, narrowed, outward_ends

Tighter = Callable[[Box, Tensor, Callable[[Coefficients], list[Coefficients]]], Box]
"""(box, unsettled, functionals) -> the box, tightened by linear bounds where `unsettled`, a mask of its shape.

The box is of a value that is linear in an operator's result and arguments: functionals gives the coefficients of
those, from coefficients of the value."""


def tightened_values(program: Program, x: Interval, memory: int) -> list[Any]:
    """A sound forward pass in which every relaxation's input box is first intersected with its CROWN bounds.

    Only where the operator says that it matters, for ReLU where the box contains 0 inside.
    """
    done = {0}

    def inputs(number: int, values: list[Any]) -> None:
        step, record = program.steps[number - 1], program.steps[number - 1].record
        if record is None or record.unsettled is None:
            return
        _, options = step.call(values)
        for source in set(step.sources) - done:
            x = values[source]
            unsettled = record.unsettled(x.box, **options)
            box = _tightened(program, values, source, x.box, unsettled, partial(_of_one, source), memory)
            values[source] = Interval(box.center, box.radius, x.clean)
            done.add(source)

    def result(number: int, values: list[Any]) -> None:
        step, record = program.steps[number - 1], program.steps[number - 1].record
        if record is None or record.refine is None:
            return

        def tighter(box: Box, unsettled: Tensor, functionals: Callable[[Coefficients], list[Coefficients]]) -> Box:
            def functional(rows: Coefficients) -> Functional:
                return dict(zip((number, *step.sources), functionals(rows), strict=True))

            return _tightened(program, values, number, box, unsettled, functional, memory)

        arguments, options = step.call(values)
        values[number] = record.refine(tighter, values[number], *arguments, **options)

    return values_of(program, x, Context(sound=True), inputs, result)


def _of_one(number: int, rows: Coefficients) -> Functional:
    return {number: rows}


def _tightened(
    program: Program, values: list[Any], at: int, box: Box, unsettled: Tensor,
    functional: Callable[[Coefficients], Functional], memory: int,
) -> Box:  # fmt: skip
    """`box`, of something linear in the values up to number `at`, tightened where `unsettled`."""
    chosen = unsettled.flatten(1).int()
    count = int(chosen.sum(1).max())
    if count == 0:
        return box
    # Examples have different numbers of such neurons; those with fewer fill up with others, which does no harm.
    index = chosen.argsort(dim=1, descending=True, stable=True)[:, :count]

    def rows(start: int, stop: int) -> Functional:
        """Rows 2 k and 2 k + 1: the k-th neuron and its negative."""
        place = index.repeat_interleave(2, dim=1)[:, start:stop]
        sign = 1 - 2 * (torch.arange(start, stop, device=place.device) % 2).to(box.center)
        return functional(one_hot(place, sign.expand(place.shape), box.center.shape[1:]))

    lower = chunked_lower_bound(program, values, rows, 2 * count, at, memory).to(box.center)
    lower = lower - torch.finfo(lower.dtype).eps * lower.abs()  # down, from float64
    low, high = (end.flatten(1) for end in outward_ends(box))
    low = low.scatter(1, index, torch.maximum(low.gather(1, index), lower[:, ::2]))
    high = high.scatter(1, index, torch.minimum(high.gather(1, index), -lower[:, 1::2]))
    return narrowed(box, low.view_as(box.center), high.view_as(box.center))
