"""The forward pass: an Interval of every value of a program (IBP)."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import Tensor

from cerdeq.bounds.graph import Program, Step
from cerdeq.bounds.interval import Context, Interval, linear, specified, specified_linear
from cerdeq.bounds.precision import counted_rounding, without_autocast

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

    Under autocast, in training, products are in its precision and values in that of `x`.
    before, after: called with a step's number before and after it is bounded; may replace values by tighter ones.
    """
    values: list[Any] = [x]
    for number, step in enumerate(program.steps, start=1):
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


def with_boxes(program: Program, values: list[Any], change: Callable[[Interval], Interval]) -> list[Any]:
    """The values of a pass with every box changed; what is not bounded is computed again, since it may know the
    batch's size."""
    changed: list[Any] = []
    for number, value in enumerate(values):
        bounded = isinstance(value, Interval)
        changed.append(change(value) if bounded else program.steps[number - 1].run(changed))
    return changed


def points_of(program: Program, x: Tensor, ctx: Context) -> Tensor:
    """The outputs at points x [B, ...], as `ctx` met the batch first: its batch statistics, its weights W.

    With a context that met none, x is that batch. Under autocast, in training, products are in its precision but for
    the last step's, and values in that of `x`.
    """
    values: list[Any] = [x.clone()]
    for number, step in enumerate(program.steps, start=1):
        ctx.step = step.name
        with without_autocast(x) if number == program.output else nullcontext():
            value = _at_points(step, values, ctx)
        values.append(value if step.record is None else value.to(x.dtype))
    return values[program.output]


def _at_points(step: Step, values: list[Any], ctx: Context) -> Any:
    if step.record is None or step.record.points is None:
        return step.run(values)
    arguments, options = step.call(values)
    return step.record.points(ctx, *arguments, **options)


def output_of(program: Program, values: list[Any], ctx: Context, spec: Tensor | None) -> Interval:
    """The output's Interval, with `spec` [B, K, N] of its N elements merged into a last linear layer.

    That layer is computed without autocast: differences of logits are what the loss is made of.
    """
    output = values[program.output]
    if spec is None:
        return output
    last = program.steps[program.output - 1] if program.output > 0 else None
    plain = last is not None and last.record is not None and last.record.interval is linear
    with without_autocast(output.center):
        if last is not None and plain and output.center.dim() == 2:
            arguments, options = last.call(values)
            return specified_linear(ctx, arguments[0], spec, *arguments[1:], **options)
        return specified(ctx, output, spec)
