"""Linear lower bounds of functionals of a network, from behind (CROWN; Zhang et al. 2018), over boxes of one example.

A functional is a sum of A_v . v over values v of the network, A_v a row of coefficients. Step by step it is replaced by
one that is nowhere larger, of earlier values, until the images alone are left. Through an equilibrium z = relu(p),
p = W z + h: for any multiplier L, with D . p + beta from below L . relu(p) by the lines around each ReLU,

    a . z - B . p  >=  (D - B) . h + beta + (a + W^T (D - B) - L) . z,

the last term bounded with a box of z (Li, Wang and Lin 2022, our reading; B = sum b_i s_i e_i of a leaf's splits
s_i p_i >= 0 with multipliers b_i >= 0, Wang et al. 2021). An ordinary ReLU is W = 0. Nothing depends on how good L is.
"""

from dataclasses import dataclass

import numpy as np

from harness.checker.boxes import SLACK, Array, Box, U, magnitude
from harness.checker.equilibrium import recurrent, recurrent_back
from harness.checker.maps import Map, UnknownLayerError
from harness.checker.network import Network, Step
from harness.checker.relaxation import LARGEST, Leaves, Lines, dot, lines, lost

_CLOSE, _MOST = 1e-5, 1000  # of the multiplier iteration
_ELEMENTS = 2**19  # of a value's coefficients at once


@dataclass(frozen=True)
class Region:
    """Boxes [1, *shape] of one example. values: by number, 0 the images.
    inside: of the pre-activation p of each equilibrium, by the number of its z."""

    values: list[Box]
    inside: dict[int, Box]


@dataclass(frozen=True)
class Pulled:
    """What a step makes of coefficients: those of the values it takes, a constant [K] and what rounding cost [K]."""

    coefficients: tuple[Array, ...]
    constant: Array
    lost: Array


def lower_bounds(network: Network, region: Region, functional: dict[int, Array], leaves: dict[str, Leaves]) -> Array:
    """Lower bounds [K] of the functional, coefficients [K, *shape] of values by their numbers; -inf without a proof.

    leaves: by the step's name, of each row where it is to be bounded; none bounds it over the whole region.
    """
    if not all((magnitude(box) <= LARGEST).all() for box in [*region.values, *region.inside.values()]):
        return np.full(len(next(iter(functional.values()))), -np.inf)
    rows, constants, losses = dict(functional), list[Array](), list[Array]()
    with np.errstate(over="ignore", invalid="ignore"):
        for number in range(max(rows), 0, -1):
            if number not in rows:
                continue
            step = network.steps[number - 1]
            pulled = _pulled(step, rows.pop(number), region, number, leaves.get(step.name))
            constants.append(pulled.constant)
            losses.append(pulled.lost)
            for source, coefficients in zip(step.sources, pulled.coefficients, strict=True):
                box = region.values[source]
                if coefficients.shape[1:] != box.center.shape[1:]:
                    raise UnknownLayerError(f"{step.name} broadcasts, which cannot be rechecked")
                if source in rows:
                    coefficients = rows[source] + coefficients
                    losses.append(lost(coefficients, magnitude(box), 1))
                rows[source] = coefficients
        least, cost = _least(rows[0], region.values[0])
        return _total(np.array([*constants, least]), np.array([*losses, cost]))


def at_once(network: Network, region: Region) -> int:
    """So many rows make coefficients that are not too large."""
    return max(1, _ELEMENTS // max(box.center.size for box in region.values))


def _pulled(step: Step, a: Array, region: Region, number: int, leaves: Leaves | None) -> Pulled:
    given = [region.values[source] for source in step.sources]
    if isinstance(step.does, Map):
        size = step.does.size(*[magnitude(box) for box in given])
        back = step.does.back(a, [box.center.shape[1:] for box in given])
        return Pulled(back, dot(a, step.does.offset), lost(a, size, step.does.terms))
    if step.does.weight is None:
        return _through_relu(a, given[0], leaves)
    return _through_equilibrium(step.does.weight, a, region.inside[number], region.values[number], leaves)


def _through_relu(a: Array, p: Box, leaves: Leaves | None) -> Pulled:
    around, pushed = lines(p, leaves), 0.0 if leaves is None else leaves.pushed
    under, constant = around.under(a)
    return Pulled((under - pushed,), constant, lost(np.abs(a) + np.abs(pushed), magnitude(p) + around.offset, 3))


def _through_equilibrium(weight: Array, a: Array, p: Box, z: Box, leaves: Leaves | None) -> Pulled:
    around, pushed = lines(p, leaves), 0.0 if leaves is None else leaves.pushed
    size, terms = magnitude(z), weight[:, 0].size + weight[0, 0].size
    if leaves is not None:
        z = Box(np.where(leaves.signs < 0, 0, z.center), np.where(leaves.signs < 0, 0, z.radius))
    multiplier = _multiplier(weight, a, around, z, leaves)
    under, constant = around.under(multiplier)
    pulled = under - pushed
    residual = a + recurrent_back(weight, pulled) - multiplier
    least, cost = _least(residual, z)
    cost = cost + lost(np.abs(multiplier) + np.abs(pushed), magnitude(p) + around.offset, 3)
    cost = cost + lost(pulled, recurrent(np.abs(weight), size), terms + 2)
    cost = cost + lost(np.abs(a) + np.abs(multiplier), size, 4)
    return Pulled((pulled,), constant + least, cost + 4 * U * (np.abs(constant) + np.abs(least) + cost))


def _multiplier(weight: Array, a: Array, around: Lines, z: Box, leaves: Leaves | None) -> Array:
    """About the L with L = kept (a + W^T (D(L) - B)), by plain iteration; nothing of it is trusted."""
    kept, pushed = (1.0, 0.0) if leaves is None else (leaves.kept, leaves.pushed)
    multiplier, allowed = a, _CLOSE * dot(np.abs(a), z.radius)
    for _ in range(_MOST):
        following = kept * (a + recurrent_back(weight, around.under(multiplier)[0] - pushed))
        moved, multiplier = dot(np.abs(following - multiplier), z.radius), following
        if not (moved > allowed).any():
            break
    return multiplier


def _least(a: Array, box: Box) -> tuple[Array, Array]:
    """The least of a . v over v in the box, [K], and what rounding cost."""
    return dot(a, box.center) - dot(np.abs(a), box.radius), lost(a, magnitude(box), 2)


def _total(constants: Array, losses: Array) -> Array:
    """The sum of constants less that of losses, some [n, K] each, rounded down; -inf where that is not finite."""
    sizes = np.abs(constants).sum(0) + losses.sum(0)
    total = constants.sum(0) - losses.sum(0) - SLACK * (len(constants) + len(losses)) * U * sizes
    return np.where(np.isfinite(total), total, -np.inf)
