"""Adam on the slopes and multipliers of leaves, until their bounds are above 0."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.alpha_crown import ascend
from cerdeq.branch.leaves import Layout, Leaves, SearchQuery
from cerdeq.branch.split import Candidates, ranked_units
from cerdeq.precision import uncounted_rounding


@dataclass(frozen=True)
class Steps:
    """How leaves are ascended: the number of steps, and the rate of the first one, in units of alpha-CROWN's."""

    count: int
    rate: float = 0.5


@dataclass(frozen=True)
class Ascent:
    """D leaves after the ascent of their bounds.

    candidates: the units to split next.
    points: [D, ...], the inputs that minimise their linear bounds.
    values: [D, K], all rows of the spec there.
    """

    leaves: Leaves
    candidates: Candidates
    points: Tensor
    values: Tensor


def ascend_leaves(search: SearchQuery, layout: Layout, leaves: Leaves, steps: Steps) -> Ascent:
    """Improve the choices of each leaf until its bound is above 0, for at most these steps."""

    def evaluate(numbers: Tensor, free: dict[str, Tensor]) -> Tensor:
        return search.lower(replace(leaves.of(numbers), choices=free[""][:, 0]), layout, sound=False)[:, None]

    def rate(numbers: Tensor) -> Tensor:
        return steps.rate * layout.scales[leaves.row[numbers]].unsqueeze(1)

    choices = {"": leaves.choices.to(search.spec).unsqueeze(1)} if layout.choices else {}
    largest = layout.largest(search.spec)
    best, lower = ascend(evaluate, choices, leaves.lower[:, None], 0.0, steps.count, rate, largest)
    if best:
        leaves = replace(leaves, choices=best[""][:, 0].to(leaves.choices), lower=lower[:, 0])
    relaxations: dict[str, Any] = {}
    with uncounted_rounding():
        lower_now = search.lower(leaves, layout, sound=False, relaxations=relaxations).to(leaves.lower)
        box = search.values[0]
        points = box.center - box.radius * torch.sign(relaxations[""][:, 0])
        values, preactivations = search.at(points)
    leaves = replace(leaves, lower=torch.maximum(leaves.lower, lower_now))
    return Ascent(leaves, ranked_units(layout, relaxations, preactivations), points, values)
