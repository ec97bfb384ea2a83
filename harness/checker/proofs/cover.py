"""Whether the leaves of branch and bound cover every input, where signs of some units follow from those of others.

The pre-activation of a unit is p = d (q - t) with d = 1 or -1. Units of linear layers that read the same values share q
if their rows of weights are equal or opposite; any other unit has its own, and t = 0. Nothing here is rounded.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.checker.bounds.boxes import Array
from harness.checker.bounds.maps import Product, Shape
from harness.checker.bounds.network import ReluStep, Step
from harness.checker.proofs.certificates import NEURONS, SIGNS, Certificate, RefusedError, Tensors, check_certificate


@dataclass(frozen=True)
class UnitLines:
    """p = directions * (q - thresholds) of n units, all [n]. groups: equal numbers for units with one q."""

    groups: Array
    directions: Array
    thresholds: Array

    def signs_that_follow(self, unit: int, sign: int) -> Array:
        """Return the signs [n] that all units have where this one has `sign`, 0 where either is possible."""
        side = sign * self.directions[unit]
        known = (self.groups == self.groups[unit]) & (side * self.thresholds <= side * self.thresholds[unit])
        return np.where(known, side * self.directions, 0)


def check_leaves(
    tensors: Tensors, steps: list[Step], shapes: dict[str, Shape], margins: int, row_type: type = np.int16
) -> Certificate:
    """Return the certificate that the tensors hold, as `check_certificate`, whose leaves cover every input.

    steps: of the network. Raises RefusedError, also if the leaves of a row do not cover it.
    """
    certificate = check_certificate(tensors, shapes, margins, row_type)
    rows, split = certificate.rows, {step: f for step, f in certificate.steps.items() if SIGNS in f}
    signs = np.concatenate([*(fields[SIGNS] for fields in split.values()), np.zeros((len(rows), 0), np.int8)], axis=1)
    lines = unit_lines(steps, {step: fields[NEURONS] for step, fields in split.items()})
    for row in np.unique(rows):
        if not covers_everything(signs[rows == row], lines):
            raise RefusedError(f"the leaves of row {row} do not cover it")
    return certificate


def unit_lines(steps: list[Step], neurons: dict[str, Array]) -> UnitLines:
    """Return the lines of these neurons, one after the other. neurons: flat indices by the activation's name."""
    relus = {step.name: step.sources[0] for step in steps if _is_relu(step)}
    equal, lines = _first_equals(steps), list[tuple[Any, int, float]]()
    for name, elements in neurons.items():
        source = relus.get(name, 0)
        layer = steps[source - 1].operation if source else None
        for element in elements.tolist():
            if not isinstance(layer, Product):
                lines.append(((equal[source] if name in relus else name, element), 1, 0.0))
                continue
            position, unit = divmod(element, len(layer.weight))
            row = layer.weight[unit]
            direction = -1 if (row[np.flatnonzero(row)[:1]] < 0).any() else 1
            shared = equal[steps[source - 1].sources[0]], position, (direction * row + 0.0).tobytes()  # no -0.0
            lines.append((shared, direction, -direction * float(layer.bias[unit])))
    keys, directions, thresholds = zip(*lines, strict=True) if lines else ((), (), ())
    first = {key: number for number, key in reversed(list(enumerate(keys)))}
    return UnitLines(np.array([first[key] for key in keys]), np.array(directions), np.array(thresholds))


def covers_everything(splits: Array, lines: UnitLines) -> bool:
    """Return whether leaves cover all inputs. splits: [L, n], their signs of the n units that are split anywhere.

    One leaf without splits covers them. Leaves that all split one unit cover them if those on either side of it cover
    that side. There, signs that follow are no splits, and leaves with an opposite sign are left out. The order of units
    does not matter: a tree restricted to one side of a unit is a tree.
    """
    groups = [splits]
    while groups:
        group = groups.pop()
        if len(group) == 1 and not group.any():
            continue
        common = np.flatnonzero((group != 0).all(0))
        if not len(group) or not len(common):
            return False
        for sign in (1, -1):
            side, known = group[group[:, common[0]] == sign], lines.signs_that_follow(common[0], sign)
            groups.append(np.where(side == known, 0, side)[(side * known >= 0).all(1)])
    return True


def _first_equals(steps: list[Step]) -> list[int]:
    """Return of each value the first one that is computed by equal linear layers and ReLUs from the same value."""
    equal = [0]
    for number, step in enumerate(steps, start=1):
        same = (n for n in range(1, number) if _is_equal(steps[n - 1], step, equal))
        equal.append(next(same, number))
    return equal


def _is_equal(step: Step, other: Step, equal: list[int]) -> bool:
    """Return whether two steps are known to compute the same."""
    if [equal[source] for source in step.sources] != [equal[source] for source in other.sources]:
        return False
    first, second = step.operation, other.operation
    if isinstance(first, Product) and isinstance(second, Product):
        return np.array_equal(first.weight, second.weight) and np.array_equal(first.bias, second.bias)
    return _is_relu(step) and _is_relu(other)


def _is_relu(step: Step) -> bool:
    return isinstance(step.operation, ReluStep) and step.operation.weight is None
