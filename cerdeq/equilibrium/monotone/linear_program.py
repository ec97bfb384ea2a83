"""Leaves without an unstable unit, in which the network is affine: exact minima by linear programming (HiGHS)."""

import numpy as np
import torch
from torch import Tensor

from cerdeq.deadline import check, seconds_left
from cerdeq.equilibrium.monotone.bounds import EquilibriumBounds, Leaf, TighteningStep


def solve_linear_program(layer: EquilibriumBounds, leaf: Leaf) -> tuple[TighteningStep, Tensor | None] | None:
    """Return the best multipliers of a leaf's assumed row, and the input [d] that minimises it. Nothing is proved.

    If the leaf is empty, the multipliers show that, and there is no input. None if the program was not solved.
    """
    from scipy import sparse
    from scipy.optimize import linprog  # imported here, since bounds must work without scipy

    check()
    low, high = leaf.low, leaf.high
    divisor = layer.divisor[:, None]
    active = (low >= 0).to(low)
    of_q = layer.off_diagonal / divisor * active - torch.eye(len(low)).to(low)
    matrix = torch.cat([of_q, layer.inject.matrix / divisor], dim=1).cpu().numpy()
    right = (-layer.inject.offset / layer.divisor).cpu().numpy()
    x = layer.x
    ends = torch.cat([low, x.center - x.radius]), torch.cat([high, x.center + x.radius])
    bounds = torch.stack(ends, dim=1).cpu().numpy()
    cost = np.concatenate([(leaf.row * active).cpu().numpy(), np.zeros(len(x.center))])
    options = {"time_limit": max(seconds_left(), 0.01)}
    result = linprog(cost, A_eq=matrix, b_eq=right, bounds=bounds, method="highs", options=options)
    if result.status == 0:
        point = torch.from_numpy(result.x[len(low) :]).to(low)
        return _step(-result.eqlin.marginals, 1.0, low), point
    if result.status != 2:
        return None
    slack = np.ones((len(right), 1))
    rows = sparse.csr_matrix(np.block([[matrix, -slack], [-matrix, -slack]]))
    result = linprog(
        np.eye(1, len(cost) + 1, len(cost))[0], A_ub=rows, b_ub=np.concatenate([right, -right]),
        bounds=np.vstack([bounds, [0, np.inf]]), method="highs", options=options,
    )  # fmt: skip
    if result.status != 0:
        return None
    upper, lower = np.split(result.ineqlin.marginals, 2)
    return _step(lower - upper, 0.0, low), None


def _step(multipliers: np.ndarray, beta: float, like: Tensor) -> TighteningStep:
    none = torch.zeros(1, dtype=torch.long, device=like.device)
    a = torch.from_numpy(multipliers).to(like)[None]
    return TighteningStep(none, none, a, torch.ones(1).to(like), torch.full((1,), beta).to(like))
