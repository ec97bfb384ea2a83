"""Equilibria in float64, most of the work in float32: Newton's steps, their linear systems solved to a few digits."""

from functools import partial

import torch
from torch import Tensor

from cerdeq.equilibrium.recurrence import apply_weight
from cerdeq.equilibrium.solver import solve

_ROUNDS, _TOLERANCE = 2, 1e-4  # of a correction: each round leaves this much of the error, unless units turn on or off
_FIRST_TOLERANCE, _LIMIT = 1e-5, 1000


def near_equilibrium(weight: Tensor, h: Tensor) -> Tensor:
    """About the z [B, ...] with z = relu(W z + h), in float64; relu(h) where that is not finite. Nothing is proved."""
    small, start = h.float(), torch.relu(h)
    guess = solve(partial(_step, weight.float()), start.float(), small, _FIRST_TOLERANCE, _LIMIT, "anderson").value
    z = refined(weight, h, guess.double())
    finite = z.flatten(1).isfinite().all(1)
    return torch.where(finite.view(-1, *[1] * (h.dim() - 1)), z, start)


def _step(weight: Tensor, z: Tensor, h: Tensor) -> Tensor:
    return torch.relu(apply_weight(weight, z) + h)


def refined(weight: Tensor, h: Tensor, z: Tensor) -> Tensor:
    """z [B, ...] near the solution of z = relu(W z + h), nearer to it, all float64; nothing is proved of it.

    A correction d solves d = f(z) - z + D W d, D the derivative of the ReLU at z; its right side is float64.
    """
    small = weight.float()
    for _ in range(_ROUNDS):
        image = _step(weight, z, h)
        residual, active = image - z, (image > 0).float()
        size = residual.flatten(1).abs().amax(1).clamp(min=torch.finfo(z.dtype).tiny)
        size = size.view(-1, *[1] * (z.dim() - 1))
        goal = torch.cat([(residual / size).float(), active], dim=1)
        correction = solve(partial(_corrected, small), goal.chunk(2, dim=1)[0], goal, _TOLERANCE, _LIMIT, "anderson")
        z = z + size * correction.value
    return z


def _corrected(weight: Tensor, correction: Tensor, goal: Tensor) -> Tensor:
    residual, active = goal.chunk(2, dim=1)
    return residual + active * apply_weight(weight, correction)
