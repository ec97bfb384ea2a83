"""Leaves with better slopes and multipliers: Adam on the free choices of each, as far as it is worth it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.host import is_read
from cerdeq.bounds.optimise import adam_step
from cerdeq.bounds.precision import uncounted_rounding
from cerdeq.branch.leaves import Layout, Leaves, Side
from cerdeq.branch.split import ranked_units

_RATE = 0.5  # of that for slopes alone


@dataclass(frozen=True)
class Ascended:
    """D leaves after their ascent.

    candidates: [D, C], the units to split next, best first, -1 for none.
    points: [D, ...], the inputs where their linear bounds are least.
    values: [D, K], of all rows of the spec there.
    """

    leaves: Leaves
    candidates: Tensor
    points: Tensor
    values: Tensor


def ascended(
    search: Side, layout: Layout, leaves: Leaves, iterations: int, late: Callable[[], bool]
) -> Ascended:  # fmt: skip
    """The leaves with better choices, each until its bound is above 0; no longer than so many iterations or `late`."""
    choices, best, lower = leaves.choices.to(search.spec, copy=True), leaves.choices.clone(), leaves.lower.clone()
    moments = torch.zeros_like(choices), torch.zeros_like(choices)
    largest, active = layout.largest(choices), torch.arange(len(lower), device=lower.device)
    for iteration in range(iterations if layout.choices else 0):
        waiting = ~(lower[active] > 0)
        if is_read(iteration, active.device) and len(stay := waiting.nonzero()[:, 0]) < len(active):
            active, waiting, choices = active[stay], waiting[stay], choices[stay]
            moments = moments[0][stay], moments[1][stay]
        if not len(active) or late():
            break
        now = leaves.of(active)
        with torch.enable_grad(), uncounted_rounding():
            free = choices.detach().requires_grad_()
            reached = search.lower(replace(now, choices=free), layout, sound=False)
            (gradient,) = torch.autograd.grad(reached.sum(), free)
        reached = reached.detach().to(lower)
        better = (reached > lower[active]) & waiting
        lower[active] = torch.where(better, reached, lower[active])
        best[active] = torch.where(better[:, None], choices.to(best), best[active])
        adam_step(choices, gradient, moments, iteration, _RATE * layout.scales[now.row], largest)
    return _looked_at(search, layout, replace(leaves, choices=best, lower=lower))


def _looked_at(search: Side, layout: Layout, leaves: Leaves) -> Ascended:
    """The leaves at their choices."""
    met: dict[str, Any] = {}
    with uncounted_rounding():
        reached = search.lower(leaves, layout, sound=False, met=met).to(leaves.lower)
        box = search.values[0]
        points = box.center - box.radius * torch.sign(met[""][:, 0])
        values, preactivations = search.at(points)
    higher = replace(leaves, lower=torch.maximum(leaves.lower, reached))
    return Ascended(higher, ranked_units(layout, met, preactivations), points, values)
