"""The methods, cheapest first; each keeps what the cheaper ones before it found."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.backward import Functional, bytes_per_row, chunked_lower_bound, in_chunks, linear_lower_bound
from cerdeq.bounds.forward import output_of, propagate, values_of
from cerdeq.bounds.graph import Program
from cerdeq.bounds.interval import Context, Interval
from cerdeq.bounds.linear import Backward
from cerdeq.bounds.operators import UnsupportedOperator
from cerdeq.bounds.optimise import examples_of, optimised_slopes
from cerdeq.bounds.precision import counted_rounding
from cerdeq.bounds.tighten import tightened_values
from cerdeq.boxes import outward_ends

METHODS = ("ibp", "crown-ibp", "crown", "alpha-crown")
_CPU_MEMORY, _LEAST_MEMORY = 2**29, 2**20
_VALUE_COPIES = 8  # of the values of a forward pass: boxes before and after tightening, and what a rule works with
_SEARCH_COPIES = 12  # of a backward pass, when it is differentiated


def lower_bounds(
    program: Program, x: Interval, spec: Tensor, method: str, target: float | None = None, memory: int | None = None
) -> Tensor:
    """Sound lower bounds [B, K] of `spec` [B, K, N] of the outputs [B, N], over the boxes x [B, ...].

    Each method's are at least those of every method before it in METHODS. target: an example is left alone, with the
    bounds it has, as soon as all are above it. memory: about how many bytes to use; by default 512 MiB on a CPU and
    half the memory of a GPU.
    """
    if 0 in spec.shape[:2]:
        return spec.new_zeros(spec.shape[:2])
    memory = memory or _memory(x.center.device)
    with torch.inference_mode(False), torch.no_grad(), counted_rounding(x.center.device.type):
        x, spec = Interval(x.center.clone(), x.radius.clone()), spec.clone()  # made in inference mode, maybe

        def bounds(start: int, stop: int, memory: int) -> Tensor:
            return _lower_bounds(program, x.of(slice(start, stop)), spec[start:stop], method, target, memory)

        parts = in_chunks(len(x.center), _examples_at_once(program, x, spec.shape[1], memory))
        return torch.cat([_without_overrun(bounds, *each, memory) for each in parts])


@torch.no_grad()
def interval_ends(program: Program, x: Interval, spec: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sound IBP bounds of the outputs, or of `spec` [B, K, N] of them, so many examples at a time as memory holds."""
    if not len(x.center):
        return outward_ends(propagate(program, x, Context(sound=True), spec).box)
    parts = in_chunks(len(x.center), _examples_at_once(program, x, 1, _memory(x.center.device)))
    ends = []
    for start, stop in parts:
        chosen = None if spec is None else spec[start:stop]
        ends.append(outward_ends(propagate(program, x.of(slice(start, stop)), Context(sound=True), chosen).box))
    lower, upper = zip(*ends, strict=True)
    return torch.cat(lower), torch.cat(upper)


def _examples_at_once(program: Program, x: Interval, rows: int, memory: int) -> int:
    """How many examples fit the memory, with so many rows of coefficients each.

    Raises UnsupportedOperator where a step of the program mixes a batch's examples.
    """
    with counted_rounding(x.center.device.type):
        probe = values_of(program, _twice(x), Context(sound=True))
    _refuse_mixed_examples(program, probe)
    return memory // (_VALUE_COPIES * _bytes(probe) + rows * bytes_per_row(program, probe, program.output))


def _without_overrun(bounds: Callable[[int, int, int], Tensor], start: int, stop: int, memory: int) -> Tensor:
    """`bounds` of examples start to stop; where a GPU runs out of memory all the same, by halves."""
    try:
        return bounds(start, stop, memory)
    except torch.OutOfMemoryError:
        if memory < _LEAST_MEMORY:
            raise
    middle = (start + stop + 1) // 2
    parts = [(start, middle), (middle, stop)] if middle < stop else [(start, stop)]
    return torch.cat([_without_overrun(bounds, *part, memory // 2) for part in parts])


def _twice(x: Interval) -> Interval:
    """The first example, two times."""
    return Interval(*(end[:1].expand(2, *end.shape[1:]) for end in (x.center, x.radius)))


def _refuse_mixed_examples(program: Program, values: list[Any]) -> None:
    """Raise UnsupportedOperator where a step does not treat the examples of a batch one by one.

    values: of a pass over two examples. Arguments that broadcast are aligned from the last dimension, so that the
    batch stays the first one only where none has more dimensions than another.
    """
    if values[program.output].center.dim() < 2:
        raise UnsupportedOperator("linear bounds want outputs [B, N], found one number an example, [B]")
    for step, value in zip(program.steps, values[1:], strict=True):
        if step.record is None:
            continue
        dimensions = {values[source].center.dim() for source in step.sources}
        aligned = not step.record.broadcasts or dimensions == {value.center.dim()}
        if len(value.center) != 2 or not aligned:
            raise UnsupportedOperator(f"{step.record.name} at node '{step.name}'{step.line} mixes a batch's examples")


def _bytes(values: list[Any]) -> int:
    """Bytes of the centres of all values of a forward pass, for each example."""
    boxes = [value for value in values if isinstance(value, Interval)]
    return sum(box.center.nbytes // len(box.center) for box in boxes)


def _memory(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).total_memory // 2 if device.type == "cuda" else _CPU_MEMORY


def _lower_bounds(
    program: Program, x: Interval, spec: Tensor, method: str, target: float | None, memory: int
) -> Tensor:
    values = values_of(program, x, Context(sound=True))
    lower = _interval_bound(program, values, spec)
    if method == "ibp":
        return lower
    lower = _larger(lower, _crown(program, values, spec, memory))
    if method == "crown-ibp":
        return lower
    if method == "alpha-crown" and target is not None:  # slopes cost less than boxes, and often do
        lower = _larger(lower, _alpha_crown(program, values, spec, lower, target, memory))
    waiting = _waiting(lower, target)
    if len(waiting):
        part, rows = x.of(waiting), spec[waiting]
        lower[waiting] = _over_tighter_boxes(program, part, rows, lower[waiting], method, target, memory)
    return lower


def _over_tighter_boxes(
    program: Program, x: Interval, spec: Tensor, lower: Tensor, method: str, target: float | None, memory: int
) -> Tensor:
    """`lower`, or better by CROWN or alpha-CROWN over boxes that CROWN has tightened."""
    values = tightened_values(program, x, memory)
    lower = _larger(lower, _interval_bound(program, values, spec))
    lower = _larger(lower, _crown(program, values, spec, memory))
    return lower if method == "crown" else _larger(lower, _alpha_crown(program, values, spec, lower, target, memory))


def _waiting(lower: Tensor, target: float | None) -> Tensor:
    """The examples whose bounds are not all above the target; without one, all."""
    examples = torch.arange(len(lower), device=lower.device)
    return examples if target is None else examples[~(lower > target).all(1)]


def _interval_bound(program: Program, values: list[Any], spec: Tensor) -> Tensor:
    lower, _ = outward_ends(output_of(program, values, Context(sound=True), spec).box)
    return lower


def _crown(program: Program, values: list[Any], spec: Tensor, memory: int) -> Tensor:
    shape = values[program.output].center.shape[1:]

    def rows(start: int, stop: int) -> Functional:
        return {program.output: spec[:, start:stop].unflatten(2, shape)}

    return chunked_lower_bound(program, values, rows, spec.shape[1], program.output, memory)


def _alpha_crown(
    program: Program, values: list[Any], spec: Tensor, lower: Tensor, target: float | None, memory: int
) -> Tensor:
    """Bounds by optimised slopes of the examples that `lower` does not put above the target; -inf of the others."""
    shape = values[program.output].center.shape[1:]
    waiting = _waiting(lower, target)
    found = torch.full_like(lower, -torch.inf, dtype=torch.float64)
    rows = max(1, memory // (_SEARCH_COPIES * _bytes(values)))
    for start, stop in in_chunks(len(waiting), rows // spec.shape[1]):
        examples = waiting[start:stop]
        part = examples_of(program, values, examples)
        for first, last in in_chunks(spec.shape[1], rows // len(examples)):
            chosen = spec[examples, first:last].unflatten(2, shape)
            slopes = optimised_slopes(program, part, chosen, target)
            proof = Backward(sound=True, slopes=slopes)
            found[examples, first:last] = linear_lower_bound(program, part, chosen, program.output, proof)
    return found


def _larger(lower: Tensor, found: Tensor) -> Tensor:
    """The larger of two lower bounds in the first one's precision, -inf for what is not a number."""
    limits = torch.finfo(lower.dtype)
    if found.dtype != lower.dtype:
        found = (found - 2 * limits.eps * found.abs() - limits.tiny).clamp(max=limits.max).to(lower)
    return torch.maximum(lower.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf), found)
