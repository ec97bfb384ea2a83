"""The forward pass: an Interval of every value of a program (IBP)."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from cerdeq.bounds.graph import Program
from cerdeq.bounds.interval import Context, Interval, linear, specified, specified_linear
from cerdeq.bounds.precision import counted_rounding

Tighten = Callable[[int, list[Any]], None]


def propagate(program: Program, x: Interval, ctx: Context, spec: Tensor | None = None) -> Interval:
    """IBP of a whole model: the output's Interval, [B, N], or [B, K] with `spec` [B, K, N].

    `spec` is merged into a last linear layer, which is tighter than subtracting output intervals.
    """
    with counted_rounding(x.center.device.type) if ctx.sound else nullcontext():
        return output_of(program, values_of(program, x, ctx), ctx, spec)


def values_of(
    program: Program, x: Interval, ctx: Context, before: Tighten | None = None, after: Tighten | None = None
) -> list[Any]:
    """Every value: an Interval where the input reaches, else what the step gave.

    before, after: called with a step's number before and after it is bounded; may replace values by tighter ones.
    """
    values: list[Any] = [x]
    for number, step in enumerate(program.steps, start=1):
        if before is not None and step.record is not None:
            before(number, values)
        ctx.step = step.name
        arguments, options = step.call(values)
        apply = step.target if step.record is None else step.record.interval
        values.append(apply(*arguments, **options) if step.record is None else apply(ctx, *arguments, **options))
        if after is not None and step.record is not None:
            after(number, values)
    return values


def output_of(program: Program, values: list[Any], ctx: Context, spec: Tensor | None) -> Interval:
    """The output's Interval, with `spec` [B, K, N] of its N elements merged into a last linear layer."""
    output = values[program.output]
    if spec is None:
        return output
    last = program.steps[program.output - 1] if program.output > 0 else None
    plain = last is not None and last.record is not None and last.record.interval is linear
    if last is not None and plain and output.center.dim() == 2:
        arguments, options = last.call(values)
        return specified_linear(ctx, arguments[0], spec, *arguments[1:], **options)
    return specified(ctx, output, spec)
