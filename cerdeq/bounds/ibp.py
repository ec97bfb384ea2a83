"""IBP: the forward pass, an Interval of every value of a program (Gowal et al. 2018)."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from cerdeq.bounds.query import Query
from cerdeq.boxes import outward_ends
from cerdeq.deadline import check
from cerdeq.operators.interval import Context, Interval
from cerdeq.operators.linear import linear_interval, specified, specified_linear
from cerdeq.precision import counted_rounding, without_autocast
from cerdeq.tracing.program import Program

Tighten = Callable[[int, list[Any]], None]


def propagate(program: Program, x: Interval, ctx: Context, spec: Tensor | None = None) -> Interval:
    """Return the output's Interval by IBP: [B, N], or [B, K] with `spec` [B, K, N].

    `spec` is merged into a last linear layer, which is tighter than subtracting output intervals.
    """
    with counted_rounding(x.center.device.type) if ctx.sound else nullcontext():
        return output_of(program, values_of(program, x, ctx), ctx, spec)


def values_of(
    program: Program, x: Interval, ctx: Context, before: Tighten | None = None, after: Tighten | None = None
) -> list[Any]:
    """Return all values: an Interval if the value depends on the input, else the value itself.

    Under autocast, in training, products are in its precision and values in that of `x`.
    before, after: called with a step's number before and after it is bounded; they may replace values by tighter ones.
    """
    values: list[Any] = [x]
    for number, step in enumerate(program.steps, start=1):
        check()
        if before is not None and step.record is not None:
            before(number, values)
        ctx.step = step.name
        arguments, options = step.call(values)
        if step.record is None:
            values.append(step.target(*arguments, **options))
            continue
        value = step.record.interval(ctx, *arguments, **options)
        values.append(value if ctx.sound else value.to(x.center.dtype))
        if after is not None:
            after(number, values)
    return values


def points_of(program: Program, x: Tensor, ctx: Context, start: int = 0) -> Tensor:
    """Return the outputs at points x [B, ...], by the batch statistics and weights W that `ctx` has saved.

    start: the number of the value that x replaces, 0 for the input. No later step may use an earlier value that depends
    on the input. A new context saves those of x. Under autocast, in training, products are in its precision, except
    those of the last step, and values in that of `x`.
    """
    values: list[Any] = [x.clone()]
    for number, step in enumerate(program.steps, start=1):
        ctx.step = step.name
        if number <= start and step.record is not None:
            values.append(x.clone() if number == start else None)
            continue
        with without_autocast(x) if number == program.output else nullcontext():
            if step.record is None or step.record.points is None:
                value = step.run(values)
            else:
                arguments, options = step.call(values)
                value = step.record.points(ctx, *arguments, **options)
        is_bounded = step.record is not None and not isinstance(value, tuple)  # of several results, parts follow
        values.append(value.to(x.dtype) if is_bounded else value)
    return values[program.output]


def output_of(program: Program, values: list[Any], ctx: Context, spec: Tensor | None) -> Interval:
    """Return the output's Interval, with `spec` [B, K, N] of its N elements merged into a last linear layer.

    That layer is computed without autocast, since the loss is made of differences of logits.
    """
    output = values[program.output]
    if spec is None:
        return output
    last = program.steps[program.output - 1] if program.output > 0 else None
    plain = last is not None and last.record is not None and last.record.interval is linear_interval
    with without_autocast(output.center):
        if last is not None and plain and output.center.dim() == 2:
            arguments, options = last.call(values)
            return specified_linear(ctx, arguments[0], spec, *arguments[1:], **options)
        return specified(ctx, output, spec)


def ibp(query: Query) -> Tensor:
    """Return the lower ends of the outputs under the spec, [B, K]."""
    lower, _ = outward_ends(output_of(query.program, query.values, Context(sound=True), query.spec).box)
    return lower
