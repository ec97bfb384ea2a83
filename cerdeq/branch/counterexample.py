"""Search for a point at which a row of a specification is proved to be negative: an adversarial example."""

import torch
from torch import Tensor

from cerdeq.bounds.ibp import propagate
from cerdeq.boxes import outward_ends
from cerdeq.branch.leaves import SearchQuery
from cerdeq.operators.interval import Context, Interval

_STEPS = 8  # of signed gradients, from the most promising point


def find_counterexample(exact: SearchQuery, fast: SearchQuery, points: Tensor, values: Tensor) -> Tensor | None:
    """Return a point [1, ...] of the box at which a row is proved to be negative, or None.

    The search starts from the most promising of the points [D, ...]. values: [D, K], all rows at these points.
    """
    number, row = divmod(int(values.argmin()), values.shape[1])
    point, value = points[number : number + 1], values[number].amin()
    weights = torch.eye(values.shape[1]).to(values)[row]
    for step in range(_STEPS):
        if value < 0:
            break
        point, _ = signed_step(fast, point, weights, (1 - step / _STEPS) / 2)
        value = fast.at(point)[0].amin()
    return prove_point(exact, point) if value < 0 else None


def signed_step(query: SearchQuery, points: Tensor, weights: Tensor, size: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return points [D, ...] after a signed step down their weighted rows [D, K], and all rows' values before it."""
    box = query.values[0]
    with torch.enable_grad():
        free = points.detach().requires_grad_()
        values, _ = query.at(free)
        (gradient,) = torch.autograd.grad((values * weights).sum(), free)
    moved = points - size * box.radius * gradient.sign()
    inside = torch.minimum(torch.maximum(moved, box.center - box.radius), box.center + box.radius)
    return inside, values.detach()


def prove_point(exact: SearchQuery, point: Tensor) -> Tensor | None:
    """Move the point, [1, ...] or flat, inside the box by more than rounding.

    Return it if a row is proved negative there, else None.
    """
    box = exact.values[0]
    allowed = (box.radius * (1 - 1e-9) - 4 * torch.finfo(torch.float64).eps * box.center.abs()).clamp(min=0)
    inside = box.center + torch.minimum(
        torch.maximum(point.double().view_as(box.center) - box.center, -allowed), allowed
    )
    value = propagate(exact.program, Interval(inside, torch.zeros_like(inside)), Context(sound=True), exact.spec[None])
    _, upper = outward_ends(value.box)
    return inside if bool((upper < 0).any()) else None
