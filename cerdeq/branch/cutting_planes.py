"""Search for a counterexample by cutting planes, where a row is a maximum and gradient steps stop at its kinks.

Each descent approximates its row by the largest of the planes that touch it at the points so far. A linear program
finds the minimum of that in a trust region, a small box around the best point (Schramm and Zowe 1992). Planes above
the row at the best point are left out: there the row is not convex.
"""

import numpy as np
import torch
from torch import Tensor

from cerdeq.branch.attack import prove_point, values_and_gradients
from cerdeq.branch.leaves import SearchQuery
from cerdeq.linear_program import minimise

_STEPS = 20  # at most, of each descent
_FIRST_RADIUS = 0.03  # of the trust region, in radii of the box
_LEAST, _GOOD = 0.1, 0.7  # of the decrease that the planes promise: to move there; to double the trust region
_HOPELESS = 0.02  # of the value: if less is promised, the descent ends
_TOUCHES = 1e-9  # relative to the values


def descend_by_planes(query: SearchQuery, starts: Tensor, inputs: Tensor) -> Tensor | None:
    """Return a point [1, ...] of the box at which a row is proved to be negative, or None.

    Descents of the row that is smallest at each of the starts [D, ...] are evaluated together.

    query: in float64. inputs: [n], flat numbers of the inputs to change.
    """
    box = query.values[0]
    center, radius = box.center.flatten()[inputs], box.radius.flatten()[inputs]
    points = starts.to(box.center)
    values, _ = query.at(points)
    weights = torch.eye(values.shape[1]).to(values)[values.argmin(1)]
    descents = [_Descent(len(inputs)) for _ in points]
    for _ in range(_STEPS + 1):
        values, gradients = values_and_gradients(query, points, weights)
        lowest = values.amin(1)
        if lowest.min() < 0 and (point := prove_point(query, points[lowest.argmin()][None])) is not None:
            return point
        shares = ((points.flatten(1)[:, inputs] - center) / radius).clamp(-1, 1).cpu().numpy()
        slopes = (gradients.flatten(1)[:, inputs] * radius).cpu().numpy()
        rows = (values * weights).sum(1).tolist()
        cases = zip(descents, shares, rows, slopes, strict=True)
        following = [descent.next_point(*case) for descent, *case in cases]
        moves = {number: share for number, share in enumerate(following) if share is not None}
        if not moves:
            return None
        left = list(moves)
        descents, weights, points = [descents[number] for number in left], weights[left], points[left]
        moved = center + radius * torch.from_numpy(np.stack(list(moves.values()))).to(center)
        points = points.flatten(1).index_copy(1, inputs, moved).view_as(points)
    return None


class _Descent:
    """One descent of n inputs, in units of the box's radius from its center.

    It holds the best point with its value, the radius of the trust region, and the planes that touch the row.
    """

    def __init__(self, inputs: int):
        self._best, self._value, self._promised = np.zeros(inputs), np.inf, np.inf
        self._radius, self._slopes, self._constants = _FIRST_RADIUS, np.empty((0, inputs)), np.empty(0)

    def next_point(self, point: np.ndarray, value: float, slopes: np.ndarray) -> np.ndarray | None:
        """Return the next point [n] after this one, with its value and slopes [n]; None if the descent ends."""
        if not (np.isfinite(value) and np.isfinite(slopes).all() and slopes.any()):
            return None
        if np.isinf(self._value):
            self._best, self._value = point, value
        elif (share := (self._value - value) / (self._value - self._promised)) > _LEAST:
            self._best, self._value = point, value
            self._radius = min(1.0, 2 * self._radius) if share > _GOOD else self._radius
        planes = np.concatenate([self._slopes, slopes[None]])
        constants = np.append(self._constants, value - slopes @ point)
        is_below = planes @ self._best + constants <= self._value + _TOUCHES * abs(self._value)
        if not is_below[-1]:
            self._radius /= 2
        self._slopes, self._constants = planes[is_below], constants[is_below]
        return self._minimum_of_planes() if is_below.any() else None  # none: the value is lost in rounding

    def _minimum_of_planes(self) -> np.ndarray | None:
        scale = np.abs(self._slopes).max()
        rows = np.column_stack([self._slopes / scale, -np.ones(len(self._slopes))])
        region = np.stack([self._best - self._radius, self._best + self._radius], axis=1).clip(-1, 1)
        ends = np.concatenate([region, [[-np.inf, np.inf]]])
        cost = np.append(np.zeros(len(self._best)), 1.0)
        solution = minimise(cost, rows, -self._constants / scale, ends)
        if solution is None:
            return None
        self._promised = scale * solution.value
        is_hopeless = self._value - self._promised <= _HOPELESS * abs(self._value)
        return None if is_hopeless else solution.x[:-1]
