"""The bounds: one record each, cheapest first, in BOUNDS. A new one is one record here and its function."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.backward import Functional, chunked_lower_bound, in_chunks, linear_lower_bound
from cerdeq.bounds.forward import output_of, propagate, values_of
from cerdeq.bounds.graph import Program
from cerdeq.bounds.interval import Context, Interval, PrecisionError
from cerdeq.bounds.linear import Backward
from cerdeq.bounds.memory import SEARCH_COPIES, bytes_per_example, default_memory, examples_at_once, without_overrun
from cerdeq.bounds.narrow import rounded, rounded_outwards, within
from cerdeq.bounds.optimise import examples_of, optimised_slopes
from cerdeq.bounds.precision import counted_rounding
from cerdeq.bounds.tighten import tightened_values
from cerdeq.boxes import outward_ends

_CLOSE = 0.1  # to the target, in units of how far the example was from it before its boxes were tightened

Ends = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Question:
    """What a bound is asked, of some examples.

    program: the network.
    values: of a sound forward pass; the first is the input's Interval [B, ...].
    spec: [B, K, N], K linear functions of the N outputs.
    target: an example whose bounds are all above it needs no better ones; None where all are wanted.
    memory: about how many bytes to use.
    narrow: the program in float32, of `in_float32`, for what needs no float64; None where there is none.
    """

    program: Program
    values: list[Any]
    spec: Tensor
    target: float | None
    memory: int
    narrow: Program | None = None

    def waiting(self, lower: Tensor) -> Tensor:
        """The numbers of the examples whose bounds [B, K] are not all above the target."""
        examples = torch.arange(len(lower), device=lower.device)
        return examples if self.target is None else examples[~(lower > self.target).all(1)]

    def of(self, examples: Tensor, rows: Tensor | slice = slice(None)) -> "Question":
        """The same of some examples, and of some rows of each."""
        values = examples_of(self.program, self.values, examples)
        chosen = self.spec[examples] if isinstance(rows, slice) else self.spec[examples[:, None], rows]
        return replace(self, values=values, spec=chosen)

    def raised(self, lower: Tensor, bound: Callable[["Question"], Tensor]) -> Tensor:
        """`lower` [B, K], raised by `bound` where it is not above the target."""
        if self.target is None:
            return larger(lower, bound(self))
        waiting = ~(lower > self.target)
        counts = waiting.sum(1).cpu()
        for count in counts[counts > 0].unique().tolist():  # examples with as many rows that wait, together
            examples = (counts == count).nonzero()[:, 0].to(lower.device, non_blocking=True)
            rows = waiting[examples].int().argsort(dim=1, descending=True, stable=True)[:, :count]
            place = examples[:, None], rows
            lower[place] = larger(lower[place], bound(self.of(examples, rows)))
        return lower


@dataclass(frozen=True)
class Bound:
    """One way to bound a network.

    name: what users call it.
    linear: whether it needs backward rules.
    lower: Question -> sound lower bounds [B, K], at least those of every bound before it in BOUNDS.
    ends: what `both_ends` gives, where that is not made from `lower`.
    """

    name: str
    linear: bool
    lower: Callable[[Question], Tensor]
    ends: Callable[[Program, Interval, Tensor | None], Ends] | None = None


def bound_named(name: str) -> Bound:
    """The record of this name. Raises ValueError where there is none."""
    if name not in BOUNDS:
        raise ValueError(f"unknown method {name!r}; methods: {', '.join(BOUNDS)}")
    return BOUNDS[name]


def lower_bounds(
    program: Program, x: Interval, spec: Tensor, method: str, target: float | None = None, memory: int | None = None,
    narrow: Program | None = None,
) -> Tensor:  # fmt: skip
    """Sound lower bounds [B, K] of `spec` [B, K, N] of the outputs [B, N], over the boxes x [B, ...].

    Each method's are at least those of every method before it in BOUNDS. target: what is above it is left alone, with
    the bound it has. memory: about how many bytes to use; by default 512 MiB on a CPU and half of what this process may
    have of a GPU. narrow: `in_float32` of the model of a float64 program: what that shows to be above the target is
    left at that, and the rest has its boxes and slopes from there, its proof from float64. Raises ValueError for an
    unknown method.
    """
    record = bound_named(method)
    if 0 in spec.shape[:2]:
        return spec.new_zeros(spec.shape[:2])
    memory = memory or default_memory(x.center.device)
    with torch.inference_mode(False), torch.no_grad(), counted_rounding(x.center.device.type):
        x, spec = Interval(x.center.clone(), x.radius.clone()), spec.clone()  # made in inference mode, maybe
        if narrow is None or target is None or not torch.equal(spec.float().to(spec), spec):
            return _in_parts(record, program, x, spec, target, memory, None)
        cheap = min(record, BOUNDS["crown-ibp"], key=list(BOUNDS.values()).index)
        try:
            lower = _in_parts(cheap, narrow, rounded_outwards(x), spec.float(), target, memory, None).to(x.center)
        except PrecisionError:
            return _in_parts(record, program, x, spec, target, memory, None)
        waiting = (~(lower > target).all(1)).nonzero()[:, 0]
        if len(waiting):
            lower[waiting] = _in_parts(record, program, x.of(waiting), spec[waiting], target, memory, narrow)
        return lower


def _in_parts(
    record: Bound, program: Program, x: Interval, spec: Tensor, target: float | None, memory: int,
    narrow: Program | None,
) -> Tensor:  # fmt: skip
    """`lower_bounds`, so many examples at a time as the memory holds."""

    def lower(start: int, stop: int, memory: int) -> Tensor:
        values = values_of(program, x.of(slice(start, stop)), Context(sound=True))
        return record.lower(Question(program, values, spec[start:stop], target, memory, narrow))

    parts = in_chunks(len(x.center), examples_at_once(program, x, spec.shape[1], memory))
    return torch.cat([without_overrun(lower, *part, memory) for part in parts])


def both_ends(program: Program, x: Interval, spec: Tensor | None, method: str) -> Ends:
    """Sound lower and upper bounds of `spec` [B, K, N] of the outputs, or of the outputs themselves, over the boxes x.

    Raises ValueError for an unknown method.
    """
    record = bound_named(method)
    if record.ends is not None:
        return record.ends(program, x, spec)
    lower, upper = _interval_ends_in_batches(program, x, spec)
    if spec is None:
        outputs = lower.shape[1:].numel()
        spec = torch.eye(outputs).to(lower).expand(len(lower), -1, -1)
    rows = torch.cat([spec, -spec], dim=1).to(lower)
    below, above = lower_bounds(program, x, rows, method).chunk(2, dim=1)
    return torch.fmax(below.view_as(lower), lower), torch.fmin(-above.view_as(upper), upper)


def _interval_ends(program: Program, x: Interval, spec: Tensor | None) -> Ends:
    """By IBP, the whole batch at once; differentiable."""
    return outward_ends(propagate(program, x, Context(sound=True), spec).box)


@torch.no_grad()
def _interval_ends_in_batches(program: Program, x: Interval, spec: Tensor | None) -> Ends:
    if not len(x.center):
        return _interval_ends(program, x, spec)
    parts = in_chunks(len(x.center), examples_at_once(program, x, 1, default_memory(x.center.device)))
    ends = [_interval_ends(program, x.of(slice(*part)), None if spec is None else spec[slice(*part)]) for part in parts]
    lower, upper = zip(*ends, strict=True)
    return torch.cat(lower), torch.cat(upper)


def _ibp(asked: Question) -> Tensor:
    lower, _ = outward_ends(output_of(asked.program, asked.values, Context(sound=True), asked.spec).box)
    return lower


def _crown_ibp(asked: Question) -> Tensor:
    return asked.raised(_ibp(asked), linear)


def _crown(asked: Question) -> Tensor:
    return _over_tighter_boxes(asked, _crown_ibp(asked), lambda tight, lower: lower)


def _alpha_crown(asked: Question) -> Tensor:
    lower = _crown_ibp(asked)
    if asked.target is not None:  # slopes cost less than boxes, and often do
        lower = asked.raised(lower, _with_optimised_slopes)
    return _over_tighter_boxes(asked, lower, lambda tight, lower: tight.raised(lower, _with_optimised_slopes))


def _over_tighter_boxes(asked: Question, lower: Tensor, better: Callable[[Question, Tensor], Tensor]) -> Tensor:
    """`lower`, where examples wait raised by CROWN over boxes that CROWN has tightened, and what is `better` there.

    Float32 finds the boxes if it may; where that leaves an example close to the target, float64 does after all.
    """
    waiting, before = asked.waiting(lower), lower.clone()
    if asked.narrow is not None and asked.target is not None and len(waiting):
        lower = _raised_over(asked, lower, better, waiting, asked.narrow)
        missing = asked.target - lower.amin(1) <= _CLOSE * (asked.target - before.amin(1))
        waiting = asked.waiting(lower)
        waiting = waiting[missing[waiting]]
    return _raised_over(asked, lower, better, waiting, asked.program) if len(waiting) else lower


def _raised_over(
    asked: Question, lower: Tensor, better: Callable[[Question, Tensor], Tensor], waiting: Tensor, program: Program
) -> Tensor:
    """`lower`, raised in the examples that wait over the boxes that `program` gives."""
    tight = tightened(asked.of(waiting), program)
    lower[waiting] = better(tight, tight.raised(larger(lower[waiting], _ibp(tight)), linear))
    return lower


def tightened(asked: Question, program: Program) -> Question:
    """The question over boxes that CROWN has tightened, with the asked program or its narrow one."""
    if program is not asked.narrow:
        return replace(asked, values=tightened_values(program, asked.values[0], asked.memory))
    boxes = tightened_values(program, rounded_outwards(asked.values[0]), asked.memory)
    return replace(asked, values=within(asked.program, asked.values, boxes))


def linear(asked: Question) -> Tensor:
    """Linear bounds over the boxes of `asked.values`, in float64."""
    output = asked.program.output
    shape = asked.values[output].center.shape[1:]

    def rows(start: int, stop: int) -> Functional:
        return {output: asked.spec[:, start:stop].unflatten(2, shape)}

    return chunked_lower_bound(asked.program, asked.values, rows, asked.spec.shape[1], output, asked.memory)


def _with_optimised_slopes(asked: Question) -> Tensor:
    """Linear bounds with optimised slopes, [B, K] in float64; the search is in float32 if it may."""
    program, spec = asked.program, asked.spec
    searched = program if asked.narrow is None else asked.narrow
    shape = asked.values[program.output].center.shape[1:]
    optimised = torch.full(spec.shape[:2], -torch.inf, dtype=torch.float64, device=spec.device)
    at_once = max(1, asked.memory // (SEARCH_COPIES * bytes_per_example(asked.values)))
    for start, stop in in_chunks(len(spec), at_once // spec.shape[1]):
        examples = torch.arange(start, stop, device=spec.device)
        part = examples_of(program, asked.values, examples)
        known = part if searched is program else rounded(searched, part)
        for first, last in in_chunks(spec.shape[1], at_once // len(examples)):
            chosen = spec[examples, first:last].unflatten(2, shape)
            slopes = optimised_slopes(searched, known, chosen.to(known[0].center), asked.target)
            proof = Backward(sound=True, slopes={name: share.to(spec) for name, share in slopes.items()})
            optimised[examples, first:last] = linear_lower_bound(program, part, chosen, program.output, proof)
    return optimised


def larger(lower: Tensor, other: Tensor) -> Tensor:
    """The larger of two lower bounds in the first one's precision, -inf for what is not a number."""
    limits = torch.finfo(lower.dtype)
    if other.dtype != lower.dtype:
        other = (other - 2 * limits.eps * other.abs() - limits.tiny).clamp(max=limits.max).to(lower)
    return torch.maximum(lower.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf), other)


BOUNDS = {
    record.name: record
    for record in (
        Bound("ibp", linear=False, lower=_ibp, ends=_interval_ends),
        Bound("crown-ibp", linear=True, lower=_crown_ibp),
        Bound("crown", linear=True, lower=_crown),
        Bound("alpha-crown", linear=True, lower=_alpha_crown),
    )
}
