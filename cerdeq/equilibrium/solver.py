"""Solving z = f(z) by Picard iteration: a fixed count, or to a tolerance with a report of what converged."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Solution:
    """value: the last iterate [B, ...]. Per example [B]: the residual max |f(z) - z| / max |f(z)|, the iterations until
    it met the tolerance, and whether it did. Not converging is a value; raising is the caller's choice."""

    value: Tensor
    residual: Tensor
    iterations: Tensor
    converged: Tensor


def iterate(step: Step, start: Tensor, count: int) -> Tensor:
    """`count` applications of `step`: one graph for the compiler."""
    z = start
    for _ in range(count):
        z = step(z)
    return z


def picard(step: Step, start: Tensor, tolerance: float, limit: int) -> Solution:
    """Apply `step` until every example's residual is at most `tolerance` or has overflowed, or `limit` times."""
    z = start
    iterations = torch.zeros(len(start), dtype=torch.long, device=start.device)
    residual = torch.full((len(start),), torch.inf, dtype=start.dtype, device=start.device)
    for _ in range(limit):
        iterations += ~(residual <= tolerance)
        following = step(z)
        size = following.flatten(1).abs().amax(1) + torch.finfo(z.dtype).tiny
        residual = (following - z).flatten(1).abs().amax(1) / size
        z = following
        if bool(((residual <= tolerance) | ~residual.isfinite()).all()):
            break
    return Solution(z, residual, iterations, residual <= tolerance)
