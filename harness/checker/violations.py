"""A property as a network: for each case of a box the largest value of its constraints, coefficients . outputs - bound.

No input of the box satisfies a case if that is above 0 everywhere. The largest is made of max(a, b) = a + relu(b - a).
All numbers come from the property file, by this code alone. Only the order of pairs, the scale of constraints and the
names of ReLUs, those of the network as the module `network` and `violations.relu.<level>`, are those of the query that
branch and bound decides: otherwise its leaves would not fit.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache

import numpy as np

from harness.checker.bounds import maps
from harness.checker.bounds.boxes import Array, Box, between
from harness.checker.bounds.maps import UnknownLayerError
from harness.checker.bounds.network import Network, ReluStep, Step, boxes_of
from harness.vnnlib.properties import LARGEST, Case, Constraint, InputBox


def violations_network(network: Sequence[Step], box: Box, cases: Sequence[Case], outputs: int) -> Network:
    """Return the network of the cases' largest values over the box, [B, cases], or less. Every case has a constraint.

    network: its steps, which end in the outputs. Raises UnknownLayerError for numbers that float64 does not hold.
    """
    steps = [*network]

    def add(operation: maps.Map | ReluStep, *sources: int, name: str = "") -> int:
        steps.append(Step(name, operation, sources))
        return len(steps)

    @cache
    def largest() -> Array:
        exact = boxes_of([*network], box)[-1]
        return np.maximum(np.abs(exact.lower), np.abs(exact.upper)).ravel()

    rows = [_row(constraint, outputs, largest) for case in cases for constraint in case.constraints]
    weight, bias = np.array([weight for weight, _ in rows]), np.array([bias for _, bias in rows])
    values = add(maps.product(weight, bias), add(maps.move(lambda x: x.flatten(1), "flatten"), len(steps)))
    counts, level = [len(case.constraints) for case in cases], 0
    while max(counts) > 1:
        a, b = _pairs(counts)
        larger_by = add(ReluStep(None), add(_sum(b - a), values), name=f"violations.relu.{level}")
        values = add(maps.add_values(), add(_sum(a), values), larger_by)
        counts, level = [(count + 1) // 2 for count in counts], level + 1
    add(_sum(np.eye(len(cases))), values)
    return Network(steps, np.eye(len(cases)), np.zeros(len(cases)))


def enclosing_box(box: InputBox, shape: tuple[int, ...]) -> Box:
    """Return a box [1, *shape] that contains the exact one."""
    lower = np.array([round_down(end, np.float64) for end in box.lower])
    upper = np.array([-round_down(-end, np.float64) for end in box.upper])
    return between(lower.reshape(1, *shape), upper.reshape(1, *shape))


def round_down(number: Fraction, kind: type[np.floating]) -> float:
    """Return the largest float of a kind that is at most `number`."""
    nearest = kind(float(number))
    return float(nearest if Fraction(float(nearest)) <= number else np.nextafter(nearest, kind(-np.inf)))


def _row(constraint: Constraint, outputs: int, largest: Callable[[], Array]) -> tuple[Array, float]:
    """Return a constraint's coefficients [outputs], scaled by a positive number, and at most its scaled -bound.

    The second is lower by what rounding the coefficients changes. largest: returns bounds [outputs] of the outputs'
    absolute values.
    """
    scale, weight, is_rounded = constraint.scale, np.zeros(outputs), False
    constant = -constraint.bound * scale
    for number, value in constraint.coefficients.items():
        exact = value * scale
        weight[number] = float(exact) if abs(exact) * LARGEST >= 1 else 0.0
        if Fraction(weight[number]) != exact:
            is_rounded = True
            if not largest()[number] <= LARGEST:
                raise UnknownLayerError(f"a coefficient of Y_{number} that float64 does not hold")
            constant -= abs(exact - Fraction(weight[number])) * Fraction(largest()[number])
    is_float32 = not is_rounded and (weight.astype(np.float32) == weight).all()
    return weight, round_down(constant, np.float32 if is_float32 else np.float64)


def _sum(weight: Array) -> maps.Map:
    return maps.product(weight, np.zeros(len(weight)))


def _pairs(counts: Sequence[int]) -> tuple[Array, Array]:
    """Return the first and the second of each pair of values, [pairs, values]; a value left over is a pair with itself.

    counts: of values of each case, which come one case after the other.
    """
    first, second, start = list[int](), list[int](), 0
    for count in counts:
        numbers = range(start, start + count)
        first += numbers[::2]
        second += [min(number + 1, numbers[-1]) for number in numbers[::2]]
        start += count
    units = np.eye(start)
    return units[first], units[second]
