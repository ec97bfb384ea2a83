"""The first attack: gradient steps from many starts at once, before branch and bound.

Half of the starts are random points. The others then take steps along a random direction of the outputs, as in output
diversified initialisation (Tashiro et al. 2020). The same query has the same starts.
"""

from dataclasses import replace

import torch
from torch import Tensor

from cerdeq.bounds.memory import bytes_per_example
from cerdeq.branch.counterexample import prove_point, signed_step
from cerdeq.branch.leaves import SearchQuery
from cerdeq.precision import uncounted_rounding

_FEWEST, _MOST, _BYTES = 10, 1000, 2**22  # starts; of the values of all starts: less than a second on a core
_DIVERSIFYING, _DESCENDING = 3, 40  # steps
_FIRST_STEPS = (0.5, 0.25, 0.125, 0.0625)  # of the box's radius: large ones leave narrow dents again


def first_attack(exact: SearchQuery, fast: SearchQuery, rows: Tensor) -> tuple[Tensor, bool]:
    """Return a point [1, ...] of the box, and whether a row is proved to be negative there.

    If none is, it is the last step's point with the smallest value.

    exact, fast: the query, as in `decide`. rows: [R], those to attack; every start descends one of them.
    """
    starts = max(_FEWEST, min(_MOST, _BYTES // max(1, bytes_per_example(fast.values))))
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
                return point, True
    return before[lowest.argmin()][None], False
