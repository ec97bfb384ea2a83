"""CROWN: linear lower bounds, over the boxes of IBP or over boxes that CROWN itself tightens (Zhang et al. 2018).

It tightens boxes layer by layer, those of the neurons that need it.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.crown_pass import Functional, chunked_lower_bound
from cerdeq.bounds.float32 import cut_by_float32, float32_box_around, has_fast_float64
from cerdeq.bounds.ibp import ibp, values_of
from cerdeq.bounds.patches import Coefficients, one_hot
from cerdeq.bounds.query import Query, larger
from cerdeq.boxes import Box, outward_ends, smaller_box
from cerdeq.operators.interval import Context, Interval
from cerdeq.tracing.program import Program

_CLOSE = 0.1  # to the target, in units of how far the example was from it before its boxes were tightened
Tighter = Callable[[Box, Tensor, Callable[[Coefficients], list[Coefficients]]], Box]
"""(box, mask, functionals) -> the box, tightened by linear bounds where `mask` is True.

The box is of a value that is linear in an operator's result and arguments: `functionals` returns the coefficients of
these, from coefficients of the value."""


def crown_ibp(query: Query) -> Tensor:
    """Return linear bounds over the boxes of IBP, or those of IBP where they are better."""
    return query.raise_bounds(ibp(query), linear_bounds)


def crown(query: Query) -> Tensor:
    """Return linear bounds over boxes that CROWN has tightened, or those of `crown_ibp` where they are better."""
    return over_tighter_boxes(query, crown_ibp(query), lambda tight, lower: lower)


def over_tighter_boxes(query: Query, lower: Tensor, improve: Callable[[Query, Tensor], Tensor]) -> Tensor:
    """Raise `lower` of undecided examples: by CROWN over boxes that CROWN has tightened, then by `improve`.

    Where float64 is slow, float32 finds the boxes if it may, wider ones by its rounding. If that leaves an example
    close to the target, float64 finds them again.
    """
    undecided, before = query.undecided(lower), lower.clone()
    is_slow = not has_fast_float64(lower.device)
    if is_slow and query.float32 is not None and query.target is not None and len(undecided):
        lower = _raised_over(query, lower, improve, undecided, query.float32)
        is_close = query.target - lower.amin(1) <= _CLOSE * (query.target - before.amin(1))
        undecided = query.undecided(lower)
        undecided = undecided[is_close[undecided]]
    return _raised_over(query, lower, improve, undecided, query.program) if len(undecided) else lower


def _raised_over(
    query: Query, lower: Tensor, improve: Callable[[Query, Tensor], Tensor], examples: Tensor, program: Program
) -> Tensor:
    """Raise `lower` of these examples over the boxes that `program` tightens."""
    tight = tighten(query.of(examples), program)
    lower[examples] = improve(tight, tight.raise_bounds(larger(lower[examples], ibp(tight)), linear_bounds))
    return lower


def tighten(query: Query, program: Program) -> Query:
    """Return the query over boxes that CROWN has tightened, by the query's program or by its float32 one."""
    if program is not query.float32:
        return replace(query, values=tighten_boxes(program, query.values[0], query.memory))
    boxes = tighten_boxes(program, float32_box_around(query.values[0]), query.memory)
    return replace(query, values=cut_by_float32(query.program, query.values, boxes))


def linear_bounds(query: Query) -> Tensor:
    """Return linear bounds over the boxes of `query.values`, in float64."""
    output = query.program.output
    shape = query.values[output].center.shape[1:]

    def rows(start: int, stop: int) -> Functional:
        return {output: query.spec[:, start:stop].unflatten(2, shape)}

    count, memory = query.spec.shape[1], query.memory
    return chunked_lower_bound(query.program, query.values, rows, count, output, memory)


def tighten_boxes(program: Program, x: Interval, memory: int) -> list[Any]:
    """Return a sound forward pass in which CROWN bounds first tighten every relaxation's input box.

    They do so where the operator says that its relaxation depends on it: for a ReLU, where the box has 0 inside.
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
            mask = record.needs_tighter_box(x.box, **options)

            def functional(rows: Coefficients, source: int = source) -> Functional:
                return {source: rows}

            box = tighten_box(program, values, source, x.box, mask, functional, memory, are_units=True)
            values[source] = Interval(box.center, box.radius, x.clean)

    def tighten_result(number: int, values: list[Any]) -> None:
        step, record = program.steps[number - 1], program.steps[number - 1].record
        if record is None or record.refine is None:
            return

        def tighter(box: Box, mask: Tensor, functionals: Callable[[Coefficients], list[Coefficients]]) -> Box:
            def functional(rows: Coefficients) -> Functional:
                return dict(zip((number, *step.sources), functionals(rows), strict=True))

            return tighten_box(program, values, number, box, mask, functional, memory)

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


def tighten_box(
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
