"""Leaves that fix every sign, in which the network is affine: exact minima by linear programming.

Such a leaf is a polytope of inputs. The dual variables of the linear program are the multipliers that make the linear
bound exact.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cerdeq.branch.leaves import Layout, Leaves, Problem
from cerdeq.deadline import check, seconds_left

_LARGEST = 10**7  # numbers in a program


def solve_leaf(problem: Problem, layout: Layout, leaf: Leaves, batch_size: int) -> tuple[Leaves, Tensor] | None:
    """Return the leaf [1] with its best multipliers, and the input [1, ...] that minimises it; nothing is proved.

    If the leaf is empty, the input is the one that violates its signs least. None if the program is too large or was
    not solved. problem: in float64.
    """
    from scipy.optimize import linprog  # imported here, since bounds must work without scipy

    multiplier_columns, box = layout.multiplier_columns, problem.values[0]
    if not 0 < len(multiplier_columns) * box.center.numel() <= _LARGEST:
        return None
    leaf = replace(leaf, choices=leaf.choices.clone())
    for columns in layout.choices:
        if columns.elsewhere == 1:  # how much of an equilibrium's coefficients goes through the lines: exact here
            leaf.choices[:, columns.start : columns.stop] = 1
    cases = _with_multipliers(leaf, multiplier_columns)
    parts = [_affine(problem, layout, cases.of(slice(s, s + batch_size))) for s in range(0, len(cases.row), batch_size)]
    slopes, constants = (torch.cat(part).double().cpu().numpy() for part in zip(*parts, strict=True))
    if not (np.isfinite(slopes).all() and np.isfinite(constants).all()):
        return None
    rows, offsets = slopes[1:] - slopes[0], constants[1:] - constants[0]  # a multiplier of 1 adds -s p <= 0
    center, radius = (end.flatten().double().cpu().numpy() for end in (box.center, box.radius))
    limits = np.stack([center - radius, center + radius], axis=1)
    result = linprog(slopes[0], A_ub=rows, b_ub=-offsets, bounds=limits, method="highs", options=_options())
    if result.status == 2:  # the leaf is empty: multipliers that prove it may be scaled up without limit
        with_violation = np.hstack([rows, -np.ones((len(rows), 1))])
        result = linprog(np.eye(1, len(center) + 1, len(center))[0], A_ub=with_violation, b_ub=-offsets,
                        bounds=np.vstack([limits, [0, np.inf]]), method="highs", options=_options())  # fmt: skip
        if result.status != 0 or not result.fun > 0:
            return None
        minimum = constants[0] + slopes[0] @ center - np.abs(slopes[0]) @ radius
        scale = 2 * (abs(minimum) + 1) / result.fun
    elif result.status == 0:
        scale = 1.0
    else:
        return None
    choices = leaf.choices.double().clone()
    choices[:, multiplier_columns] = torch.from_numpy(np.maximum(-result.ineqlin.marginals * scale, 0)).to(choices)
    point = torch.from_numpy(result.x[: len(center)]).to(box.center).view_as(box.center)
    leaf = replace(leaf, choices=choices.to(leaf.choices))
    return replace(leaf, lower=problem.lower(leaf, layout, sound=False)), point


def _options() -> dict[str, float]:
    """Return options of `linprog` that let it end at the deadline."""
    check()
    return {"time_limit": seconds_left()}


def _with_multipliers(leaf: Leaves, multiplier_columns: Tensor) -> Leaves:
    """Return the leaf without multipliers, then for each of these columns with that multiplier 1 and the others 0."""
    count = len(multiplier_columns) + 1
    choices = leaf.choices.double().repeat(count, 1)
    choices[:, multiplier_columns] = torch.cat(
        [choices.new_zeros(1, len(multiplier_columns)), torch.eye(len(multiplier_columns)).to(choices)]
    )
    return Leaves(leaf.row.repeat(count), leaf.signs.repeat(count, 1), choices, leaf.lower.repeat(count))


def _affine(problem: Problem, layout: Layout, leaves: Leaves) -> tuple[Tensor, Tensor]:
    """Return the linear bounds as coefficients of the inputs [D, n] and constants [D]."""
    seen: dict[str, Any] = {}
    lower = problem.lower(leaves, layout, sound=False, seen=seen)
    box, slopes = problem.values[0], seen[""][:, 0].flatten(1)
    return slopes, lower - slopes @ box.center.flatten() + slopes.abs() @ box.radius.flatten()
