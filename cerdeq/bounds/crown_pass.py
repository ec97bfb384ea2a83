"""The backward pass: a linear functional of one value, pulled back to the input box (CROWN; Xu et al. 2020)."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.patches import Coefficients, add_coefficients, dense, pull, rounding, window_sizes
from cerdeq.deadline import check
from cerdeq.operators.backward import Backward, dot, magnitude, rounded_constant, rounding_costs
from cerdeq.operators.interval import Interval
from cerdeq.tracing.program import Program

Functional = dict[int, Coefficients]  # by a value's number
_COEFFICIENTS_CACHE = 2**24  # bytes of a thread, in which a pass runs a few times faster
_WORKING_COPIES = 4  # of a step's coefficients: positive part, negative part, products


def linear_lower_bound(
    program: Program, values: list[Any], coefficients: Coefficients, at: int, ctx: Backward
) -> Tensor:
    """Return lower bounds [B, K] of coefficients [B, K, *shape] . value number `at`, over the input box.

    values: of a forward pass; the relaxations are made of its boxes. If `ctx.sound`, bounds are in float64, rounded
    down, and -inf if they are not finite; call it within `counted_rounding`. Else they are differentiable, in the
    coefficients' precision.
    """
    return joint_lower_bound(program, values, {at: coefficients}, ctx)


def joint_lower_bound(program: Program, values: list[Any], functional: Functional, ctx: Backward) -> Tensor:
    """Return `linear_lower_bound` of a sum of functionals of several values."""
    pending, constants = pull_back(program, values, functional, ctx)
    x, last = values[0], dense(pending[0])
    if ctx.relaxations is not None:
        ctx.relaxations[""] = last
    if not ctx.sound:
        return sum([*constants, dot(ctx, last, x.center)], -dot(ctx, last.abs(), x.radius))
    ctx.step = ""
    costs, rest = ctx.constant("costs", lambda: rounding_costs(magnitude(x), 1))
    radius = ctx.constant("radius", lambda: x.radius + costs)
    constants.append(rounded_constant(ctx, last, (radius, rest), x.center))
    terms = torch.stack([constant.double() for constant in constants])
    total = terms.sum(0) - 2 * (len(constants) + 2) * torch.finfo(torch.float64).eps * terms.abs().sum(0)
    return torch.where(total.isfinite(), total, -torch.inf)


def pull_back(
    program: Program, values: list[Any], functional: Functional, ctx: Backward, last: int = 0,
    stops: Collection[int] = (),
) -> tuple[Functional, list[Tensor]]:  # fmt: skip
    """Return a functional of values up to number `last`, and constants [B, K], whose sum bounds another from below.

    stops: numbers of values that are not pulled back further.
    """
    pending, constants = dict(functional), []  # Dynamo cannot trace `list[Tensor]()` on Python 3.11
    for number in range(max(pending), last, -1):
        if number not in pending or number in stops:
            continue
        check()
        step = program.steps[number - 1]
        assert step.record is not None, "its value depends on the input"
        ctx.step, ctx.output = step.name, values[number]
        arguments, options = step.call(values)
        pulled = pull(ctx, step.record, pending.pop(number), arguments, options)
        constants.append(pulled.constant)
        for source, part in zip(step.sources, pulled.coefficients, strict=True):
            if not ctx.sound and isinstance(part, Tensor):
                part = part.to(values[source].center.dtype)  # autocast's products
                check(part)
            if source in pending:
                part = add_coefficients(pending[source], part)
                constants.append(-rounding(ctx, part, values[source]))
            pending[source] = part
    return pending, constants


def in_chunks(rows: int, largest: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of runs of at most `largest` rows, but at least one."""
    largest = max(1, largest)
    return ((start, min(start + largest, rows)) for start in range(0, rows, largest))


def chunked_lower_bound(
    program: Program, values: list[Any], rows: Callable[[int, int], Functional], count: int, at: int, memory: int,
    are_units: bool = False,
) -> Tensor:  # fmt: skip
    """Return the sound `joint_lower_bound` of `count` rows, computed for as many at a time as `memory` bytes hold.

    rows: returns the coefficients [B, stop - start, *shape] of rows start to stop. at: the number of the last value.
    are_units: whether rows are of single neurons.
    """
    each = bytes_per_row(program, values, at, are_units) * len(values[0].center)
    constants: dict[tuple[str, str], Any] = {}
    if not values[0].center.is_cuda:
        memory = min(memory, _COEFFICIENTS_CACHE * torch.get_num_threads())
    bounds = [
        joint_lower_bound(program, values, rows(start, stop), Backward(sound=True, constants=constants))
        for start, stop in in_chunks(count, memory // each)
    ]
    return torch.cat(bounds, dim=1)


def bytes_per_row(program: Program, values: list[Any], at: int, is_unit: bool = False) -> int:
    """Return the most memory that one row of coefficients of one example takes at any step of a backward pass.

    is_unit: whether a row is of a single neuron, so that its coefficients may be windows.
    """
    size = [value.center[0].numel() if isinstance(value, Interval) else 0 for value in values]
    if is_unit:
        size = [int(min(pair)) for pair in zip(size, window_sizes(program, values, at), strict=True)]
    pending, largest = {at}, size[at]
    for number in range(at, 0, -1):
        if number in pending:
            sources = program.steps[number - 1].sources
            working = _WORKING_COPIES * (size[number] + sum(size[source] for source in sources))
            largest = max(largest, sum(size[value] for value in pending) + working)
            pending = (pending - {number}) | set(sources)
    return largest * values[0].center.element_size()
