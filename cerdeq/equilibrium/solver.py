"""Solving z = f(z): Picard steps of a fixed count, or Picard or Anderson iteration to a tolerance for each example.

Anderson acceleration (Walker and Ni 2011) steps to the mix of recent images whose residuals cancel best. It is made
safe as in Zhang, O'Donoghue and Boyd (2020): an accelerated iterate is accepted only while its residual is below a
bound that shrinks by a constant factor with each acceptance. Either infinitely many are accepted, and residuals go to
0, or all later steps are Picard's: it converges wherever Picard does.

Equilibria in float64 do most of the work in float32: Newton's steps, their linear systems solved to a few digits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from cerdeq.deadline import check
from cerdeq.equilibrium.recurrence import apply_weight, fixed_point_step, per_example
from cerdeq.gpu_readings import is_host_reading

_MEMORY = 5
_RIDGE = 100  # in units of the precision, on a Gram matrix of unit diagonal
_GROWTH = 100.0
_DECAY = 0.99
_NEWTON_STEPS, _NEWTON_TOLERANCE = 2, 1e-4  # each correction leaves this much of the error, unless units turn on or off
_NEWTON_START_TOLERANCE, _NEWTON_LIMIT = 1e-5, 1000


class NotConvergedError(RuntimeError):
    """Some examples' equilibria missed their tolerance."""


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


class PicardSteps:
    """Proposes f(z) itself as the next iterates of a batch; other methods are subclasses."""

    def __init__(self, start: Tensor):
        pass

    def propose(self, next_z: Tensor, difference: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Return the next iterates [B, ...] after f(z), f(z) - z and its size [B], and which examples have one."""
        return next_z, distance.isfinite()

    def restrict(self, examples: Tensor) -> None:
        """Forget all but these examples, by their numbers in the batch."""


class AndersonSteps(PicardSteps):
    """f(z) minus a combination of its last changes: the one whose changes of f(z) - z best cancel f(z) - z.

    Histories are rings of _MEMORY slots, with one current slot for all examples; `valid` says which slots belong to an
    example's history since it last restarted. If none does, the combination is 0 and the next iterate is f(z).
    """

    def __init__(self, start: Tensor):
        flat = start.flatten(1)
        batch, size = flat.shape
        self.next_z = flat  # f(z) of the last accepted iterate
        self.changes = flat.new_zeros(batch, _MEMORY, size)  # of f(z)
        self.residuals = flat.new_zeros(batch, _MEMORY + 1, size)  # changes of f(z) - z; last, f(z) - z itself
        self.valid = torch.zeros(batch, _MEMORY, dtype=torch.bool, device=start.device)
        self.follows = self.valid[:, 0].clone()  # whether the iterate before was accepted
        self.accelerated = self.follows
        self.limit = flat.new_full((batch,), torch.inf)  # of the residual of an accelerated iterate
        self.slot = 0

    def propose(self, next_z: Tensor, difference: Tensor, distance: Tensor) -> tuple[Tensor, Tensor]:
        """Return what `PicardSteps.propose` does."""
        accepted = ~self.accelerated | (distance <= self.limit)
        self._remember(accepted, next_z.flatten(1), difference.flatten(1))
        tighter = torch.minimum(_DECAY * self.limit, _GROWTH * distance)
        self.limit = torch.where(accepted & (self.accelerated | self.limit.isinf()), tighter, self.limit)
        self.accelerated = self.valid.any(1)
        mixed = torch.baddbmm(self.next_z[:, None], self._coefficients(), self.changes, alpha=-1)
        return mixed.view_as(next_z), distance.isfinite() | ~accepted

    def _remember(self, accepted: Tensor, next_z: Tensor, difference: Tensor) -> None:
        """Add f(z) and f(z) - z, [B, N], to the histories; if not accepted, restart from the last accepted f(z)."""
        next_z = torch.where(accepted[:, None], next_z, self.next_z)
        self.changes[:, self.slot] = next_z - self.next_z
        self.residuals[:, self.slot] = difference - self.residuals[:, -1]
        self.residuals[:, -1] = difference
        self.valid[:, self.slot] = self.follows
        self.valid &= accepted[:, None]
        self.next_z, self.follows = next_z, accepted
        self.slot = (self.slot + 1) % _MEMORY

    def _coefficients(self) -> Tensor:
        """Return the coefficients of the changes, [B, 1, _MEMORY]: regularised least squares with unit columns."""
        invalid = ~self.valid[:, :, None]
        products = torch.bmm(self.residuals, self.residuals.mT).double()
        gram = products[:, :-1, :-1].masked_fill(invalid | invalid.mT, 0)
        length = gram.diagonal(dim1=1, dim2=2).sqrt()[:, :, None]
        length = torch.where(length > 0, length, 1)
        eps = torch.finfo(self.residuals.dtype).eps
        ridge = _RIDGE * eps * torch.eye(_MEMORY, dtype=gram.dtype, device=gram.device)
        target = products[:, :-1, -1:].masked_fill(invalid, 0) / length
        return (torch.linalg.solve_ex(gram / length / length.mT + ridge, target).result / length).mT.to(self.residuals)

    def restrict(self, examples: Tensor) -> None:
        """Forget all but these examples, by their numbers in the batch."""
        for name in ("next_z", "changes", "residuals", "valid", "follows", "accelerated", "limit"):
            setattr(self, name, getattr(self, name)[examples])


def solve_to_tolerance(
    step: Callable[[Tensor, Tensor], Tensor], start: Tensor, h: Tensor, tolerance: float | Tensor, limit: int,
    steps: type[PicardSteps] = PicardSteps,
) -> Solution:  # fmt: skip
    """Iterate z [B, ...] = step(z, h [B, ...]) from `start` until each example meets its tolerance (one, or [B]).

    An example also ends when its residual is not finite and there is no way back, or after `limit` iterations. So
    neither its value nor its count depends on the others. It leaves the batch when the host reads next.
    """
    value, residual = start.clone(), start.new_full((len(start),), torch.inf)
    iterations = torch.zeros(len(start), dtype=torch.long, device=start.device)
    tolerance = torch.as_tensor(tolerance, dtype=start.dtype, device=start.device).expand(len(start))
    proposer = steps(start)
    ids, goals, z = torch.arange(len(start), device=start.device), tolerance, start
    active = torch.ones_like(ids, dtype=torch.bool)
    for count in range(1, limit + 1):
        check()
        if len(ids) == 0:
            break
        next_z = step(z, h)
        difference = next_z - z
        distance = _size(difference)
        relative = distance / (_size(next_z) + torch.finfo(next_z.dtype).tiny)
        z, possible = proposer.propose(next_z, difference, distance)
        continues = active & possible & ~(relative <= goals) & (count < limit)
        ended, active = active & ~continues, continues
        remaining = active.nonzero()[:, 0] if is_host_reading(count, z.device) else None
        if remaining is not None and len(remaining) == len(ids):
            continue
        value[ids] = torch.where(per_example(ended, z), next_z, value[ids])
        residual[ids] = torch.where(ended, relative, residual[ids])
        iterations[ids] = torch.where(ended, count, iterations[ids])
        if remaining is not None:
            ids, goals, z, h, active = (part[remaining] for part in (ids, goals, z, h, active))
            proposer.restrict(remaining)
    return Solution(value, residual, iterations, residual <= tolerance)


def _size(values: Tensor) -> Tensor:
    """Return the largest magnitude of each example, [B]."""
    return values.flatten(1).abs().amax(1)


def near_equilibrium(weight: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """Return about the z [B, ...] with z = relu(W z + h), in float64, and the iterations of each example [B].

    z is relu(h) where it is not finite. No proof.
    """
    step, start = partial(fixed_point_step, weight.float()), torch.relu(h)
    guess = solve_to_tolerance(step, start.float(), h.float(), _NEWTON_START_TOLERANCE, _NEWTON_LIMIT, AndersonSteps)
    z, iterations = refine(weight, h, guess.value.double())
    return torch.where(per_example(z.flatten(1).isfinite().all(1), h), z, start), guess.iterations + iterations


def refine(weight: Tensor, h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Return z [B, ...] moved nearer to the solution of z = relu(W z + h), all float64, and the iterations [B].

    No proof. A correction d solves d = f(z) - z + D W d, D the derivative of the ReLU at z; its right side is float64.
    """
    small = weight.float()

    def step(correction: Tensor, residual_and_active: Tensor) -> Tensor:
        residual, active = residual_and_active.chunk(2, dim=1)
        return residual + active * apply_weight(small, correction)

    iterations = torch.zeros(len(z), dtype=torch.long, device=z.device)
    for _ in range(_NEWTON_STEPS):
        image = fixed_point_step(weight, z, h)
        residual, active = image - z, (image > 0).float()
        size = per_example(residual.flatten(1).abs().amax(1).clamp(min=torch.finfo(z.dtype).tiny), z)
        start = (residual / size).float()
        correction = solve_to_tolerance(
            step, start, torch.cat([start, active], dim=1), _NEWTON_TOLERANCE, _NEWTON_LIMIT, AndersonSteps
        )
        z, iterations = z + size * correction.value, iterations + correction.iterations
    return z, iterations
