"""Search for a point at which a row of a specification is proved to be negative: an adversarial example."""

import torch
from torch import Tensor

from cerdeq.bounds.forward import propagate
from cerdeq.boxes import outward_ends
from cerdeq.branch.leaves import Problem
from cerdeq.rules.interval import Context, Interval

_STEPS = 8  # of signed gradients, from the most promising point


def find_counterexample(exact: Problem, fast: Problem, points: Tensor, values: Tensor) -> Tensor | None:
    """Return a point [1, ...] of the box at which a row is proved to be negative, or None.

    The search starts from the most promising of the points [D, ...]. values: [D, K], all rows at these points.
    """
    number, row = divmod(int(values.argmin()), values.shape[1])
    point, value = points[number : number + 1], values[number].amin()
    box = fast.values[0]
    for step in range(_STEPS):
        if value < 0:
            break
        with torch.enable_grad():
            free = point.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(fast.at(free)[0][:, row].sum(), free)
        next_point = point - box.radius / 2 * (1 - step / _STEPS) * gradient.sign()
        point = torch.minimum(torch.maximum(next_point, box.center - box.radius), box.center + box.radius)
        value = fast.at(point)[0].amin()
    return prove_point(exact, point) if value < 0 else None


def prove_point(exact: Problem, point: Tensor) -> Tensor | None:
    """Move the point inside the box by more than rounding. Return it if a row is proved negative there, else None."""
    box = exact.values[0]
    reach = (box.radius * (1 - 1e-9) - 4 * torch.finfo(torch.float64).eps * box.center.abs()).clamp(min=0)
    inside = box.center + torch.minimum(torch.maximum(point.double() - box.center, -reach), reach)
    value = propagate(exact.program, Interval(inside, torch.zeros_like(inside)), Context(sound=True), exact.spec[None])
    _, upper = outward_ends(value.box)
    return inside if bool((upper < 0).any()) else None
