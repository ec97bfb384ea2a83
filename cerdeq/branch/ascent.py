"""Adam on the slopes and multipliers of leaves, until their bounds are above 0."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.alpha_crown import adam_step
from cerdeq.branch.leaves import Layout, Leaves, SearchQuery
from cerdeq.branch.split import Candidates, ranked_units
from cerdeq.host import is_host_reading
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
    choices, best, lower = leaves.choices.to(search.spec, copy=True), leaves.choices.clone(), leaves.lower.clone()
    moments = torch.zeros_like(choices), torch.zeros_like(choices)
    largest, active = layout.largest(choices), torch.arange(len(lower), device=lower.device)
    for iteration in range(steps.count if layout.choices else 0):
        is_open = ~(lower[active] > 0)
        if is_host_reading(iteration, active.device) and len(stay := is_open.nonzero()[:, 0]) < len(active):
            active, is_open, choices = active[stay], is_open[stay], choices[stay]
            moments = moments[0][stay], moments[1][stay]
        if not len(active):
            break
        subset = leaves.of(active)
        with torch.enable_grad(), uncounted_rounding():
            free = choices.detach().requires_grad_()
            lower_now = search.lower(replace(subset, choices=free), layout, sound=False)
            (gradient,) = torch.autograd.grad(lower_now.sum(), free)
        lower_now = lower_now.detach().to(lower)
        better = (lower_now > lower[active]) & is_open
        lower[active] = torch.where(better, lower_now, lower[active])
        best[active] = torch.where(better[:, None], choices.to(best), best[active])
        adam_step(choices, gradient, moments, iteration, steps.rate * layout.scales[subset.row], largest)
    return _evaluate_leaves(search, layout, replace(leaves, choices=best, lower=lower))


def _evaluate_leaves(search: SearchQuery, layout: Layout, leaves: Leaves) -> Ascent:
    """Return the leaves with their bounds at their choices, and what the next split needs to know."""
    relaxations: dict[str, Any] = {}
    with uncounted_rounding():
        lower_now = search.lower(leaves, layout, sound=False, relaxations=relaxations).to(leaves.lower)
        box = search.values[0]
        points = box.center - box.radius * torch.sign(relaxations[""][:, 0])
        values, preactivations = search.at(points)
    leaves = replace(leaves, lower=torch.maximum(leaves.lower, lower_now))
    return Ascent(leaves, ranked_units(layout, relaxations, preactivations), points, values)
