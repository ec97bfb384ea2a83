"""Bound as many examples at a time as the memory holds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.crown_pass import bytes_per_row
from cerdeq.bounds.ibp import values_of
from cerdeq.errors import UnsupportedOperator, is_out_of_memory
from cerdeq.operators.interval import Context, Interval
from cerdeq.precision import counted_rounding
from cerdeq.tracing.program import Program

SEARCH_COPIES = 12  # of a backward pass, when it is differentiated
_CPU_MEMORY, _SMALLEST_MEMORY = 2**29, 2**20
_FORWARD_CACHE = 2**24  # bytes of values on a CPU in which a forward pass runs a few times faster
_LEAVES_CACHE, _MOST_LEAVES = 2**26, 256  # bytes of the search of leaves on a CPU; leaves that are bounded together
_VALUE_COPIES = 8  # of the values of a forward pass: boxes before and after tightening, and working memory of a rule


def default_memory(device: torch.device) -> int:
    """Return about how many bytes to use: 512 MiB on a CPU, half of this process's share of a GPU."""
    if device.type != "cuda":
        return _CPU_MEMORY
    share = torch.cuda.get_per_process_memory_fraction(device)
    return int(share * torch.cuda.get_device_properties(device).total_memory) // 2


def examples_at_once(program: Program, x: Interval, rows: int, memory: int) -> int:
    """Return how many examples fit the memory, with so many rows of coefficients each.

    Raises UnsupportedOperator if a step of the program mixes a batch's examples.
    """
    with counted_rounding(x.center.device.type):
        twice = x.of(torch.zeros(2, dtype=torch.long, device=x.center.device))
        probe = values_of(program, twice, Context(sound=False))  # for the shapes alone
    if probe[program.output].center.dim() < 2:
        raise UnsupportedOperator("linear bounds need outputs of shape [B, N], found [B]")
    refuse_mixed_examples(program, probe)
    return memory // (_VALUE_COPIES * bytes_per_example(probe) + rows * bytes_per_row(program, probe, program.output))


def examples_in_cache(program: Program, x: Interval) -> int:
    """Return how many examples a forward pass takes at once: on a CPU as many as its cache holds, elsewhere all.

    On a CPU that is a few times faster.
    """
    if x.center.device.type != "cpu" or not len(x.center):
        return max(1, len(x.center))
    with counted_rounding("cpu"):
        probe = values_of(program, x.of(slice(0, 1)), Context(sound=False))  # for the shapes alone
    return max(1, _FORWARD_CACHE // bytes_per_example(probe))


def leaves_at_once(values: list[Any], memory: int) -> int:
    """Return how many leaves of a search to bound together. values: of the search, over one image's box."""
    on_cpu = values[0].center.device.type == "cpu"
    memory = min(memory, _LEAVES_CACHE) if on_cpu else memory
    return max(2, min(_MOST_LEAVES, memory // (SEARCH_COPIES * bytes_per_example(values))))


def without_overrun(bounds: Callable[[int, int, int], Tensor], start: int, stop: int, memory: int) -> Tensor:
    """Return `bounds` of examples start to stop; if a GPU runs out of memory all the same, half of them at a time."""
    try:
        return bounds(start, stop, memory)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or memory < _SMALLEST_MEMORY:
            raise
    middle = (start + stop + 1) // 2
    parts = [(start, middle), (middle, stop)] if middle < stop else [(start, stop)]
    return torch.cat([without_overrun(bounds, *part, memory // 2) for part in parts])


def bytes_per_example(values: list[Any]) -> int:
    """Return the bytes of the centres of all values of a forward pass."""
    boxes = [value for value in values if isinstance(value, Interval)]
    return sum(box.center.nbytes // len(box.center) for box in boxes)


def refuse_mixed_examples(program: Program, values: list[Any]) -> None:
    """Raise UnsupportedOperator if a step does not treat the examples of a batch one by one.

    values: of a pass over at least two examples. Broadcasting aligns arguments from the last dimension. So the batch
    stays the first one only if all have equally many dimensions.
    """
    for step, value in zip(program.steps, values[1:], strict=True):
        if step.record is None:
            continue
        dimensions = {values[source].center.dim() for source in step.sources}
        aligned = not step.record.is_pointwise or dimensions == {value.center.dim()}
        if not value.center.dim() or len(value.center) != len(values[0].center) or not aligned:
            raise UnsupportedOperator(
                f"{step.where} mixes a batch's examples: "
                f"{len(values[0].center)} examples give {list(value.center.shape)}; dimension 0 must stay the batch"
            )
