"""First attack on an equilibrium network: signed steps along implicit gradients, many starts at once.

It is not `first_attack` of other networks, whose gradients run through the module: W is no contraction, so only the
splitting converges, and here it stops at a coarse tolerance.
"""

import torch
from torch import Tensor

from cerdeq.equilibrium.monotone.network import EquilibriumNetwork

_STARTS, _STEPS = 6, 20
_ATTACK_TOLERANCE = 1e-6  # of equilibria in the attack
_LAST_STEP = 0.02  # in units of the box's radius


def attack(network: EquilibriumNetwork, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return for each of these rows of the spec its lowest value [R] and the point [R, d] of the box where it is.

    The values are not proved. Every row is attacked from the centre and from random points of the box.
    """
    box, splitting, generator = network.box, network.proof.splitting, torch.Generator().manual_seed(0)
    c, offset = network.rows.matrix[rows].repeat(_STARTS, 1), network.rows.offset[rows].repeat(_STARTS)
    shift = 2 * torch.rand(len(c), len(box.center), generator=generator, dtype=torch.float64).to(c) - 1
    shift[: len(rows)] = 0
    lowest = torch.full_like(offset, torch.inf)
    points = torch.zeros_like(shift)
    for step in range(_STEPS + 1):
        x = box.center + box.radius * shift
        z = splitting.solve(x @ network.inject.matrix.mT + network.inject.offset, _ATTACK_TOLERANCE).value
        value = (z * c).sum(1) + offset
        is_lower = value < lowest
        lowest, points = torch.where(is_lower, value, lowest), torch.where(is_lower[:, None], x, points)
        gradient = (splitting.gradient(z, c) @ network.inject.matrix).nan_to_num()
        size = 1 - step / _STEPS + _LAST_STEP
        shift = (shift - size * gradient.sign()).clamp(-1, 1)
    best = lowest.view(_STARTS, -1).argmin(0)
    index = best * len(rows) + torch.arange(len(rows), device=rows.device)
    return lowest[index], points[index]
