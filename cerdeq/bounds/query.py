"""A query: what a bound is to prove, of some examples."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cerdeq.operators.interval import Interval
from cerdeq.tracing.program import Program


@dataclass(frozen=True)
class Query:
    """What a bound is to prove, for some examples.

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

    def of(self, examples: Tensor, rows: Tensor | slice = slice(None)) -> "Query":
        """Return the query for some examples, and for some rows of each."""
        values = examples_of(self.program, self.values, examples)
        spec = self.spec[examples] if isinstance(rows, slice) else self.spec[examples[:, None], rows]
        return replace(self, values=values, spec=spec)

    def raise_bounds(self, lower: Tensor, bound: Callable[["Query"], Tensor]) -> Tensor:
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


def examples_of(program: Program, values: list[Any], examples: Tensor) -> list[Any]:
    """Return the values of some examples."""
    return with_boxes(program, values, lambda box, number: box.of(examples))


def larger(lower: Tensor, other: Tensor) -> Tensor:
    """Return the larger of two lower bounds in the first one's precision, -inf for what is not a number."""
    limits = torch.finfo(lower.dtype)
    if other.dtype != lower.dtype:
        other = (other - 2 * limits.eps * other.abs() - limits.tiny).clamp(max=limits.max).to(lower)
    return torch.maximum(lower.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf), other)


def with_boxes(program: Program, values: list[Any], change: Callable[[Interval, int], Interval]) -> list[Any]:
    """Return the values of a pass with every box changed by `change` (the box and its number).

    Values that are not bounded are computed again: they may depend on the batch's size.
    """
    changed: list[Any] = []
    for number, value in enumerate(values):
        bounded = isinstance(value, Interval)
        changed.append(change(value, number) if bounded else program.steps[number - 1].run(changed))
    return changed
