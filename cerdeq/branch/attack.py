"""Search for a point at which a row of a specification is proved to be negative: an adversarial example.

The first attack takes gradient steps from many starts at once, before branch and bound. Half of the starts are random
points. The others then take steps along a random direction of the outputs, as in output diversified initialisation
(Tashiro et al. 2020). The same query has the same starts. Later attacks start from one point of a leaf.

The attack of an evaluation (harness/attacks/pgd.py) is another: it ascends losses of labels on a module, for many
images at once, and proves nothing.
"""

from dataclasses import replace

import torch
from torch import Tensor

from cerdeq.bounds.batch_sizes import bytes_per_example
from cerdeq.bounds.ibp import propagate, values_of
from cerdeq.boxes import outward_ends
from cerdeq.branch.leaves import SearchQuery
from cerdeq.operators.interval import Context, Interval
from cerdeq.precision import counted_rounding, uncounted_rounding
from cerdeq.tracing.program import Program

_FEWEST, _MOST, _BYTES = 10, 1000, 2**22  # starts; of the values of all starts: less than a second on a core
_MOST_ALONE, _BYTES_ALONE = 100, 2**24  # where no search follows, which finds counterexamples, too
_DIVERSIFYING, _DESCENDING = 3, 40  # steps
_FIRST_STEPS = (0.5, 0.25, 0.125, 0.0625)  # of the box's radius: large ones leave narrow dents again
_STEPS = 8  # of signed gradients, from the most promising point of leaves


@torch.no_grad()
def attack(program: Program, float32: Program | None, x: Interval, spec: Tensor) -> Tensor | None:
    """Return a point [1, ...] of the box x at which a row of the spec [K, N] is proved to be negative, or None.

    It is the first attack of `verify`, from 10 to 100 starts: more than there in large networks, fewer in small ones.

    program: in float64. float32: the same in float32, or None if the network cannot be bounded in float32.
    """
    with counted_rounding(x.center.device.type):
        exact = SearchQuery(program, values_of(program, x, Context(sound=True)), spec)
        rows = torch.arange(len(spec), device=spec.device)
        fast = exact.in_float32(float32)
        return first_attack(exact, fast, rows, _count_starts(fast, _MOST_ALONE, _BYTES_ALONE))


def first_attack(exact: SearchQuery, fast: SearchQuery, rows: Tensor, starts: int | None = None) -> Tensor | None:
    """Return a point [1, ...] of the box at which a row is proved to be negative, or None.

    exact, fast: the query, as in `decide`. rows: [R], those to attack; every start descends one of them. starts: their
    number; None for as many as take less than a second on a core.
    """
    starts = starts or _count_starts(fast, _MOST, _BYTES)
    box, generator = fast.values[0], torch.Generator().manual_seed(0)
    outputs = replace(fast, spec=torch.eye(fast.spec.shape[1]).to(fast.spec))
    shape = starts, *box.center.shape[1:]
    points = box.center + box.radius * (2 * torch.rand(shape, generator=generator).to(box.center) - 1)
    directions = 2 * torch.rand(starts, fast.spec.shape[1], generator=generator).to(fast.spec) - 1
    numbers = torch.arange(starts, device=rows.device)
    target = torch.eye(len(fast.spec)).to(fast.spec)[rows[numbers % len(rows)]]
    rounds = numbers // len(rows)  # each row gets starts of every kind
    sizes = torch.tensor(_FIRST_STEPS).to(box.center)[rounds % len(_FIRST_STEPS)]
    directions[rounds % 2 == 1] = 0
    sizes = sizes.view(-1, *[1] * (box.center.dim() - 1))
    with uncounted_rounding():
        for _ in range(_DIVERSIFYING):
            points, _ = signed_step(outputs, points, directions, _FIRST_STEPS[0])
        for step in range(_DESCENDING + 1):  # the last one has size 0: it only evaluates
            before = points
            points, values = signed_step(fast, points, target, sizes * (1 - step / _DESCENDING))
            lowest = values.amin(1)
            if lowest.min() < 0 and (point := prove_point(exact, before[lowest.argmin()][None])) is not None:
                return point
    return None


def _count_starts(query: SearchQuery, most: int, most_bytes: int) -> int:
    return max(_FEWEST, min(most, most_bytes // max(1, bytes_per_example(query.values))))


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
    values, gradients = values_and_gradients(query, points, weights)
    moved = points - size * box.radius * gradients.sign()
    inside = torch.minimum(torch.maximum(moved, box.center - box.radius), box.center + box.radius)
    return inside, values


def values_and_gradients(query: SearchQuery, points: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows [D, K] at points [D, ...], and the gradients [D, ...] of their sums with these weights [D, K]."""
    with torch.enable_grad():
        free = points.detach().requires_grad_()
        values, _ = query.at(free)
        (gradients,) = torch.autograd.grad((values * weights).sum(), free)
    return values.detach(), gradients


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
