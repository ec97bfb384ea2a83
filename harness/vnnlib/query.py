"""Cases of one box as a query for `cerdeq.verify`: are all outputs of a network positive over the whole box?

The network is the given one, then for each case the largest of its constraints' values, coefficients . outputs - bound.
No input satisfies the case if that is positive everywhere. The maximum is made of ReLUs, max(a, b) = a + relu(b - a),
so that branch and bound splits it as any other layer: a slope of these ReLUs is a weight of the constraints, and splits
make the bound of a conjunction exact.
"""

import copy
from collections import OrderedDict
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from math import lcm

import numpy as np
import torch
from torch import Tensor, nn

from cerdeq import Box
from cerdeq.deadline import check as check_deadline
from harness.common.errors import InputError
from harness.common.properties import LARGEST, Case, Constraint, InputBox
from harness.common.rounding import round_up

_COEFFICIENTS = "coefficients of up to 15 digits, all of a constraint of about the same size"


class Violations(nn.Module):
    """Outputs [B, N] -> for each case the largest value of its constraints, at least, [B, cases], in float64.

    Bounds of constraints are rounded up to float32, so that values are rounded down; coefficients are exact. Each
    constraint is scaled by a positive number. Raises InputError for a coefficient that is not exact in float64, and
    DeadlineError. Layers are dense: a property's groups bound the number of constraints.
    """

    def __init__(self, cases: Sequence[Case], outputs: int):
        super().__init__()
        weight, bias = zip(*(_scaled(c, outputs) for case in cases for c in case.constraints), strict=True)
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


def with_violations(network: nn.Module, cases: Sequence[Case], outputs: int) -> nn.Module:
    """Return the network in float64, then `Violations` of the cases. Raises InputError as these do.

    Certificates name its ReLUs `network.<path>` and `violations.relu.<level>`.
    """
    inner, violations = copy.deepcopy(network).double(), Violations(cases, outputs)
    layers = {"network": inner, "flatten": nn.Flatten(), "violations": violations}
    return nn.Sequential(OrderedDict(layers)).eval()


def query_of_boxes(
    groups: Sequence[Sequence[Case]], shape: tuple[int, ...], outputs: int
) -> tuple[Box, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return boxes, rows [B, R, outputs], numbers and cases [B, R]: no input meets a case if one of its rows is larger.

    groups: the cases of each box, all with constraints. Raises InputError as `Violations` does.
    """
    regions = [region_of(cases[0].box, shape) for cases in groups]
    region = Box(torch.cat([each.center for each in regions]), torch.cat([each.radius for each in regions]))
    scaled = [[(*_scaled(c, outputs), n) for n, case in enumerate(cases) for c in case.constraints] for cases in groups]
    most = max(map(len, scaled))
    padded = [[*rows, *[rows[-1]] * (most - len(rows))] for rows in scaled]
    spec = torch.from_numpy(np.array([[weight for weight, _, _ in rows] for rows in padded]))
    least = -torch.tensor([[bias for _, bias, _ in rows] for rows in padded], dtype=torch.float64)
    return region, spec, least, torch.tensor([[number for _, _, number in rows] for rows in padded])


def region_of(box: InputBox, shape: tuple[int, ...]) -> Box:
    """Return a box [1, *shape] in float64 that contains the exact one."""
    centers, radii = [], []
    for low, high in zip(box.lower, box.upper, strict=True):
        center = float((low + high) / 2)
        centers.append(center)
        radii.append(round_up(max(high - Fraction(center), Fraction(center) - low), np.float64))
    return Box(*(torch.tensor(ends, dtype=torch.float64).view(1, *shape) for ends in (centers, radii)))


def _scaled(constraint: Constraint, outputs: int) -> tuple[np.ndarray, float]:
    """Return coefficients [outputs] and constant of a constraint's value, scaled so that coefficients are exact."""
    check_deadline()
    scale = lcm(*(value.denominator for value in constraint.coefficients.values()))
    if scale & (scale - 1) == 0:
        scale = 1  # powers of 2 are exact as they are
    weight = np.zeros(outputs)
    for number, value in constraint.coefficients.items():
        scaled = value * scale
        if abs(scaled) > LARGEST or Fraction(float(scaled)) != scaled:
            raise InputError(f"found the coefficient {_short(value)} of Y_{number}, allowed: {_COEFFICIENTS}")
        weight[number] = float(scaled)
    bound = constraint.bound * scale
    if abs(bound) > LARGEST:
        raise InputError(f"found a constraint with the bound {_short(constraint.bound)}, allowed: up to 1e30")
    return weight, -round_up(bound, np.float32)


def _short(number: Fraction) -> str:
    """Return the number, up to 28 digits, for messages; it may be too large for a float."""
    return str((Decimal(number.numerator) / number.denominator).normalize())


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
