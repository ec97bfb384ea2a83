"""Choose the ReLU to split: by the cost of its relaxation, then by the bounds of both cases.

At the input that minimises a leaf's linear bound, the row's value exceeds the bound by a sum over units: the size of
the coefficient times the distance of the line from the activation. The cost of a unit is that term plus the largest
cost of its chord, at 0, as in BaBSR (Bunel et al. 2020). The first is better in small networks, the second in larger
ones. Among the few units with the highest cost, the one is split whose worse case has the best bound, as in filtered
smart branching (De Palma et al. 2021).
"""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cerdeq.branch.leaves import Layout, Leaves, Problem, concatenate, unstable_units
from cerdeq.rules.precision import uncounted_rounding

_REMEMBERED = 8  # candidates of each leaf
_COMPARED = 3  # candidates whose cases are bounded
_FILLED = 8  # with fewer leaves than this, several units of each are split at once
_NEITHER = 1e-30  # the cost of units that cost nothing: they come last


def ranked_units(layout: Layout, seen: dict[str, Any], preactivations: dict[str, Tensor]) -> Tensor:
    """Return the unstable units [D, C] of each leaf, the highest cost first, -1 for none.

    seen: of a backward pass. preactivations: by step, [D, *shape], at the inputs that minimise the bounds.
    """
    costs = [seen[""].new_zeros(len(seen[""]), 0)]
    for columns in layout.units:
        coefficients, around = seen[columns.name]
        a = coefficients[:, 0]
        at_worst = around.offset.abs() * ((a < 0) == around.convex)
        cost = a.abs() * (around.distance(preactivations[columns.name], upper=a < 0) + at_worst)
        costs.append((unstable_units(around) * (cost + _NEITHER)).flatten(1)[:, columns.elements])
    all_costs = torch.cat(costs, dim=1)
    best = F.pad(all_costs, (0, max(0, _REMEMBERED - all_costs.shape[1]))).topk(_REMEMBERED, dim=1)
    return torch.where(best.values > 0, best.indices, -1)


def split(search: Problem, layout: Layout, leaves: Leaves, candidates: Tensor, batch_size: int) -> Leaves:
    """Return both cases of each leaf's best unit, or all cases of several units where there are few leaves.

    candidates: [D, C] of `ranked_units`, at least one for each leaf. batch_size: how many leaves to bound together.
    """
    candidates = _sort_candidates(search, layout, leaves, candidates, batch_size)
    depth = max(1, int(math.log2(min(batch_size, _FILLED) / len(candidates))))
    return make_cases(leaves, candidates[:, :depth])


def _sort_candidates(search: Problem, layout: Layout, leaves: Leaves, candidates: Tensor, batch_size: int) -> Tensor:
    """Return the candidates, the first few sorted by the bounds of their cases before any ascent."""
    first = candidates[:, :_COMPARED]
    cases = concatenate([make_cases(leaves, units[:, None].clamp(min=0)) for units in first.T])
    parts = [cases.of(slice(start, start + batch_size)) for start in range(0, len(cases.row), batch_size)]
    with uncounted_rounding():
        lower = torch.cat([search.lower(part, layout, sound=False) for part in parts])
    pairs = lower.clamp(max=0).view(first.shape[1], 2, len(first))
    scores = torch.where(first.T >= 0, pairs.amin(1) + 0.1 * pairs.amax(1), -torch.inf)
    order = scores.argsort(dim=0, descending=True, stable=True).T
    return torch.cat([first.gather(1, order), candidates[:, _COMPARED:]], dim=1)


def make_cases(leaves: Leaves, units: Tensor) -> Leaves:
    """Return the leaves with all combinations of signs of their units [D, depth], -1 for none; first all at least 0."""
    signs, exists = leaves.signs, leaves.row >= 0
    for column in units.T:
        named = column.repeat(len(signs) // len(column))[:, None]
        index, before = named.clamp(min=0), signs.gather(1, named.clamp(min=0))
        signs = torch.cat([signs.scatter(1, index, torch.where(named >= 0, sign, before)) for sign in (1, -1)])
        exists = torch.cat([exists, exists & (named[:, 0] >= 0)])
    cases = exists.nonzero()[:, 0]
    return replace(leaves.of(cases % len(leaves.row)), signs=signs[cases])
