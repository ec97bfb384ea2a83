"""The adjoint equilibrium: linear lower bounds through z = relu(W z + h) (CerDEQ: Li, Wang and Lin 2022; our reading).

With lines around each ReLU, free p <= relu(p) <= slope p + offset say, and for any multiplier L, let D(L) be L times
the line that bounds it from below: L . relu(p) >= D(L) . p + beta(L). Since z = relu(W z + h) at the equilibrium,

    a . z  >=  D(L) . h + beta(L) + (a + W^T D(L) - L) . z,

and the last term is bounded with a box of z. It vanishes where L = a + W^T D(L), the adjoint equilibrium, which Picard
iteration approaches at the rate rho(|W|). The bound holds for every L: stopping early costs tightness alone.

For inputs with s_i p_i >= 0 for some units alone, D(L) - sum b_i s_i e_i takes the place of D(L), for any b >= 0; the
lines around those units are exact, and z_i = 0 where s_i = -1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cerdeq.boxes import Box
from cerdeq.deadline import check
from cerdeq.equilibrium.certificate import reachable_preactivation
from cerdeq.equilibrium.recurrence import apply_lifted, apply_transposed, apply_weight
from cerdeq.gpu_readings import is_host_reading
from cerdeq.operators.backward import Backward, Pulled, dot, free_choice, magnitude, rounded_constant, rounding_costs
from cerdeq.operators.interval import Interval
from cerdeq.operators.relu import Relaxation, line_share_name, pull_through_lines, relaxation_of, split_terms
from cerdeq.precision import uncounted_rounding

_ADJOINT_TOLERANCE = 1e-4
_ADJOINT_LEAF_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}  # with splits little is left that is not exact
_ADJOINT_LIMIT = 1000
_SPARE = 0.05  # the largest share of its multiplier that a unit may leave to the box: more made the search slower
_SEARCH_STEPS = 3  # that the search for better slopes and multipliers differentiates, at the end of the others


def pull_back(ctx: Backward, coefficients: Tensor, h: Interval, weight: Tensor, iterations: int | None) -> Pulled:
    """Turn coefficients [B, K, *shape] of z into coefficients of h.

    ctx.output: a box that contains z, proved if `ctx.sound`. The multiplier is the result of `iterations` steps of
    L <- k (a + W^T D(L)) from a; None until it converges. k, 1 by default and a free choice of the pass,
    is for each unit the share of its coefficient that goes through the lines; the box takes the rest.
    """
    assert ctx.output is not None, "the pass sets it"
    z = ctx.output
    if (sign := ctx.splits.get(ctx.step)) is not None:  # z is 0 where the pass fixes p not to be positive
        z = Interval(torch.where(sign < 0, 0, z.center), torch.where(sign < 0, 0, z.radius))

    def preactivation_and_relaxation() -> tuple[Box, Relaxation]:
        if iterations is None:
            box = reachable_preactivation(weight, h.box, z.box)
        else:
            box = Box(*apply_lifted(weight, (z.center, z.radius), (h.center, h.radius)))
        return box, relaxation_of(ctx, box)

    preactivation, relaxation = ctx.constant("preactivation", preactivation_and_relaxation)
    line_share, splits = _line_share(ctx, coefficients), split_terms(ctx)

    def step(pulled: Tensor) -> Tensor:
        following = coefficients + transpose_product(weight, pulled if splits is None else pulled - splits)
        return following if line_share is None else line_share * following

    multiplier, steps = coefficients, iterations
    if steps is None:
        with torch.no_grad(), uncounted_rounding():
            tolerance = _ADJOINT_LEAF_TOLERANCE[z.radius.dtype] if ctx.splits else _ADJOINT_TOLERANCE
            multiplier = _iterate(lambda m: step(_lower_slopes(relaxation, m)), coefficients, z.radius, tolerance)
        steps = 0 if ctx.sound else _SEARCH_STEPS
    for _ in range(steps):
        multiplier = step(pull_through_lines(relaxation, multiplier)[0])
    if ctx.relaxations is not None:
        ctx.relaxations[ctx.step] = multiplier, relaxation
    return _bound(ctx, coefficients, multiplier, relaxation, weight, z, preactivation, splits)


def _line_share(ctx: Backward, coefficients: Tensor) -> Tensor | None:
    """Return k, None for 1."""
    name = line_share_name(ctx.step)
    if ctx.choices is None and name not in ctx.slopes:
        return None
    return 1 - _SPARE * (1 - free_choice(ctx, name, coefficients.new_ones(coefficients[:, :1].shape)))


def _lower_slopes(relaxation: Relaxation, multiplier: Tensor) -> Tensor:
    """Return D(L), without its constant and without a gradient."""
    return (multiplier.abs() * relaxation.gap).addcmul_(multiplier, relaxation.mean)


def _iterate(step: Callable[[Tensor], Tensor], coefficients: Tensor, radius: Tensor, tolerance: float) -> Tensor:
    """Return the multiplier after as many steps as each row needs.

    A row stops when the cost of its residual, |L' - L| . radius, is a small part of the cost of the box alone,
    |a| . radius. It does not depend on other rows.
    """
    multiplier = coefficients
    allowed = tolerance * _cost(coefficients, radius)
    moving = multiplier.new_ones(multiplier.shape[:2], dtype=torch.bool)
    for count in range(1, _ADJOINT_LIMIT + 1):
        check()
        following = step(multiplier)
        moving = moving & (_cost(following - multiplier, radius) > allowed)
        if is_host_reading(count, moving.device) and not bool(moving.any()):
            break
        multiplier = torch.where(moving.view(*moving.shape, *[1] * (following.dim() - 2)), following, multiplier)
    return multiplier


def _cost(coefficients: Tensor, radius: Tensor) -> Tensor:
    """Return |coefficients| [B, K, *shape] . radius [B, *shape]: [B, K]."""
    return torch.einsum("bkn,bn->bk", coefficients.abs().flatten(2), radius.flatten(1))


def _bound(
    ctx: Backward, coefficients: Tensor, multiplier: Tensor, relaxation: Relaxation, weight: Tensor, z: Interval,
    preactivation: Box, splits: Tensor | None = None,
) -> Pulled:  # fmt: skip
    """Return the bound that a multiplier gives; if `ctx.sound`, its constant less the costs of rounding."""
    if not ctx.sound:
        pulled, constant = pull_through_lines(relaxation, multiplier)
        pulled = pulled if splits is None else pulled - splits
        residual = coefficients + transpose_product(weight, pulled) - multiplier
        constant = constant + dot(ctx, residual, z.center) - dot(ctx, residual.abs(), z.radius)
        return Pulled((pulled,), constant)

    def costs() -> dict[str, tuple[Tensor, Tensor]]:
        size, terms = magnitude(z), weight[0].numel() + 8
        largest = preactivation.center.abs() + preactivation.radius + relaxation.offset.abs()
        of_z, of_p = rounding_costs(size, 9), rounding_costs(largest, 5)  # one more each for the sums below
        return {
            "coefficients": of_z,
            "splits": of_p,
            "multiplier": (of_p[0] + of_z[0] - relaxation.side * relaxation.half, of_p[1] + of_z[1]),
            "pulled": rounding_costs(apply_weight(weight.abs(), size), 2 * terms),
            "residual": (of_z[0] + z.radius, of_z[1]),
        }

    cost = ctx.constant("costs", costs)
    pulled = _lower_slopes(relaxation, multiplier)
    constant = rounded_constant(ctx, multiplier, cost["multiplier"], relaxation.half)
    constant = constant + rounded_constant(ctx, coefficients, cost["coefficients"])
    if splits is not None:
        pulled, constant = pulled - splits, constant + rounded_constant(ctx, splits, cost["splits"])
    residual = coefficients + transpose_product(weight, pulled) - multiplier
    constant = constant + rounded_constant(ctx, pulled, cost["pulled"])
    return Pulled((pulled,), constant + rounded_constant(ctx, residual, cost["residual"], z.center))


def transpose_product(weight: Tensor, coefficients: Tensor) -> Tensor:
    """Return W^T on coefficients [B, K, *shape]."""
    return apply_transposed(weight, coefficients.flatten(0, 1)).unflatten(0, coefficients.shape[:2])
