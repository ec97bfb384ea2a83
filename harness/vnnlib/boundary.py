"""Points at which a case may hold with equality alone, where no search by gradients ends: corners and vertices."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from cerdeq import Box
from cerdeq.deadline import check as check_deadline
from harness.vnnlib.properties import Case

_MOST_FREE = 8  # inputs with more than one value
_MOST_CORNERS = 8  # that are returned
_AT_ONCE = 8  # corners: there may be no memory for more
_ZERO = 1e-6  # a violation that may be 0, relative to the largest coefficient
_MOST_CASES, _MOST_NUMBERS = 4, 20_000  # of linear programs
_ROUNDS = 3
_VALUES = "violations.values"  # the layer of the constraints' values


def likely_corners(extended: nn.Sequential, region: Box) -> list[Tensor]:
    """Return the corners [1, ...] of a box of few inputs at which a case holds or almost holds, the best first.

    extended: from `with_violations`. Raises DeadlineError.
    """
    free = region.radius.flatten().nonzero()[:, 0]
    if len(free) > _MOST_FREE:
        return []
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=len(free))), dtype=torch.float64)

    def corners(part: Tensor) -> Tensor:
        points = region.center.flatten(1).repeat(len(part), 1)
        points[:, free] += part * region.radius.flatten()[free]
        return points.view(-1, *region.center.shape[1:])

    smallest = list[Tensor]()
    for part in signs.split(_AT_ONCE):
        check_deadline()
        with torch.no_grad():
            smallest.append(extended(corners(part)).amin(1))
    values = torch.cat(smallest)
    likely = values.argsort(stable=True)[:_MOST_CORNERS]
    return [corners(signs[number][None]) for number in likely.tolist() if values[number] <= _nearly_zero(extended)]


def _nearly_zero(extended: nn.Sequential) -> float:
    weight, _ = extended.get_submodule(_VALUES).parameters()
    return _ZERO * float(weight.detach().abs().max())


def likely_vertices(extended: nn.Sequential, cases: Sequence[Case], region: Box, start: Tensor) -> Iterator[Tensor]:
    """Yield vertices [1, ...] of the box and of a case's constraints at which a case holds or almost holds.

    They are those of the linear piece of the network at `start`, then of the piece at the vertex before.
    extended: from `with_violations`. Raises DeadlineError.
    """
    with torch.no_grad():
        nearest = extended(start)[0].argsort(stable=True)[:_MOST_CASES].tolist()
    counts = [0, *itertools.accumulate(len(case.constraints) for case in cases)]
    for number in nearest:
        rows, point = slice(counts[number], counts[number + 1]), start
        for _ in range(_ROUNDS):
            vertex = _vertex(extended, rows, region, point)
            if vertex is None or torch.equal(vertex, point):
                break
            with torch.no_grad():
                is_likely = extended(vertex).amin() <= _nearly_zero(extended)
            if is_likely:
                yield vertex
            point = vertex


def _vertex(extended: nn.Sequential, rows: slice, region: Box, point: Tensor) -> Tensor | None:
    """Return where the largest of these violations would be smallest if the piece at the point were the whole network.

    None if the linear program is too large or has no answer.
    """
    if (rows.stop - rows.start) * point.numel() > _MOST_NUMBERS:
        return None
    slopes = list[np.ndarray]()
    with torch.enable_grad():
        x = point.clone().requires_grad_()
        values = extended.get_submodule(_VALUES)(extended[:2](x))[0, rows]
        for value in values:
            check_deadline()
            slopes.append(torch.autograd.grad(value, x, retain_graph=True)[0].flatten().numpy())
    matrix = np.stack(slopes)
    with np.errstate(over="ignore", invalid="ignore"):
        at_0 = values.detach().numpy() - matrix @ point.flatten().numpy()
    if not (np.isfinite(matrix).all() and np.isfinite(at_0).all()):
        return None
    ends = zip(*[(region.center + sign * region.radius).flatten().tolist() for sign in (-1, 1)], strict=True)
    objective, left = np.r_[np.zeros(point.numel()), 1.0], np.c_[matrix, -np.ones(len(matrix))]
    program = linprog(objective, left, -at_0, bounds=[*ends, (None, None)], method="highs-ds")
    return torch.from_numpy(program.x[:-1]).view_as(point) if program.status == 0 else None
