"""Equilibria in float64, most of the work in float32: Newton's steps, their linear systems solved to a few digits."""

from functools import partial

import torch
from torch import Tensor

from cerdeq.equilibrium.recurrence import apply_weight, fixed_point_step, per_example
from cerdeq.equilibrium.solver import solve_to_tolerance

_ROUNDS, _TOLERANCE = 2, 1e-4  # of a correction: each round leaves this much of the error, unless units turn on or off
_FIRST_TOLERANCE, _LIMIT = 1e-5, 1000


def near_equilibrium(weight: Tensor, h: Tensor) -> Tensor:
    """Return about the z [B, ...] with z = relu(W z + h), in float64; relu(h) where that is not finite. No proof."""
    step, start = partial(fixed_point_step, weight.float()), torch.relu(h)
    guess = solve_to_tolerance(step, start.float(), h.float(), _FIRST_TOLERANCE, _LIMIT, "anderson").value
    z = refine(weight, h, guess.double())
    return torch.where(per_example(z.flatten(1).isfinite().all(1), h), z, start)


def refine(weight: Tensor, h: Tensor, z: Tensor) -> Tensor:
    """Return z [B, ...] moved nearer to the solution of z = relu(W z + h), all float64. No proof.

    A correction d solves d = f(z) - z + D W d, D the derivative of the ReLU at z; its right side is float64.
    """
    step = partial(_correction_step, weight.float())
    for _ in range(_ROUNDS):
        image = fixed_point_step(weight, z, h)
        residual, active = image - z, (image > 0).float()
        size = per_example(residual.flatten(1).abs().amax(1).clamp(min=torch.finfo(z.dtype).tiny), z)
        start = (residual / size).float()
        correction = solve_to_tolerance(step, start, torch.cat([start, active], dim=1), _TOLERANCE, _LIMIT, "anderson")
        z = z + size * correction.value
    return z


def _correction_step(weight: Tensor, correction: Tensor, residual_and_active: Tensor) -> Tensor:
    residual, active = residual_and_active.chunk(2, dim=1)
    return residual + active * apply_weight(weight, correction)
