"""Leaves in which every sign is known: the network is affine there, and the leaf a polytope of inputs.

The least value over it is a linear program, whose dual variables are the multipliers that make the linear bound exact.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cerdeq.bounds.relaxation import split_name
from cerdeq.branch.leaves import Layout, Leaves, Side

_LARGEST = 10**7  # numbers in a program


def solved(side: Side, layout: Layout, leaf: Leaves, at_once: int) -> tuple[Leaves, Tensor] | None:
    """The leaf [1] with the multipliers that are best for it, and the input [1, ...] where it is least, or which is
    nearest to lying in it where no input does. None where the program is too large or not solved; nothing is proved.

    side: in float64.
    """
    from scipy.optimize import linprog  # here, where it is needed: bounds are wanted on machines without it

    multipliers, box = {split_name(columns.name) for columns in layout.units}, side.values[0]
    places = torch.tensor([n for c in layout.choices if c.name in multipliers for n in range(c.start, c.stop)])
    if not 0 < len(places) * box.center.numel() <= _LARGEST:
        return None
    leaf = _exact(layout, leaf)
    cases = _with_multipliers(leaf, places)
    parts = [_affine(side, layout, cases.of(slice(s, s + at_once))) for s in range(0, len(cases.row), at_once)]
    slopes, constants = (torch.cat(part).double().cpu().numpy() for part in zip(*parts, strict=True))
    if not (np.isfinite(slopes).all() and np.isfinite(constants).all()):
        return None
    rows, offsets = slopes[1:] - slopes[0], constants[1:] - constants[0]  # what a multiplier of 1 adds: -s p <= 0
    center, radius = (end.flatten().double().cpu().numpy() for end in (box.center, box.radius))
    ends = np.stack([center - radius, center + radius], axis=1)
    found = linprog(slopes[0], A_ub=rows, b_ub=-offsets, bounds=ends, method="highs")
    if found.status == 2:  # no input lies in the leaf: what proves that may be as large as one likes
        wide = np.hstack([rows, -np.ones((len(rows), 1))])
        found = linprog(np.eye(1, len(center) + 1, len(center))[0], A_ub=wide, b_ub=-offsets,
                        bounds=np.vstack([ends, [0, np.inf]]), method="highs")  # fmt: skip
        if found.status != 0 or not found.fun > 0:
            return None
        least = constants[0] + slopes[0] @ center - np.abs(slopes[0]) @ radius
        scale = 2 * (abs(least) + 1) / found.fun
    elif found.status == 0:
        scale = 1.0
    else:
        return None
    choices = leaf.choices.double().clone()
    choices[:, places] = torch.from_numpy(np.maximum(-found.ineqlin.marginals * scale, 0)).to(choices)
    point = torch.from_numpy(found.x[: len(center)]).to(box.center).view_as(box.center)
    leaf = replace(leaf, choices=choices.to(leaf.choices))
    return replace(leaf, lower=side.lower(leaf, layout, sound=False)), point


def _exact(layout: Layout, leaf: Leaves) -> Leaves:
    """The leaf with all of its coefficients through the lines of equilibria, which are exact here."""
    choices = leaf.choices.clone()
    for columns in layout.choices:
        if columns.elsewhere == 1:
            choices[:, columns.start : columns.stop] = 1
    return replace(leaf, choices=choices)


def _with_multipliers(leaf: Leaves, places: Tensor) -> Leaves:
    """The leaf with no multipliers, then with each of those at these places 1 alone."""
    count = len(places) + 1
    choices = leaf.choices.double().repeat(count, 1)
    choices[:, places] = torch.cat([choices.new_zeros(1, len(places)), torch.eye(len(places)).to(choices)])
    return Leaves(leaf.row.repeat(count), leaf.signs.repeat(count, 1), choices, leaf.lower.repeat(count))


def _affine(side: Side, layout: Layout, leaves: Leaves) -> tuple[Tensor, Tensor]:
    """The linear bounds as coefficients of the inputs [D, n] and constants [D]."""
    met: dict[str, Any] = {}
    lower = side.lower(leaves, layout, sound=False, met=met)
    box, slopes = side.values[0], met[""][:, 0].flatten(1)
    return slopes, lower - slopes @ box.center.flatten() + slopes.abs() @ box.radius.flatten()
