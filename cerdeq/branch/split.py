"""Choose the ReLU to split: by the cost of its relaxation, then by the gains of both cases.

At the input that minimises a leaf's linear bound, the row's value exceeds the bound by a sum over units: the size of
the coefficient times the distance of the line from the activation. The cost of a unit is that term plus the largest
cost of its chord, at 0, as in BaBSR (Bunel et al. 2020). The first is better in small networks, the second in larger
ones. The eight units of the highest cost are remembered. The first three of these are sorted again, by the bounds of
both cases, as in filtered smart branching (De Palma et al. 2021), and the first one is split. The score is the product
of what both cases gain, in units of what the leaf lacks, as in strong branching (Achterberg 2007).
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cerdeq.branch.leaves import Layout, Leaves, SearchQuery, TensorRows, concatenate, unstable_units
from cerdeq.branch.threads import map_parts, slices
from cerdeq.precision import uncounted_rounding

_REMEMBERED = 8  # candidates of each leaf
_COMPARED = 3  # candidates whose cases are bounded
_FILLED = 8  # with fewer leaves than this, several units of each are split at once
_SMALLEST_GAIN = 1e-4  # added to each case's: if one gains nothing, the other one counts
_SMALLEST_COST = 1e-30  # added to each cost, so that units with cost 0 can still be split, last


@dataclass(frozen=True)
class Candidates(TensorRows):
    """The units to split next in each of D leaves.

    units: [D, C], best first, -1 for none. multipliers: [D, C, 2], the first multiplier in the cases p >= 0 and p <= 0.
    With it, the bound's coefficient on p is the same as before the split.
    """

    units: Tensor
    multipliers: Tensor


def no_candidates(leaves: Leaves) -> Candidates:
    """Return candidates of leaves that are not to be split."""
    units = torch.full((len(leaves.row), _REMEMBERED), -1, device=leaves.row.device)
    return Candidates(units, leaves.choices.new_zeros(*units.shape, 2))


def ranked_units(layout: Layout, relaxations: dict[str, Any], preactivations: dict[str, Tensor]) -> Candidates:
    """Return the unstable units of each leaf, the highest cost first.

    relaxations: of a backward pass. preactivations: by step, [D, *shape], at the inputs that minimise the bounds.
    """
    costs = [relaxations[""].new_zeros(len(relaxations[""]), 0)]
    starts = [relaxations[""].new_zeros(len(relaxations[""]), 0, 2)]
    for columns in layout.units:
        coefficients, relaxation = relaxations[columns.name]
        a, p = coefficients[:, 0], preactivations[columns.name].flatten(1)
        p = p[:, columns.elements] if columns.is_of_relu else p.view_as(a)
        at_worst = relaxation.offset.abs() * ((a < 0) == relaxation.convex)
        cost = unstable_units(relaxation) * (
            a.abs() * (relaxation.distance(p, upper=a < 0) + at_worst) + _SMALLEST_COST
        )
        through_free, free = a * ((a > 0) == relaxation.convex), relaxation.free[:, 0]
        both = torch.stack([through_free * (1 - free), through_free * (free - relaxation.negative_slope)], dim=-1)
        both = both.clamp(min=0)
        if not columns.is_of_relu:
            cost, both = cost.flatten(1)[:, columns.elements], both.flatten(1, -2)[:, columns.elements]
        costs.append(cost)
        starts.append(both)
    missing = max(0, _REMEMBERED - sum(part.shape[1] for part in costs))
    best = F.pad(torch.cat(costs, dim=1), (0, missing)).topk(_REMEMBERED, dim=1)
    multipliers = F.pad(torch.cat(starts, dim=1), (0, 0, 0, missing))
    multipliers = multipliers.gather(1, best.indices[..., None].expand(-1, -1, 2))
    return Candidates(torch.where(best.values > 0, best.indices, -1), multipliers)


def split(search: SearchQuery, layout: Layout, leaves: Leaves, candidates: Candidates, batch_size: int) -> Leaves:
    """Return both cases of each leaf's best unit, or all cases of several units where there are few leaves.

    candidates: at least one for each leaf. batch_size: how many leaves to bound together.
    """
    candidates = _sort_candidates(search, layout, leaves, candidates, batch_size)
    depth = max(1, int(math.log2(min(batch_size, _FILLED) / len(leaves.row))))
    return make_cases(layout, leaves, candidates, depth)


def _sort_candidates(
    search: SearchQuery, layout: Layout, leaves: Leaves, candidates: Candidates, batch_size: int
) -> Candidates:
    """Return the candidates, the first few sorted by the gains of their cases before any ascent."""
    first = candidates.units[:, :_COMPARED]
    singles = [
        Candidates(units[:, None].clamp(min=0), candidates.multipliers[:, n : n + 1]) for n, units in enumerate(first.T)
    ]
    cases = concatenate([make_cases(layout, leaves, single, 1) for single in singles])

    def bound(part: slice) -> Tensor:
        with uncounted_rounding():
            return search.lower(cases.of(part), layout, sound=False)

    lower = torch.cat(map_parts(bound, slices(len(cases.row), batch_size), cases.row.device))
    before = leaves.lower.to(lower).clamp(max=-torch.finfo(lower.dtype).tiny)
    gains = 1 - lower.view(first.shape[1], 2, len(first)) / before  # 1: the case is closed
    of_one, of_other = (gains.clamp(0, 1) + _SMALLEST_GAIN).unbind(1)
    scores = torch.where(first.T >= 0, of_one * of_other, -torch.inf)  # prod would be compiled on a GPU
    order = scores.argsort(dim=0, descending=True, stable=True).T
    order = torch.cat([order, torch.arange(_COMPARED, candidates.units.shape[1]).to(order).expand(len(order), -1)], 1)
    multipliers = candidates.multipliers.gather(1, order[..., None].expand(-1, -1, 2))
    return Candidates(candidates.units.gather(1, order), multipliers)


def make_cases(layout: Layout, leaves: Leaves, candidates: Candidates, depth: int) -> Leaves:
    """Return the leaves with every combination of signs of their first `depth` candidates, and what follows from it.

    The leaves with all signs 1 come first.
    """
    signs, choices, exists = leaves.signs, leaves.choices, torch.ones_like(leaves.row, dtype=torch.bool)
    for number in range(min(depth, candidates.units.shape[1])):
        copies = len(signs) // len(leaves.row)
        named = candidates.units[:, number].repeat(copies)[:, None]
        starts = candidates.multipliers[:, number].to(choices).repeat(copies, 1)
        index = named.clamp(min=0)
        column, is_open = layout.multiplier_columns[index], named >= 0
        if number:  # the sign may follow from those before
            is_open = is_open & (signs.gather(1, index) == 0)
        signs = torch.cat([_with(signs, index, is_open, signs.new_full(named.shape, sign)) for sign in (1, -1)])
        signs = layout.parallel.complete(signs)
        choices = torch.cat([_with(choices, column, is_open, starts[:, side : side + 1]) for side in (0, 1)])
        exists = torch.cat([exists, exists & is_open[:, 0]])
    cases = exists.nonzero()[:, 0]
    return replace(leaves.of(cases % len(leaves.row)), signs=signs[cases], choices=choices[cases])


def _with(rows: Tensor, index: Tensor, is_set: Tensor, values: Tensor) -> Tensor:
    """Return rows [D, n] with values [D, 1] at index [D, 1] where `is_set`."""
    return rows.scatter(1, index, torch.where(is_set, values, rows.gather(1, index)))
