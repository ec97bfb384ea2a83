"""The bounds: one record each, cheapest first, in BOUNDS. A new one is one record here and its function."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.backward import Functional, chunked_lower_bound, in_chunks, linear_lower_bound
from cerdeq.bounds.float32 import cast_to_float32, cut_by_float32, float32_box_around
from cerdeq.bounds.forward import output_of, propagate, values_of
from cerdeq.bounds.graph import Program
from cerdeq.bounds.memory import SEARCH_COPIES, bytes_per_example, default_memory, examples_at_once, without_overrun
from cerdeq.bounds.optimise import examples_of, optimise_slopes
from cerdeq.bounds.tighten import tighten_boxes
from cerdeq.boxes import outward_ends
from cerdeq.operators.backward import Backward
from cerdeq.operators.interval import Context, Interval, PrecisionError
from cerdeq.precision import counted_rounding

_CLOSE = 0.1  # to the target, in units of how far the example was from it before its boxes were tightened

Ends = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Question:
    """The question that a bound answers, for some examples.

    program: the network.
    values: of a sound forward pass; the first is the input's Interval [B, ...].
    spec: [B, K, N], K linear functions of the N outputs.
    target: an example whose bounds are all above it needs no better ones; None if every example does.
    memory: about how many bytes to use.
    float32: the program in float32, of `in_float32`, for what needs no float64; None if there is none.
    """

    program: Program
    values: list[Any]
    spec: Tensor
    target: float | None
    memory: int
    float32: Program | None = None

    def undecided(self, lower: Tensor) -> Tensor:
        """Return the numbers of the examples whose bounds [B, K] are not all above the target."""
        examples = torch.arange(len(lower), device=lower.device)
        return examples if self.target is None else examples[~(lower > self.target).all(1)]

    def of(self, examples: Tensor, rows: Tensor | slice = slice(None)) -> "Question":
        """Return the question for some examples, and for some rows of each."""
        values = examples_of(self.program, self.values, examples)
        spec = self.spec[examples] if isinstance(rows, slice) else self.spec[examples[:, None], rows]
        return replace(self, values=values, spec=spec)

    def raise_bounds(self, lower: Tensor, bound: Callable[["Question"], Tensor]) -> Tensor:
        """Return `lower` [B, K], raised by `bound` where it is not above the target."""
        if self.target is None:
            return larger(lower, bound(self))
        is_undecided = ~(lower > self.target)
        counts = is_undecided.sum(1).cpu()
        for count in counts[counts > 0].unique().tolist():  # examples with equally many undecided rows, together
            examples = (counts == count).nonzero()[:, 0].to(lower.device, non_blocking=True)
            rows = is_undecided[examples].int().argsort(dim=1, descending=True, stable=True)[:, :count]
            index = examples[:, None], rows
            lower[index] = larger(lower[index], bound(self.of(examples, rows)))
        return lower


@dataclass(frozen=True)
class Bound:
    """One way to bound a network.

    name: what users call it.
    linear: whether it needs backward rules.
    lower: Question -> sound lower bounds [B, K], at least those of every bound before it in BOUNDS. Called within
        `counted_rounding`, as `lower_bounds` does.
    ends: what `both_ends` returns, if that is not made from `lower`.
    """

    name: str
    linear: bool
    lower: Callable[[Question], Tensor]
    ends: Callable[[Program, Interval, Tensor | None], Ends] | None = None


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
        cheap = min(record, BOUNDS["crown-ibp"], key=list(BOUNDS.values()).index)
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
        return record.lower(Question(program, values, spec[start:stop], target, memory, float32))

    parts = in_chunks(len(x.center), examples_at_once(program, x, spec.shape[1], memory))
    return torch.cat([without_overrun(lower, *part, memory) for part in parts])


def both_ends(program: Program, x: Interval, spec: Tensor | None, method: str) -> Ends:
    """Return sound lower and upper bounds of `spec` [B, K, N] of the outputs, or of the outputs, over the boxes x.

    Raises ValueError for an unknown method.
    """
    record = bound_named(method)
    if record.ends is not None:
        return record.ends(program, x, spec)
    if spec is not None:
        below, above = lower_bounds(program, x, torch.cat([spec, -spec], dim=1).to(x.center), method).chunk(2, dim=1)
        return below, -above
    lower, upper = _interval_ends_in_batches(program, x)
    spec = torch.eye(lower.shape[1:].numel()).to(lower).expand(len(lower), -1, -1)
    below, above = lower_bounds(program, x, torch.cat([spec, -spec], dim=1), method).chunk(2, dim=1)
    return torch.fmax(below.view_as(lower), lower), torch.fmin(-above.view_as(upper), upper)


def _interval_ends(program: Program, x: Interval, spec: Tensor | None = None) -> Ends:
    """Return both ends by IBP, differentiable, all examples at once."""
    return outward_ends(propagate(program, x, Context(sound=True), spec).box)


@torch.no_grad()
def _interval_ends_in_batches(program: Program, x: Interval) -> Ends:
    if not len(x.center):
        return _interval_ends(program, x)
    parts = in_chunks(len(x.center), examples_at_once(program, x, 1, default_memory(x.center.device)))
    ends = [_interval_ends(program, x.of(slice(*part))) for part in parts]
    lower, upper = zip(*ends, strict=True)
    return torch.cat(lower), torch.cat(upper)


def _ibp(question: Question) -> Tensor:
    lower, _ = outward_ends(output_of(question.program, question.values, Context(sound=True), question.spec).box)
    return lower


def _crown_ibp(question: Question) -> Tensor:
    return question.raise_bounds(_ibp(question), linear)


def _crown(question: Question) -> Tensor:
    return _over_tighter_boxes(question, _crown_ibp(question), lambda tight, lower: lower)


def _alpha_crown(question: Question) -> Tensor:
    lower = _crown_ibp(question)
    if question.target is not None:  # slopes cost less than boxes, and are often enough
        lower = question.raise_bounds(lower, _with_optimised_slopes)
    return _over_tighter_boxes(question, lower, lambda tight, lower: tight.raise_bounds(lower, _with_optimised_slopes))


def _over_tighter_boxes(question: Question, lower: Tensor, improve: Callable[[Question, Tensor], Tensor]) -> Tensor:
    """Raise `lower` of undecided examples: by CROWN over boxes that CROWN has tightened, then by `improve`.

    Float32 finds the boxes if it may. If that leaves an example close to the target, float64 finds them again.
    """
    undecided, before = question.undecided(lower), lower.clone()
    if question.float32 is not None and question.target is not None and len(undecided):
        lower = _raised_over(question, lower, improve, undecided, question.float32)
        is_close = question.target - lower.amin(1) <= _CLOSE * (question.target - before.amin(1))
        undecided = question.undecided(lower)
        undecided = undecided[is_close[undecided]]
    return _raised_over(question, lower, improve, undecided, question.program) if len(undecided) else lower


def _raised_over(
    question: Question, lower: Tensor, improve: Callable[[Question, Tensor], Tensor], examples: Tensor, program: Program
) -> Tensor:
    """Raise `lower` of these examples over the boxes that `program` tightens."""
    tight = tighten(question.of(examples), program)
    lower[examples] = improve(tight, tight.raise_bounds(larger(lower[examples], _ibp(tight)), linear))
    return lower


def tighten(question: Question, program: Program) -> Question:
    """Return the question over boxes that CROWN has tightened, by the question's program or by its float32 one."""
    if program is not question.float32:
        return replace(question, values=tighten_boxes(program, question.values[0], question.memory))
    boxes = tighten_boxes(program, float32_box_around(question.values[0]), question.memory)
    return replace(question, values=cut_by_float32(question.program, question.values, boxes))


def linear(question: Question) -> Tensor:
    """Return linear bounds over the boxes of `question.values`, in float64."""
    output = question.program.output
    shape = question.values[output].center.shape[1:]

    def rows(start: int, stop: int) -> Functional:
        return {output: question.spec[:, start:stop].unflatten(2, shape)}

    count, memory = question.spec.shape[1], question.memory
    return chunked_lower_bound(question.program, question.values, rows, count, output, memory)


def _with_optimised_slopes(question: Question) -> Tensor:
    """Return linear bounds with optimised slopes, [B, K] in float64; the search is in float32 if it may."""
    program, spec = question.program, question.spec
    search_program = program if question.float32 is None else question.float32
    shape = question.values[program.output].center.shape[1:]
    lower = torch.full(spec.shape[:2], -torch.inf, dtype=torch.float64, device=spec.device)
    at_once = max(1, question.memory // (SEARCH_COPIES * bytes_per_example(question.values)))
    for start, stop in in_chunks(len(spec), at_once // spec.shape[1]):
        examples = torch.arange(start, stop, device=spec.device)
        values = examples_of(program, question.values, examples)
        search_values = values if search_program is program else cast_to_float32(search_program, values)
        for first, last in in_chunks(spec.shape[1], at_once // len(examples)):
            rows = spec[examples, first:last].unflatten(2, shape)
            slopes = optimise_slopes(search_program, search_values, rows.to(search_values[0].center), question.target)
            proof = Backward(sound=True, slopes={name: slope.to(spec) for name, slope in slopes.items()})
            lower[examples, first:last] = linear_lower_bound(program, values, rows, program.output, proof)
    return lower


def larger(lower: Tensor, other: Tensor) -> Tensor:
    """Return the larger of two lower bounds in the first one's precision, -inf for what is not a number."""
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
