"""Find candidate counterexamples with an integer program (HiGHS); `prove_point` checks them.

It runs only if few units are unstable. The network is affine layers, ReLUs and equilibria in a chain. The program is
exact for them: an unstable unit has a binary variable, its sign (Tjeng et al. 2019). An equilibrium's units are coupled
by W.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cerdeq.boxes import outward_ends
from cerdeq.branch.leaves import SearchQuery
from cerdeq.deadline import check, seconds_left
from cerdeq.equilibrium.certificate import reachable_preactivation
from cerdeq.equilibrium.layer import FixedPoint
from cerdeq.equilibrium.monotone.network import affine_map
from cerdeq.equilibrium.recurrence import dense_weight

_EXACT = ("relu", "fixed_point")  # activations that the program has exactly
_MOST_UNSTABLE, _MOST_UNITS = 300, 4000
_SHARE, _MOST_SECONDS = 0.25, 10.0  # of the time left
_ZERO = 1e-12  # coefficients below are none, in units of the largest
_BELOW = 1e-6  # how far below 0 the row must be, in units of its size
_FIRST_POINT = 1e9  # a gap at which the first point ends the solution


@dataclass(frozen=True)
class _Layer:
    """Units z = relu(p), p = W z + M v + o, v the units of the layer before. Only those with high > 0 are variables.

    matrix: M, sparse. low, high: ends of p.
    """

    weight: np.ndarray
    matrix: Any
    offset: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @property
    def unstable(self) -> np.ndarray:
        """The numbers of the unstable units among the variables."""
        return np.flatnonzero(self.low < 0)


def solve_integer_program(query: SearchQuery, rows: Tensor) -> Tensor | None:
    """Return a point [d] at which one of these rows of the spec should be negative, None if none is found in time.

    query: in float64.
    """
    layers = _layers(query)
    if not layers:
        return None
    *layers, last = layers
    box, limit = query.values[0], min(_SHARE * seconds_left(), _MOST_SECONDS)
    program = _Program(layers, (box.center - box.radius).flatten().numpy(), (box.center + box.radius).flatten().numpy())
    for row in rows.tolist():
        check()
        x = program.point_below(last.matrix[[row]].toarray()[0], float(last.offset[row]), limit / len(rows))
        if x is not None:
            return torch.from_numpy(x)
    return None


def _layers(query: SearchQuery) -> list[_Layer]:
    """Return the layers and, last, the rows of the spec; nothing if the network is of another kind or too large."""
    from scipy import sparse

    program, values, layers = query.program, query.values, list[_Layer]()
    numbers = [n for n, step in enumerate(program.steps, start=1) if step.record and step.record.preactivation]
    if any(program.steps[n - 1].record.name not in _EXACT for n in numbers):  # type: ignore[union-attr]
        return []
    read = [program.steps[n - 1].sources[0] for n in numbers]
    if values[0].center.device.type != "cpu" or any(values[at].center.numel() > _MOST_UNITS for at in read):
        return []
    boxes = [_preactivation(query, number, at) for number, at in zip(numbers, read, strict=True)]
    if sum(int(((low < 0) & (high > 0)).sum()) for low, high, _ in boxes) > _MOST_UNSTABLE:
        return []
    boxes.append(_preactivation(query, None, program.output))
    before, alive = 0, np.arange(values[0].center.numel())
    for number, at, (low, high, weight) in zip([*numbers, None], [*read, program.output], boxes, strict=True):
        size = len(low)
        keep = np.flatnonzero(high > 0)
        if number is not None and not len(keep):
            return []  # the outputs are constant
        spec = query.spec
        if number is not None:
            spec = torch.zeros(len(keep), size, dtype=spec.dtype)
            spec[torch.arange(len(keep)), torch.from_numpy(keep)] = 1
        affine = affine_map(program, values, spec, at, before)
        if affine is None:
            return []
        matrix = affine.matrix.numpy()[:, alive]
        matrix[np.abs(matrix) < _ZERO * np.abs(matrix).max(initial=0)] = 0
        part = weight[np.ix_(keep, keep)]
        layers.append(_Layer(part, sparse.csr_matrix(matrix), affine.offset.numpy(), low[keep], high[keep]))
        before, alive = number or 0, keep
    return layers


def _preactivation(query: SearchQuery, number: int | None, at: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the ends of p and W, zeros for a ReLU, of the activation that is value `number` and reads value `at`."""
    box, weight = query.values[at].box, torch.zeros(())
    if number is not None and isinstance(layer := query.program.steps[number - 1].target, FixedPoint):
        box = reachable_preactivation(layer.weight, box, query.values[number].box)
        weight = dense_weight(layer.weight.detach(), box.center.shape[1:])
    low, high = (end.flatten().numpy() for end in outward_ends(box))
    return low, high, np.broadcast_to(weight.double().numpy(), (len(low), len(low)))


class _Program:
    """The integer program of a network: variables are the inputs, then of each layer its units, then its signs."""

    def __init__(self, layers: list[_Layer], low: np.ndarray, high: np.ndarray):
        from scipy import sparse

        sizes = [len(low)]
        for layer in layers:
            sizes += [len(layer.low), len(layer.unstable)]
        self.starts = np.cumsum([0, *sizes])
        ends = [(low, high)]
        parts, lows, highs = [], [], []

        def add(blocks: dict[int, Any], lower: Any, upper: Any, rows: np.ndarray) -> None:
            empty = [sparse.csr_matrix((len(rows), size)) for size in sizes]
            parts.append(sparse.hstack([blocks[i][rows] if i in blocks else empty[i] for i in range(len(sizes))]))
            lows.append(np.broadcast_to(lower, len(rows)))
            highs.append(np.broadcast_to(upper, len(rows)))

        for number, layer in enumerate(layers):
            before, units, signs = max(0, 2 * number - 1), 2 * number + 1, 2 * number + 2
            count, unstable = len(layer.low), layer.unstable
            stable = np.setdiff1d(np.arange(count), unstable)
            equation = {units: sparse.csr_matrix(np.eye(count) - layer.weight), before: -layer.matrix}
            choice = sparse.csr_matrix(
                (np.ones(len(unstable)), (unstable, np.arange(len(unstable)))), (count, len(unstable))
            )
            offset, lower, upper = layer.offset, layer.low, layer.high
            add(equation, offset[stable], offset[stable], stable)
            add(equation, offset[unstable], np.inf, unstable)
            off = equation | {signs: sparse.diags(-lower) @ choice}
            add(off, -np.inf, (offset - lower)[unstable], unstable)
            on = {units: sparse.identity(count, format="csr"), signs: sparse.diags(-upper) @ choice}
            add(on, -np.inf, 0.0, unstable)
            ends += [(np.maximum(lower, 0), upper), (np.zeros(len(unstable)), np.ones(len(unstable)))]
        self.matrix = sparse.vstack(parts)
        self.low, self.high = np.concatenate(lows), np.concatenate(highs)
        self.ends = tuple(np.concatenate(end) for end in zip(*ends, strict=True))
        self.is_integer = np.concatenate([np.full(size, i > 0 and i % 2 == 0) for i, size in enumerate(sizes)])
        self.inputs, self.outputs = sizes[0], slice(*self.starts[-3:-1]) if layers else slice(0, sizes[0])

    def point_below(self, row: np.ndarray, offset: float, seconds: float) -> np.ndarray | None:
        """Return inputs at which row . z + offset < 0, z the last layer's units; None if none are found in time."""
        from scipy import sparse
        from scipy.optimize import Bounds, LinearConstraint, milp

        cost = np.zeros(len(self.is_integer))
        cost[self.outputs] = row
        size = np.abs(row) @ np.abs(self.ends[1][self.outputs]) + abs(offset)
        constraints = LinearConstraint(
            sparse.vstack([self.matrix, cost[None]]), np.append(self.low, -np.inf),
            np.append(self.high, -offset - _BELOW * size),
        )  # fmt: skip
        options = {"time_limit": seconds, "mip_rel_gap": _FIRST_POINT}
        result = milp(
            cost, integrality=self.is_integer, bounds=Bounds(*self.ends), constraints=constraints, options=options
        )
        return None if result.x is None else result.x[: self.inputs]
