"""CROWN: linear lower bounds, over the boxes of IBP or over boxes that CROWN itself tightens (Zhang et al. 2018)."""

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from cerdeq.bounds.backward import Functional, chunked_lower_bound
from cerdeq.bounds.float32 import cut_by_float32, float32_box_around
from cerdeq.bounds.ibp import ibp
from cerdeq.bounds.query import Query, larger
from cerdeq.bounds.tighten import tighten_boxes
from cerdeq.tracing.program import Program

_CLOSE = 0.1  # to the target, in units of how far the example was from it before its boxes were tightened


def crown_ibp(query: Query) -> Tensor:
    """Return linear bounds over the boxes of IBP, or those of IBP where they are better."""
    return query.raise_bounds(ibp(query), linear_bounds)


def crown(query: Query) -> Tensor:
    """Return linear bounds over boxes that CROWN has tightened, or those of `crown_ibp` where they are better."""
    return over_tighter_boxes(query, crown_ibp(query), lambda tight, lower: lower)


def over_tighter_boxes(query: Query, lower: Tensor, improve: Callable[[Query, Tensor], Tensor]) -> Tensor:
    """Raise `lower` of undecided examples: by CROWN over boxes that CROWN has tightened, then by `improve`.

    Float32 finds the boxes if it may. If that leaves an example close to the target, float64 finds them again.
    """
    undecided, before = query.undecided(lower), lower.clone()
    if query.float32 is not None and query.target is not None and len(undecided):
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
