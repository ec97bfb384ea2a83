"""The methods: one record each, cheapest first, in BOUNDS. A new one is one record here and its function."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cerdeq.bounds.alpha_crown import alpha_crown
from cerdeq.bounds.batch_sizes import default_memory, examples_at_once, without_overrun
from cerdeq.bounds.crown import crown, crown_ibp
from cerdeq.bounds.crown_pass import in_chunks
from cerdeq.bounds.float32 import float32_box_around, has_fast_float64
from cerdeq.bounds.ibp import ibp, propagate, values_of
from cerdeq.bounds.query import Query, larger
from cerdeq.boxes import outward_ends
from cerdeq.operators.interval import Context, Interval, PrecisionError
from cerdeq.precision import counted_rounding
from cerdeq.tracing.precisions import in_float64
from cerdeq.tracing.program import Program

Ends = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Bound:
    """One way to bound a network.

    name: what users call it.
    linear: whether it needs backward rules.
    lower: Query -> sound lower bounds [B, K], at least those of every bound before it in BOUNDS. Called within
        `counted_rounding`, as `lower_bounds` does.
    """

    name: str
    linear: bool
    lower: Callable[[Query], Tensor]


def bound_named(name: str) -> Bound:
    """Return the record of this name. Raises ValueError if there is none."""
    if name not in BOUNDS:
        raise ValueError(f"unknown method {name!r}; methods: {', '.join(BOUNDS)}")
    return BOUNDS[name]


def lower_bounds(
    program: Program, x: Interval, spec: Tensor, method: str, target: float | None = None, memory: int | None = None,
    float32: Program | None = None,
) -> Tensor:  # fmt: skip
    """Return sound lower bounds [B, K] of `spec` [B, K, N] of the outputs [B, N], over the boxes x [B, ...].

    Each method's bounds are at least those of every method before it in BOUNDS.

    Args:
        target: bounds above it are not improved.
        memory: about how many bytes to use; by default 512 MiB on a CPU, half of this process's share of a GPU.
        float32: `in_float32` of the model of a float64 program. An example that it proves to be above the target is
            done. For the others it finds boxes and slopes, and float64 proves the bounds.

    Raises:
        ValueError: for an unknown method.
    """
    record = bound_named(method)
    if 0 in spec.shape[:2]:
        return spec.new_zeros(spec.shape[:2])
    memory = memory or default_memory(x.center.device)
    with torch.inference_mode(False), torch.no_grad(), counted_rounding(x.center.device.type):
        x, spec = Interval(x.center.clone(), x.radius.clone()), spec.clone()  # the caller's may be of inference mode
        if float32 is None or target is None or not torch.equal(spec.float().to(spec), spec):
            return _in_parts(record, program, x, spec, target, memory)
        cheap = BOUNDS["crown-ibp"] if record.linear else record
        try:
            lower = _in_parts(cheap, float32, float32_box_around(x), spec.float(), target, memory).to(x.center)
        except PrecisionError:
            return _in_parts(record, program, x, spec, target, memory)
        undecided = (~(lower > target).all(1)).nonzero()[:, 0]
        if len(undecided):
            lower[undecided] = _in_parts(record, program, x.of(undecided), spec[undecided], target, memory, float32)
        return lower


def _in_parts(
    record: Bound, program: Program, x: Interval, spec: Tensor, target: float | None, memory: int,
    float32: Program | None = None,
) -> Tensor:  # fmt: skip
    """Return `lower_bounds`, computed for as many examples at a time as the memory holds."""

    def lower(start: int, stop: int, memory: int) -> Tensor:
        values = values_of(program, x.of(slice(start, stop)), Context(sound=True))
        return record.lower(Query(program, values, spec[start:stop], target, memory, float32))

    parts = in_chunks(len(x.center), examples_at_once(program, x, spec.shape[1], memory))
    return torch.cat([without_overrun(lower, *part, memory) for part in parts])


def both_ends(program: Program, x: Interval, spec: Tensor | None, method: str) -> Ends:
    """Return sound lower and upper bounds of `spec` [B, K, N] of the outputs, or of the outputs, over the boxes x.

    Linear bounds are computed in float64 where it is fast, whatever the precision of x, unless the model's forward
    computes constants in the input's dtype. Raises ValueError for an unknown method.
    """
    if not bound_named(method).linear:
        return _interval_ends(program, x, spec)  # differentiable, all examples at once
    try_float64 = x.center.dtype != torch.float64 and len(x.center) > 0 and has_fast_float64(x.center.device)
    exact = in_float64(program, x.center[:1]) if try_float64 else None
    if exact is None:
        return _linear_ends(program, x, spec, method)
    lower, upper = _interval_ends_in_parts(program, x, spec)
    below, above = _linear_ends(exact, x.to(torch.float64), None if spec is None else spec.double(), method)
    return larger(lower, below), -larger(-upper, -above)


def _linear_ends(program: Program, x: Interval, spec: Tensor | None, method: str) -> Ends:
    rows = spec
    if rows is None:
        lower, upper = _interval_ends_in_parts(program, x, None)
        rows = torch.eye(lower.shape[1:].numel()).to(lower).expand(len(lower), -1, -1)
    below, above = lower_bounds(program, x, torch.cat([rows, -rows], dim=1).to(x.center), method).chunk(2, dim=1)
    if spec is not None:
        return below, -above
    return torch.fmax(below.view_as(lower), lower), torch.fmin(-above.view_as(upper), upper)


@torch.no_grad()
def _interval_ends_in_parts(program: Program, x: Interval, spec: Tensor | None) -> Ends:
    """Return `_interval_ends`, computed for as many examples at a time as the memory holds."""
    memory, rows = default_memory(x.center.device), 1 if spec is None else spec.shape[1]
    parts = in_chunks(len(x.center), examples_at_once(program, x, rows, memory)) if len(x.center) else [(0, 0)]
    ends = [_interval_ends(program, x.of(slice(*part)), None if spec is None else spec[slice(*part)]) for part in parts]
    lower, upper = map(torch.cat, zip(*ends, strict=True))
    return lower, upper


def _interval_ends(program: Program, x: Interval, spec: Tensor | None) -> Ends:
    return outward_ends(propagate(program, x, Context(sound=True), spec).box)


BOUNDS = {
    record.name: record
    for record in (
        Bound("ibp", linear=False, lower=ibp),
        Bound("crown-ibp", linear=True, lower=crown_ibp),
        Bound("crown", linear=True, lower=crown),
        Bound("alpha-crown", linear=True, lower=alpha_crown),
    )
}
