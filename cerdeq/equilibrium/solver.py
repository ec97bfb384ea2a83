"""Solving z = f(z): Picard steps of a fixed count, or Picard or Anderson iteration to a tolerance for each example.

Anderson acceleration (Walker and Ni 2011) steps to the mix of recent images whose residuals cancel best. It is made
safe as in Zhang, O'Donoghue and Boyd (2020): an accelerated iterate is accepted only while its residual is below a
bound that shrinks by a constant factor with each acceptance. Either infinitely many are accepted, and residuals go to
0, or all later steps are Picard's: it converges wherever Picard does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cerdeq.bounds.host import is_host_reading
from cerdeq.equilibrium.recurrence import per_example

_MEMORY = 5
_RIDGE = 100  # in units of the precision, on a Gram matrix of unit diagonal
_GROWTH = 100.0
_DECAY = 0.99


@dataclass(frozen=True)
class Solution:
    """The result of a solve. Not converging is a value; raising is the caller's choice.

    value: the last f(z), [B, ...].
    residual: max |f(z) - z| / max |f(z)| of each example, [B].
    iterations: of each example, [B].
    converged: whether each example's residual met the tolerance, [B].
    """

    value: Tensor
    residual: Tensor
    iterations: Tensor
    converged: Tensor


def picard_steps(step: Callable[[Tensor], Tensor], start: Tensor, count: int) -> Tensor:
    """Return the result of `count` applications of `step`: one graph for the compiler."""
    z = start
    for _ in range(count):
        z = step(z)
    return z


def solve_to_tolerance(
    step: Callable[[Tensor, Tensor], Tensor], start: Tensor, h: Tensor, tolerance: float | Tensor, limit: int,
    solver: str = "picard",
) -> Solution:  # fmt: skip
    """Iterate z [B, ...] = step(z, h [B, ...]) from `start` until each example meets its tolerance (one, or [B]).

    An example also ends when its residual is not finite and there is no way back, or after `limit` iterations. So
    neither its value nor its count depends on the others. It leaves the batch when the host reads next.
    """
    value, residual = start.clone(), start.new_full((len(start),), torch.inf)
    iterations = torch.zeros(len(start), dtype=torch.long, device=start.device)
    tolerance = torch.as_tensor(tolerance, dtype=start.dtype, device=start.device).expand(len(start))
    proposer = SOLVERS[solver](start)
    rows, goal, z = torch.arange(len(start), device=start.device), tolerance, start
    active = torch.ones_like(rows, dtype=torch.bool)
    for count in range(1, limit + 1):
        if len(rows) == 0:
            break
        image = step(z, h)
        difference = image - z
        distance = _size(difference)
        relative = distance / (_size(image) + torch.finfo(image.dtype).tiny)
        z, possible = proposer.propose(image, difference, distance)
        going = active & possible & ~(relative <= goal) & (count < limit)
        ended, active = active & ~going, going
        stay = active.nonzero()[:, 0] if is_host_reading(count, z.device) else None
        if stay is not None and len(stay) == len(rows):
            continue
        value[rows] = torch.where(per_example(ended, z), image, value[rows])
        residual[rows] = torch.where(ended, relative, residual[rows])
        iterations[rows] = torch.where(ended, count, iterations[rows])
        if stay is not None:
            rows, goal, z, h, active = (part[stay] for part in (rows, goal, z, h, active))
            proposer.keep(stay)
    return Solution(value, residual, iterations, residual <= tolerance)


def _size(values: Tensor) -> Tensor:
    """Return the largest magnitude of each example, [B]."""
    return values.flatten(1).abs().amax(1)


class Proposer(Protocol):
    """A method that proposes the next iterates of a batch from those before."""

    def propose(self, image: Tensor, difference: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next iterates [B, ...] after f(z), f(z) - z and its size [B], and which examples have one."""

    def keep(self, stay: Tensor) -> None:
        """Forget all examples but those numbered in `stay`."""


class _Picard:
    """f(z) itself."""

    def __init__(self, start: Tensor):
        pass

    def propose(self, image: Tensor, difference: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        return image, distance.isfinite()

    def keep(self, stay: Tensor) -> None:
        pass


class _Anderson:
    """f(z) less the mix of its last moves whose residuals' moves cancel the residual, in least squares.

    Histories are rings of _MEMORY slots, with one current slot for all examples; `valid` says which slots belong to an
    example's history since it last restarted. If none does, the mix is 0 and the next iterate is f(z).
    """

    def __init__(self, start: Tensor):
        flat = start.flatten(1)
        batch, size = flat.shape
        self.image = flat  # of the last accepted iterate
        self.moves = flat.new_zeros(batch, _MEMORY, size)  # of images
        self.turns = flat.new_zeros(batch, _MEMORY + 1, size)  # moves of f(z) - z; in the last row f(z) - z
        self.valid = torch.zeros(batch, _MEMORY, dtype=torch.bool, device=start.device)
        self.linked = self.valid[:, 0].clone()
        self.accelerated = self.linked
        self.bound = flat.new_full((batch,), torch.inf)
        self.slot = 0

    def propose(self, image: Tensor, difference: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        accepted = ~self.accelerated | (distance <= self.bound)
        self._remember(accepted, image.flatten(1), difference.flatten(1))
        tighter = torch.minimum(_DECAY * self.bound, _GROWTH * distance)
        self.bound = torch.where(accepted & (self.accelerated | self.bound.isinf()), tighter, self.bound)
        self.accelerated = self.valid.any(1)
        mixed = torch.baddbmm(self.image[:, None], self._mix(), self.moves, alpha=-1)
        return mixed.view_as(image), distance.isfinite() | ~accepted

    def _remember(self, accepted: Tensor, image: Tensor, difference: Tensor) -> None:
        """Add f(z) and f(z) - z, [B, N], to the histories; if not accepted, restart from the last accepted f(z)."""
        image = torch.where(accepted[:, None], image, self.image)
        self.moves[:, self.slot] = image - self.image
        self.turns[:, self.slot] = difference - self.turns[:, -1]
        self.turns[:, -1] = difference
        self.valid[:, self.slot] = self.linked
        self.valid &= accepted[:, None]
        self.image, self.linked = image, accepted
        self.slot = (self.slot + 1) % _MEMORY

    def _mix(self) -> Tensor:
        """Return the coefficients of the moves, [B, 1, _MEMORY]: regularised least squares with unit columns."""
        invalid = ~self.valid[:, :, None]
        products = torch.bmm(self.turns, self.turns.mT).double()
        gram = products[:, :-1, :-1].masked_fill(invalid | invalid.mT, 0)
        length = gram.diagonal(dim1=1, dim2=2).sqrt()[:, :, None]
        length = torch.where(length > 0, length, 1)
        ridge = _RIDGE * torch.finfo(self.turns.dtype).eps * torch.eye(_MEMORY, dtype=gram.dtype, device=gram.device)
        target = products[:, :-1, -1:].masked_fill(invalid, 0) / length
        return (torch.linalg.solve_ex(gram / length / length.mT + ridge, target).result / length).mT.to(self.turns)

    def keep(self, stay: Tensor) -> None:
        for name in ("image", "moves", "turns", "valid", "linked", "accelerated", "bound"):
            setattr(self, name, getattr(self, name)[stay])


SOLVERS: dict[str, Callable[[Tensor], Proposer]] = {"picard": _Picard, "anderson": _Anderson}
