"""Which ReLU to split: what its line costs, then the bounds of both cases.

At the input where a leaf's linear bound is least, the row's value exceeds the bound by the sum over units of their
coefficient's size times the distance of the line from the activation there. To that is added what a chord costs at
worst, at 0, as in BaBSR (Bunel et al. 2020): the first is better in small networks, the second a little in larger ones.
Of the few units that cost most, the one is split whose worse case is bounded best, as in filtered smart branching (De
Palma et al. 2021).
"""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cerdeq.bounds.precision import uncounted_rounding
from cerdeq.branch.leaves import Layout, Leaves, Side, open_units, together

_REMEMBERED = 8  # units a leaf
_COMPARED = 3  # of them, by the bounds of their cases
_FILLED = 8  # leaves up to which several units of each are split at once
_NEITHER = 1e-30  # for units that cost nothing: behind all that do


def ranked_units(layout: Layout, met: dict[str, Any], preactivations: dict[str, Tensor]) -> Tensor:
    """The units [D, C] of leaves of either sign, what costs most first, -1 for none.

    met: of a backward pass of the leaves; preactivations: by step, [D, *shape], where its bounds are least.
    """
    costs = [met[""].new_zeros(len(met[""]), 0)]
    for columns in layout.units:
        coefficients, around = met[columns.name]
        a = coefficients[:, 0]
        at_worst = around.offset.abs() * ((a < 0) == around.convex)
        cost = a.abs() * (around.distance(preactivations[columns.name], upper=a < 0) + at_worst)
        costs.append((open_units(around) * (cost + _NEITHER)).flatten(1)[:, columns.elements])
    every = torch.cat(costs, dim=1)
    best = F.pad(every, (0, max(0, _REMEMBERED - every.shape[1]))).topk(_REMEMBERED, dim=1)
    return torch.where(best.values > 0, best.indices, -1)


def split(search: Side, layout: Layout, leaves: Leaves, candidates: Tensor, at_once: int) -> Leaves:
    """All cases of each leaf's best unit, of several where the leaves are few.

    candidates: [D, C] of `ranked_units`, at least one for each leaf. at_once: how many leaves to bound together.
    """
    candidates = _compared(search, layout, leaves, candidates, at_once)
    depth = max(1, int(math.log2(min(at_once, _FILLED) / len(candidates))))
    return _cases(leaves, candidates[:, :depth])


def _compared(search: Side, layout: Layout, leaves: Leaves, candidates: Tensor, at_once: int) -> Tensor:
    """The candidates, the first few in the order of the bounds of their cases before any ascent."""
    first = candidates[:, :_COMPARED]
    cases = together([_cases(leaves, units[:, None].clamp(min=0)) for units in first.T])
    parts = [cases.of(slice(start, start + at_once)) for start in range(0, len(cases.row), at_once)]
    with uncounted_rounding():
        reached = torch.cat([search.lower(part, layout, sound=False) for part in parts])
    pairs = reached.clamp(max=0).view(first.shape[1], 2, len(first))
    scores = torch.where(first.T >= 0, pairs.amin(1) + 0.1 * pairs.amax(1), -torch.inf)
    order = scores.argsort(dim=0, descending=True, stable=True).T
    return torch.cat([first.gather(1, order), candidates[:, _COMPARED:]], dim=1)


def _cases(leaves: Leaves, units: Tensor) -> Leaves:
    """The leaves with all signs of their units [D, depth], of which -1 names none: first all at least 0."""
    signs, alive = leaves.signs, leaves.row >= 0
    for column in units.T:
        named = column.repeat(len(signs) // len(column))[:, None]
        place, before = named.clamp(min=0), signs.gather(1, named.clamp(min=0))
        signs = torch.cat([signs.scatter(1, place, torch.where(named >= 0, sign, before)) for sign in (1, -1)])
        alive = torch.cat([alive, alive & (named[:, 0] >= 0)])
    cases = alive.nonzero()[:, 0]
    return replace(leaves.of(cases % len(leaves.row)), signs=signs[cases])
