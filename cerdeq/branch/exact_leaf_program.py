"""Leaves that fix every sign, in which the network is affine: exact minima by linear programming.

Such a leaf is a polytope of inputs. The dual variables of the linear program are the multipliers that make the linear
bound exact.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cerdeq.branch.ascent import Ascent
from cerdeq.branch.leaves import Layout, Leaves, SearchQuery, concatenate
from cerdeq.branch.search import Problem
from cerdeq.linear_program import minimise

_LARGEST = 10**7  # numbers in a program


def solve_unsplittable(problem: Problem, layout: Layout, ascent: Ascent) -> Ascent:
    """Solve exactly the leaves whose bound is not above 0 and that have nothing left to split; return all leaves."""
    is_unsplittable = (ascent.candidates.units[:, 0] < 0) & ~(ascent.leaves.lower > 0)
    parts, points, values = [], ascent.points.clone(), ascent.values.clone()
    for number, has_no_split in enumerate(is_unsplittable.tolist()):
        leaf = ascent.leaves.of(slice(number, number + 1))
        solution = _solve_leaf(problem.exact, layout, leaf, problem.batch_size) if has_no_split else None
        if solution is not None:
            leaf, points[number] = solution[0], solution[1][0].to(points)
            values[number] = problem.fast.at(points[number : number + 1])[0][0]
        parts.append(leaf)
    return replace(ascent, leaves=concatenate(parts), points=points, values=values)


def _solve_leaf(query: SearchQuery, layout: Layout, leaf: Leaves, batch_size: int) -> tuple[Leaves, Tensor] | None:
    """Return the leaf [1] with its best multipliers, and the input [1, ...] that minimises it; nothing is proved.

    If the leaf is empty, the input is the one that violates its signs least. None if the program is too large or was
    not solved. query: in float64.
    """
    box, columns = query.values[0], layout.multiplier_columns
    if not 0 < len(columns) * box.center.numel() <= _LARGEST:
        return None
    leaf = replace(leaf, choices=leaf.choices.clone())
    for line_shares in (part for part in layout.choices if part.elsewhere == 1):
        leaf.choices[:, line_shares.start : line_shares.stop] = 1  # lines are exact here
    slopes, constants = _bounds_by_multiplier(query, layout, leaf, batch_size)
    if not (np.isfinite(slopes).all() and np.isfinite(constants).all()):
        return None
    center, radius = (end.flatten().double().cpu().numpy() for end in (box.center, box.radius))
    ends = np.stack([center - radius, center + radius], axis=1)
    solution = minimise(slopes[0], slopes[1:] - slopes[0], constants[0] - constants[1:], ends)
    if solution is None:
        return None
    multipliers = -solution.multipliers
    if solution.is_empty:  # they may be scaled up without limit
        minimum = constants[0] + slopes[0] @ center - np.abs(slopes[0]) @ radius
        multipliers = multipliers * (2 * (abs(minimum) + 1) / solution.ray)
    choices = leaf.choices.double().clone()
    choices[:, columns] = torch.from_numpy(np.maximum(multipliers, 0)).to(choices)
    leaf = replace(leaf, choices=choices.to(leaf.choices))
    point = torch.from_numpy(solution.x).to(box.center).view_as(box.center)
    return replace(leaf, lower=query.lower(leaf, layout, sound=False)), point


def _bounds_by_multiplier(
    query: SearchQuery, layout: Layout, leaf: Leaves, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the leaf's linear bound without multipliers, then with each of them 1: slopes [m + 1, n], constants.

    The bound is affine in the multipliers: a multiplier of 1 adds its row -s p, which is at most 0.
    """
    columns, box = layout.multiplier_columns, query.values[0]
    count = len(columns) + 1
    choices = leaf.choices.double().repeat(count, 1)
    choices[:, columns] = torch.eye(count).to(choices)[:, 1:]
    cases = Leaves(leaf.row.repeat(count), leaf.signs.repeat(count, 1), choices, leaf.lower.repeat(count))
    slopes, constants = [], []
    for start in range(0, count, batch_size):
        relaxations: dict[str, Any] = {}
        lower = query.lower(cases.of(slice(start, start + batch_size)), layout, sound=False, relaxations=relaxations)
        slopes.append(relaxations[""][:, 0].flatten(1))
        constants.append(lower - slopes[-1] @ box.center.flatten() + slopes[-1].abs() @ box.radius.flatten())
    return torch.cat(slopes).double().cpu().numpy(), torch.cat(constants).double().cpu().numpy()
