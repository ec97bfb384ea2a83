"""Leaves that fix every sign, in which the network is affine: exact minima by linear programming.

Such a leaf is a polytope of inputs. The dual variables of the linear program are the multipliers that make the linear
bound exact.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cerdeq.branch.leaves import Layout, Leaves, SearchQuery
from cerdeq.linear_program import minimise

_LARGEST = 10**7  # numbers in a program


def solve_leaf(query: SearchQuery, layout: Layout, leaf: Leaves, batch_size: int) -> tuple[Leaves, Tensor] | None:
    """Return the leaf [1] with its best multipliers, and the input [1, ...] that minimises it; nothing is proved.

    If the leaf is empty, the input is the one that violates its signs least. None if the program is too large or was
    not solved. query: in float64.
    """
    box, columns = query.values[0], layout.multiplier_columns
    if not 0 < len(columns) * box.center.numel() <= _LARGEST:
        return None
    leaf = _through_lines(layout, leaf)
    slopes, constants = _bounds_by_multiplier(query, layout, leaf, batch_size)
    if not (np.isfinite(slopes).all() and np.isfinite(constants).all()):
        return None
    center, radius = (end.flatten().double().cpu().numpy() for end in (box.center, box.radius))
    ends = np.stack([center - radius, center + radius], axis=1)
    solution = minimise(slopes[0], slopes[1:] - slopes[0], constants[0] - constants[1:], ends)
    if solution is None:
        return None
    multipliers = solution.multipliers
    if solution.violation:  # they may be scaled up without limit
        minimum = constants[0] + slopes[0] @ center - np.abs(slopes[0]) @ radius
        multipliers = multipliers * (2 * (abs(minimum) + 1) / solution.violation)
    choices = leaf.choices.double().clone()
    choices[:, columns] = torch.from_numpy(np.maximum(multipliers, 0)).to(choices)
    leaf = replace(leaf, choices=choices.to(leaf.choices))
    point = torch.from_numpy(solution.x).to(box.center).view_as(box.center)
    return replace(leaf, lower=query.lower(leaf, layout, sound=False)), point


def _through_lines(layout: Layout, leaf: Leaves) -> Leaves:
    """Return the leaf with all of an equilibrium's coefficients through the lines, which are exact here."""
    leaf = replace(leaf, choices=leaf.choices.clone())
    for columns in layout.choices:
        if columns.elsewhere == 1:
            leaf.choices[:, columns.start : columns.stop] = 1
    return leaf


def _bounds_by_multiplier(
    query: SearchQuery, layout: Layout, leaf: Leaves, batch_size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the leaf's linear bound without multipliers, then with each of them 1: slopes [m + 1, n], constants.

    The bound is affine in the multipliers: a multiplier of 1 adds its row -s p, which is at most 0.
    """
    cases = _with_multipliers(leaf, layout.multiplier_columns)
    parts = [_affine(query, layout, cases.of(slice(s, s + batch_size))) for s in range(0, len(cases.row), batch_size)]
    slopes, constants = (torch.cat(part).double().cpu().numpy() for part in zip(*parts, strict=True))
    return slopes, constants


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
