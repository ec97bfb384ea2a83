"""Leaves that fix every sign, in which the network is affine: exact minima by linear programming.

Such a leaf is a polytope of inputs. The dual variables of the linear program are the multipliers that make the linear
bound exact.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cerdeq.branch.leaves import Layout, Leaves, SearchQuery
from cerdeq.deadline import check, seconds_left

_LARGEST = 10**7  # numbers in a program
_SOLVED, _INFEASIBLE = 0, 2  # of linprog


@dataclass(frozen=True)
class _LinearProgram:
    """The minimum of slope . x + constant over a box of inputs x [n] with rows [m, n] . x <= limits [m]."""

    slope: np.ndarray
    constant: float
    rows: np.ndarray
    limits: np.ndarray
    center: np.ndarray
    radius: np.ndarray

    @property
    def box(self) -> np.ndarray:
        """The ends of the inputs, [n, 2]."""
        return np.stack([self.center - self.radius, self.center + self.radius], axis=1)

    def solve(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the input of the minimum and the multipliers [m] of the rows; None if it was not solved.

        If there is no such input, the multipliers prove that, and the input is the one that violates the rows least.
        """
        status, _, x, multipliers = _minimise(self.slope, self.rows, self.limits, self.box)
        if status == _INFEASIBLE:
            return self._prove_empty()
        return (x, multipliers) if status == _SOLVED else None

    def _prove_empty(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Return what `solve` does if there is no input: multipliers may be scaled up without limit."""
        count = len(self.center)
        rows = np.hstack([self.rows, -np.ones((len(self.rows), 1))])  # one more variable: the largest violation
        box = np.vstack([self.box, [0, np.inf]])
        status, violation, x, multipliers = _minimise(np.eye(1, count + 1, count)[0], rows, self.limits, box)
        if status != _SOLVED or not violation > 0:
            return None
        minimum = self.constant + self.slope @ self.center - np.abs(self.slope) @ self.radius
        return x[:count], multipliers * (2 * (abs(minimum) + 1) / violation)


def solve_leaf(query: SearchQuery, layout: Layout, leaf: Leaves, batch_size: int) -> tuple[Leaves, Tensor] | None:
    """Return the leaf [1] with its best multipliers, and the input [1, ...] that minimises it; nothing is proved.

    If the leaf is empty, the input is the one that violates its signs least. None if the program is too large or was
    not solved. query: in float64.
    """
    box, columns = query.values[0], layout.multiplier_columns
    if not 0 < len(columns) * box.center.numel() <= _LARGEST:
        return None
    leaf = _through_lines(layout, leaf)
    program = _linear_program(query, layout, leaf, batch_size)
    solution = None if program is None else program.solve()
    if solution is None:
        return None
    x, multipliers = solution
    choices = leaf.choices.double().clone()
    choices[:, columns] = torch.from_numpy(np.maximum(multipliers, 0)).to(choices)
    leaf = replace(leaf, choices=choices.to(leaf.choices))
    point = torch.from_numpy(x).to(box.center).view_as(box.center)
    return replace(leaf, lower=query.lower(leaf, layout, sound=False)), point


def _through_lines(layout: Layout, leaf: Leaves) -> Leaves:
    """Return the leaf with all of an equilibrium's coefficients through the lines, which are exact here."""
    leaf = replace(leaf, choices=leaf.choices.clone())
    for columns in layout.choices:
        if columns.elsewhere == 1:
            leaf.choices[:, columns.start : columns.stop] = 1
    return leaf


def _linear_program(query: SearchQuery, layout: Layout, leaf: Leaves, batch_size: int) -> _LinearProgram | None:
    """Return the program of the leaf; None if its numbers are not finite.

    Its linear bound is affine in the multipliers: a multiplier of 1 adds its row -s p, which is at most 0.
    """
    cases, box = _with_multipliers(leaf, layout.multiplier_columns), query.values[0]
    parts = [_affine(query, layout, cases.of(slice(s, s + batch_size))) for s in range(0, len(cases.row), batch_size)]
    slopes, constants = (torch.cat(part).double().cpu().numpy() for part in zip(*parts, strict=True))
    if not (np.isfinite(slopes).all() and np.isfinite(constants).all()):
        return None
    center, radius = (end.flatten().double().cpu().numpy() for end in (box.center, box.radius))
    return _LinearProgram(slopes[0], constants[0], slopes[1:] - slopes[0], constants[0] - constants[1:], center, radius)


def _minimise(
    slope: np.ndarray, rows: np.ndarray, limits: np.ndarray, box: np.ndarray
) -> tuple[int, Any, np.ndarray, np.ndarray]:
    """Return status, minimum, its input and the multipliers of the rows; end at the deadline."""
    from scipy.optimize import linprog  # imported here, since bounds must work without scipy

    check()
    options = {"time_limit": seconds_left()}
    result = linprog(slope, A_ub=rows, b_ub=limits, bounds=box, method="highs", options=options)
    return result.status, result.fun, result.x, -result.ineqlin.marginals if result.status == _SOLVED else slope


def _with_multipliers(leaf: Leaves, multiplier_columns: Tensor) -> Leaves:
    """Return the leaf without multipliers, then for each of these columns with that multiplier 1 and the others 0."""
    count = len(multiplier_columns) + 1
    choices = leaf.choices.double().repeat(count, 1)
    choices[:, multiplier_columns] = torch.cat(
        [choices.new_zeros(1, len(multiplier_columns)), torch.eye(len(multiplier_columns)).to(choices)]
    )
    return Leaves(leaf.row.repeat(count), leaf.signs.repeat(count, 1), choices, leaf.lower.repeat(count))


def _affine(query: SearchQuery, layout: Layout, leaves: Leaves) -> tuple[Tensor, Tensor]:
    """Return the linear bounds as coefficients of the inputs [D, n] and constants [D]."""
    relaxations: dict[str, Any] = {}
    lower = query.lower(leaves, layout, sound=False, relaxations=relaxations)
    box, slopes = query.values[0], relaxations[""][:, 0].flatten(1)
    return slopes, lower - slopes @ box.center.flatten() + slopes.abs() @ box.radius.flatten()
