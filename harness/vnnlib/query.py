"""Cases of one box as a query for `cerdeq.verify`: are all outputs of a network positive over the whole box?

The network is the given one, then for each case the largest of its constraints' values, coefficients . outputs - bound.
No input satisfies the case if that is positive everywhere. The maximum is made of ReLUs, max(a, b) = a + relu(b - a),
so that branch and bound splits it as any other layer: a slope of these ReLUs is a weight of the constraints, and splits
make the bound of a conjunction exact.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cerdeq import Box, bound
from cerdeq.deadline import check as check_deadline
from harness.common.errors import InputError
from harness.common.rounding import round_up
from harness.vnnlib.properties import LARGEST, Case, Constraint, InputBox


class _Row(NamedTuple):
    """A constraint times a positive number: weight . outputs <= bound, up to the errors of the weights.

    weight: [outputs], the coefficients rounded to float64. errors: of those that are not exact, by number.
    """

    weight: np.ndarray
    bound: Fraction
    errors: dict[int, Fraction]


class Violations(nn.Module):
    """Outputs [B, N] -> for each case the largest value of its constraints, at least, [B, cases], in float64.

    Each constraint is scaled by a positive number. Its bound is rounded up, to float32 if the coefficients are float32,
    too, so that values are rounded down. It is also raised by what rounded coefficients change: at most their error
    times `largest`, bounds [outputs] of the outputs' absolute values. Raises InputError if such a bound is above
    1e30, and DeadlineError. Layers are dense: a property's groups bound the number of constraints.
    """

    def __init__(self, cases: Sequence[Case], rows: Sequence[_Row], largest: Tensor):
        super().__init__()
        weight, bias = [row.weight for row in rows], [_constant(row, largest) for row in rows]
        self.values = _linear(torch.from_numpy(np.stack(weight)), torch.tensor(bias, dtype=torch.float64))
        self.first, self.difference, self.relu = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        counts = [len(case.constraints) for case in cases]
        while max(counts) > 1:
            check_deadline()
            first, difference = _pairs(counts)
            self.first.append(first)
            self.difference.append(difference)
            self.relu.append(nn.ReLU())
            counts = [(count + 1) // 2 for count in counts]

    def forward(self, outputs: Tensor) -> Tensor:
        """Return the largest values."""
        values = self.values(outputs)
        for first, difference, relu in zip(self.first, self.difference, self.relu, strict=True):
            values = first(values) + relu(difference(values))
        return values


def with_violations(network: nn.Module, region: Box, cases: Sequence[Case], outputs: int) -> nn.Sequential:
    """Return the network in float64, then `Violations` of the cases over the region. Raises InputError as these do.

    Certificates name its ReLUs as `cerdeq.tracing` does: modules `network.<path>`, functions such as `relu_1`, and
    `violations.relu.<level>`.
    """
    flat = with_flat_outputs(network)
    rows = _rows(cases, outputs)
    (largest,) = _largest_outputs(flat, region, [rows], outputs)
    layers = {"network": flat[0], "flatten": flat[1], "violations": Violations(cases, rows, largest)}
    return nn.Sequential(OrderedDict(layers)).eval()


def with_flat_outputs(network: nn.Module) -> nn.Sequential:
    """Return a copy of the network in float64, with outputs [B, N]."""
    return nn.Sequential(copy.deepcopy(network).double(), nn.Flatten()).eval()


def query_of_boxes(
    model: nn.Module, groups: Sequence[Sequence[Case]], shape: tuple[int, ...], outputs: int
) -> tuple[Box, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return boxes, rows [B, R, outputs], numbers and cases [B, R]: no input meets a case if one of its rows is larger.

    model: from `with_flat_outputs`. groups: the cases of each box, all with constraints. Raises InputError as
    `Violations` does.
    """
    regions = [region_of(cases[0].box, shape) for cases in groups]
    region = Box(torch.cat([each.center for each in regions]), torch.cat([each.radius for each in regions]))
    rows_of_boxes = [_rows(cases, outputs) for cases in groups]
    numbers = [[number for number, case in enumerate(cases) for _ in case.constraints] for cases in groups]
    bounds = [
        [-_constant(row, largest) for row in rows]
        for rows, largest in zip(rows_of_boxes, _largest_outputs(model, region, rows_of_boxes, outputs), strict=True)
    ]
    most = max(map(len, rows_of_boxes))

    def padded(items: list[Any]) -> list[Any]:
        return [*items, *[items[-1]] * (most - len(items))]

    spec = torch.from_numpy(np.array([[row.weight for row in padded(rows)] for rows in rows_of_boxes]))
    least = torch.tensor([*map(padded, bounds)], dtype=torch.float64)
    return region, spec, least, torch.tensor([*map(padded, numbers)])


def region_of(box: InputBox, shape: tuple[int, ...]) -> Box:
    """Return a box [1, *shape] in float64 that contains the exact one."""
    centers, radii = [], []
    for low, high in zip(box.lower, box.upper, strict=True):
        center = float((low + high) / 2)
        centers.append(center)
        radii.append(round_up(max(high - Fraction(center), Fraction(center) - low), np.float64))
    return Box(*(torch.tensor(ends, dtype=torch.float64).view(1, *shape) for ends in (centers, radii)))


def _rows(cases: Sequence[Case], outputs: int) -> list[_Row]:
    return [_row(constraint, outputs) for case in cases for constraint in case.constraints]


def _row(constraint: Constraint, outputs: int) -> _Row:
    check_deadline()
    scale, weight, errors = constraint.scale, np.zeros(outputs), dict[int, Fraction]()
    for number, value in constraint.coefficients.items():
        scaled = value * scale
        weight[number] = float(scaled) if abs(scaled) * LARGEST >= 1 else 0.0
        if error := abs(scaled - Fraction(weight[number])):
            errors[number] = error
    return _Row(weight, constraint.bound * scale, errors)


def _largest_outputs(model: nn.Module, region: Box, rows_of_boxes: Sequence[Sequence[_Row]], outputs: int) -> Tensor:
    """Return bounds [B, outputs] of the outputs' absolute values over each box; NaN if no row needs them."""
    if not any(row.errors for rows in rows_of_boxes for row in rows):
        return torch.full((len(rows_of_boxes), outputs), torch.nan)
    lower, upper = bound(model, region, "ibp")
    return torch.maximum(lower.abs(), upper.abs())


def _constant(row: _Row, largest: Tensor) -> float:
    """Return at most the negated bound of a row, less what the errors of its weights change."""
    change = sum((error * _finite(largest[number].item()) for number, error in row.errors.items()), Fraction(0))
    is_float32 = not row.errors and bool((row.weight == row.weight.astype(np.float32)).all())
    return -round_up(row.bound + change, np.float32 if is_float32 else np.float64)


def _finite(number: float) -> Fraction:
    if not abs(number) <= LARGEST:
        raise InputError(f"found outputs of up to {number:.3g} for rounded coefficients, allowed: up to 1e30")
    return Fraction(number)


def _pairs(counts: list[int]) -> tuple[nn.Linear, nn.Linear]:
    """Return two linear layers that halve the values of each case: a and b - a of pairs; a value left over and 0.

    counts: of values of each case.
    """
    first, difference, number = list[Tensor](), list[Tensor](), 0
    units = torch.eye(sum(counts), dtype=torch.float64)
    for count in counts:
        for pair in units[number : number + count].split(2):
            first.append(pair[0])
            difference.append(pair[-1] - pair[0])
        number += count
    return _linear(torch.stack(first)), _linear(torch.stack(difference))


def _linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    layer = nn.Linear(1, 1, bias is not None, dtype=weight.dtype)
    layer.in_features, layer.out_features = weight.shape[1], weight.shape[0]
    layer.weight.data = weight
    if bias is not None:
        layer.bias.data = bias
    return layer
