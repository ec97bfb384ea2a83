"""Linear lower bounds of functionals of a network (CROWN; Zhang et al. 2018), over boxes of one example.

A functional is a sum of A_v . v over values v of the network, A_v a row of coefficients. The code goes backwards
through the steps. It replaces the functional by one of earlier values that is nowhere larger, until only the images
are left. For an equilibrium z = relu(p), p = W z + h, any multiplier L, and lines with D . p + beta <= L . relu(p),

    a . z - B . p  >=  (D - B) . h + beta + (a + W^T (D - B) - L) . z,

where a box of z bounds the last term (our reading of Li, Wang and Lin 2022). B = sum b_i s_i e_i holds a leaf's splits
s_i p_i >= 0 with multipliers b_i >= 0 (Wang et al. 2021). An ordinary ReLU is the case W = 0. Any L is sound.
"""

from dataclasses import dataclass

import numpy as np

from harness.checker.bounds.boxes import SLACK, Array, Box, U, intersect, magnitude
from harness.checker.bounds.equilibrium import apply_recurrence, apply_recurrence_back, preactivation
from harness.checker.bounds.maps import Map
from harness.checker.bounds.network import Network, Step
from harness.checker.bounds.relaxations import Relaxation
from harness.checker.bounds.relu_lines import LARGEST, Leaves, Lines, dot, lines, rounding_loss
from harness.checker.bounds.windows import used_part

_TOLERANCE, _LIMIT = 1e-5, 1000  # of the multiplier iteration
_ELEMENTS = 2**19  # of a value's coefficients at once


@dataclass(frozen=True)
class Region:
    """Boxes [1, *shape] of one example.

    values: by the value's number; 0 are the images. preactivations: p of each equilibrium, by the number of its z.
    """

    values: list[Box]
    preactivations: dict[int, Box]


@dataclass(frozen=True)
class Pulled:
    """A functional of a step's sources: their coefficients, a constant [K] and the cost of rounding [K].

    empty: which rows have a leaf that the step proves to be empty, bool [K].
    """

    coefficients: tuple[Array, ...]
    constant: Array
    rounding_loss: Array
    empty: Array | bool = False


def lower_bounds(network: Network, region: Region, functional: dict[int, Array], leaves: dict[str, Leaves]) -> Array:
    """Return lower bounds [K] of the functional over the region; -inf without a proof, inf for an empty leaf.

    functional: coefficients [K, *shape] by the number of their value. leaves: by the step's name, the leaf of each row;
    without any, rows are bounded over the region itself.
    """
    if not all((magnitude(box) <= LARGEST).all() for box in [*region.values, *region.preactivations.values()]):
        return np.full(len(next(iter(functional.values()))), -np.inf)
    with np.errstate(over="ignore", invalid="ignore"):
        rows, constants, losses, empty = pull_to(network, region, functional, leaves, 0)
        minimum, cost = minimum_over_box(rows[0], region.values[0])
        return np.where(empty, np.inf, sum_rounded_down(np.array([*constants, minimum]), np.array([*losses, cost])))


def pull_to(
    network: Network, region: Region, functional: dict[int, Array], leaves: dict[str, Leaves], last: int
) -> tuple[dict[int, Array], list[Array], list[Array], Array]:  # fmt: skip
    """Pull a functional back through all steps behind value `last`; arguments as for `lower_bounds`.

    Returns:
        Its coefficients, of values up to `last`; constants and costs of rounding, [K] each; and which rows have an
        empty leaf, bool [K].
    """
    rows, constants, losses = dict(functional), list[Array](), list[Array]()
    empty = np.zeros(len(next(iter(rows.values()))), bool)
    for number in range(max(rows), last, -1):
        if number not in rows:
            continue
        step = network.steps[number - 1]
        pulled = pull_back(step, rows.pop(number), region, number, leaves.get(step.name))
        constants.append(pulled.constant)
        losses.append(pulled.rounding_loss)
        empty |= pulled.empty
        for source, coefficients in zip(step.sources, pulled.coefficients, strict=True):
            if source in rows:
                coefficients = rows[source] + coefficients
                losses.append(rounding_loss(coefficients, magnitude(region.values[source])))
            rows[source] = coefficients
    return rows, constants, losses, empty


def rows_at_once(region: Region) -> int:
    """Return how many rows to bound at a time, so that coefficients stay small."""
    return max(1, _ELEMENTS // max(box.center.size for box in region.values))


def pull_back(step: Step, a: Array, region: Region, number: int, leaves: Leaves | None) -> Pulled:
    """Return a functional of the step's sources that is, less its rounding, at most a . v of its value v = `number`.

    Pixels at which all rows are 0 are left out: products with 0 take no rounding.
    """
    boxes = [region.values[source] for source in step.sources]
    if isinstance(step.operation, Map):
        back = step.operation.back(a, [box.center.shape[1:] for box in boxes])
        size = step.operation.size(*[magnitude(box) for box in boxes])
        if size is None:
            return Pulled(back, np.zeros(len(a)), np.zeros(len(a)))
        part, size = used_part(a), np.broadcast_to(size, (1, *a.shape[1:]))
        return Pulled(back, dot(a, step.operation.offset(a.shape)), rounding_loss(a[part], size[part]))
    if isinstance(step.operation, Relaxation):
        pulled, constant, size = step.operation.pull_back(a, boxes[0])
        return Pulled((pulled,), constant, rounding_loss(a, size))
    weight = step.operation.weight
    if weight is None:
        return _pull_through_relu(a, boxes[0], leaves)
    return _pull_through_equilibrium(weight, a, boxes[0], region.preactivations[number], region.values[number], leaves)


def _pull_through_relu(a: Array, p: Box, leaves: Leaves | None) -> Pulled:
    if leaves is None:
        part, pulled = used_part(a), np.zeros_like(a)
        p, used = Box(p.center[part], p.radius[part]), np.ascontiguousarray(a[part])
        pulled[part], constant = lines(p, None).bound_from_below(used)
        return Pulled((pulled,), constant, rounding_loss(used, magnitude(p)))
    slopes, constant = lines(p, leaves).bound_from_below(a)
    loss = rounding_loss(np.abs(a) + np.abs(leaves.split_terms), magnitude(p))
    return Pulled((slopes - leaves.split_terms,), constant, loss, leaves.are_empty(p))


def _pull_through_equilibrium(weight: Array, a: Array, h: Box, p: Box, z: Box, leaves: Leaves | None) -> Pulled:
    """Return a functional of h. docs/developers/rounding.md proves that these costs cover every rounding.

    In a leaf, z = 0 where p <= 0 is fixed. This makes the boxes of z and of p = W z + h smaller.
    """
    size, size_of_p, split_terms = magnitude(z), magnitude(p), 0.0 if leaves is None else leaves.split_terms
    if leaves is not None:
        z = Box(np.where(leaves.signs < 0, 0, z.center), np.where(leaves.signs < 0, 0, z.radius))
        p = intersect(p, preactivation(weight, h, z))
    relaxation = lines(p, leaves)
    multiplier = _find_multiplier(weight, a, relaxation, z, leaves)
    slopes, constant = relaxation.bound_from_below(multiplier)
    pulled = slopes - split_terms
    residual = a + apply_recurrence_back(weight, pulled) - multiplier
    minimum, cost = minimum_over_box(residual, z)
    cost = cost + rounding_loss(np.abs(multiplier) + np.abs(split_terms), size_of_p)
    cost = cost + rounding_loss(pulled, apply_recurrence(np.abs(weight), size))
    return Pulled((pulled,), constant + minimum, cost, leaves is not None and leaves.are_empty(p))


def _find_multiplier(weight: Array, a: Array, relaxation: Lines, z: Box, leaves: Leaves | None) -> Array:
    """Return the L that the iteration L <- line_shares (a + W^T (D(L) - B)) ends with. Any L is sound."""
    line_shares, split_terms = (1.0, 0.0) if leaves is None else (leaves.line_shares, leaves.split_terms)
    multiplier, allowed = a, _TOLERANCE * dot(np.abs(a), z.radius)
    for _ in range(_LIMIT):
        pulled = relaxation.bound_from_below(multiplier)[0] - split_terms
        following = line_shares * (a + apply_recurrence_back(weight, pulled))
        change, multiplier = dot(np.abs(following - multiplier), z.radius), following
        if not (change > allowed).any():
            break
    return multiplier


def minimum_over_box(a: Array, box: Box) -> tuple[Array, Array]:
    """Return the minimum [K] of a . v over v in the box, and the cost of rounding [K]."""
    return dot(a, box.center) - dot(np.abs(a), box.radius), rounding_loss(a, magnitude(box))


def sum_rounded_down(constants: Array, losses: Array) -> Array:
    """Return the sum of constants less that of losses, [n, K] each, rounded down; -inf if it is not finite."""
    sizes = np.abs(constants).sum(0) + losses.sum(0)
    total = constants.sum(0) - losses.sum(0) - SLACK * (len(constants) + len(losses)) * U * sizes
    return np.where(np.isfinite(total), total, -np.inf)
