"""Intermediate boxes by CROWN itself, layer by layer, of the neurons that need them (Zhang et al. 2018)."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.backward import Functional, chunked_lower_bound
from cerdeq.bounds.ibp import values_of
from cerdeq.bounds.patches import Coefficients, one_hot
from cerdeq.boxes import Box, outward_ends, smaller_box
from cerdeq.operators.interval import Context, Interval
from cerdeq.tracing.program import Program

Tighter = Callable[[Box, Tensor, Callable[[Coefficients], list[Coefficients]]], Box]
"""(box, mask, functionals) -> the box, tightened by linear bounds where `mask` is True.

The box is of a value that is linear in an operator's result and arguments: `functionals` returns the coefficients of
these, from coefficients of the value."""


def tighten_boxes(program: Program, x: Interval, memory: int, all_units: bool = False) -> list[Any]:
    """Return a sound forward pass in which CROWN bounds first tighten every relaxation's input box.

    They do so where the operator says that its relaxation depends on it: for a ReLU, where the box has 0 inside. With
    `all_units` they do so everywhere, since intervals through the other units help the units after them.
    """
    done = {0}

    def tighten_inputs(number: int, values: list[Any]) -> None:
        step, record = program.steps[number - 1], program.steps[number - 1].record
        if record is None or record.needs_tighter_box is None:
            return
        _, options = step.call(values)
        for source in set(step.sources) - done:
            done.add(source)
            if is_exact(program, source):
                continue
            x = values[source]
            mask = x.radius > 0 if all_units else record.needs_tighter_box(x.box, **options)
            functional = partial(_functional_of, source)
            box = _tighten_box(program, values, source, x.box, mask, functional, memory, are_units=True)
            values[source] = Interval(box.center, box.radius, x.clean)

    def tighten_result(number: int, values: list[Any]) -> None:
        step, record = program.steps[number - 1], program.steps[number - 1].record
        if record is None or record.refine is None:
            return

        def tighter(box: Box, mask: Tensor, functionals: Callable[[Coefficients], list[Coefficients]]) -> Box:
            def functional(rows: Coefficients) -> Functional:
                return dict(zip((number, *step.sources), functionals(rows), strict=True))

            return _tighten_box(program, values, number, box, mask, functional, memory)

        arguments, options = step.call(values)
        values[number] = record.refine(tighter, values[number], *arguments, **options)

    return values_of(program, x, Context(sound=True), tighten_inputs, tighten_result)


def is_exact(program: Program, number: int) -> bool:
    """Return whether IBP's box of a value is the smallest there is, but for rounding.

    It is if the value comes from the input by one affine operator, and by operators that treat elements one by one.
    """
    sums = 0
    while number > 0:
        step = program.steps[number - 1]
        if step.record is None or step.record.affine is None or len(step.sources) != 1:
            return False
        sums += step.record.affine == "sums"
        number = step.sources[0]
    return sums <= 1


def _functional_of(number: int, rows: Coefficients) -> Functional:
    return {number: rows}


def _tighten_box(
    program: Program, values: list[Any], at: int, box: Box, mask: Tensor,
    functional: Callable[[Coefficients], Functional], memory: int, are_units: bool = False,
) -> Box:  # fmt: skip
    """Return `box`, of something linear in the values up to number `at`, tightened where `mask`.

    are_units: whether it is that value itself.
    """
    flat_mask = mask.flatten(1).int()
    count = int(flat_mask.sum(1).max())
    if count == 0:
        return box
    # Examples have different numbers of such neurons; those with fewer fill up with others, which does no harm.
    index = flat_mask.argsort(dim=1, descending=True, stable=True)[:, :count]

    def rows(start: int, stop: int) -> Functional:
        """Return rows 2 k and 2 k + 1: the k-th neuron and its negative."""
        neurons = index.repeat_interleave(2, dim=1)[:, start:stop]
        sign = 1 - 2 * (torch.arange(start, stop, device=neurons.device) % 2).to(box.center)
        return functional(one_hot(neurons, sign.expand(neurons.shape), box.center.shape[1:]))

    lower = chunked_lower_bound(program, values, rows, 2 * count, at, memory, are_units).to(box.center)
    lower = lower - torch.finfo(lower.dtype).eps * lower.abs()  # down, from float64
    low, high = (end.flatten(1) for end in outward_ends(box))
    low = low.scatter(1, index, torch.maximum(low.gather(1, index), lower[:, ::2]))
    high = high.scatter(1, index, torch.minimum(high.gather(1, index), -lower[:, 1::2]))
    return smaller_box(box, low.view_as(box.center), high.view_as(box.center))
