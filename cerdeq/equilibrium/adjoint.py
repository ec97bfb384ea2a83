"""The adjoint equilibrium: linear lower bounds through z = relu(W z + h) (CerDEQ: Li, Wang and Lin 2022; our reading).

With lines around each ReLU, free p <= relu(p) <= slope p + offset say, and for any multiplier L, let D(L) be L times
the line that bounds it from below: L . relu(p) >= D(L) . p + beta(L). Since z = relu(W z + h) at the equilibrium,

    a . z  >=  D(L) . h + beta(L) + (a + W^T D(L) - L) . z,

and the last term is bounded with a box of z. It vanishes where L = a + W^T D(L), the adjoint equilibrium, which Picard
iteration approaches at the rate rho(|W|). The bound holds for every L: stopping early costs tightness alone.

Where only inputs are asked about with s_i p_i >= 0 for some units, D(L) - sum b_i s_i e_i takes the place of D(L), for
any b >= 0; the lines around those units are exact, and z_i = 0 where s_i = -1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cerdeq.bounds.host import is_read
from cerdeq.bounds.interval import Interval
from cerdeq.bounds.linear import Backward, Pulled, dot, magnitude, slack
from cerdeq.bounds.precision import uncounted_rounding
from cerdeq.bounds.relaxation import Lines, kept_name, lines, share, split_terms, through
from cerdeq.boxes import Box
from cerdeq.equilibrium.certificate import reachable_preactivation
from cerdeq.equilibrium.recurrence import apply_lifted, apply_transposed, apply_weight

_TOLERANCE = 1e-4
_LEAF_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}  # where cases leave little that is not exact
_LIMIT = 1000
_SPARE = 0.05  # how much of its multiplier each unit may leave to the box: more only made the search slower
_SEARCH_STEPS = 3  # that the search for better slopes and multipliers differentiates, at the end of the others


def pull_back(ctx: Backward, coefficients: Tensor, h: Interval, weight: Tensor, iterations: int | None) -> Pulled:
    """Coefficients [B, K, *shape] of z, turned into those of h.

    ctx.output: a box that contains z, proved if `ctx.sound`. The multiplier is that many steps of
    L <- k (a + W^T D(L)) from a, or with None as many as it needs to settle. k, 1 by default and a free choice of the
    pass, says for each unit how much of its coefficient goes through the lines; the box takes the rest.
    """
    assert ctx.output is not None, "the pass says what the step gave"
    z = _without_off(ctx, ctx.output)
    if iterations is None:
        preactivation = reachable_preactivation(weight, h.box, z.box)
    else:
        preactivation = Box(*apply_lifted(weight, (z.center, z.radius), (h.center, h.radius)))
    around = lines(ctx, preactivation)
    kept, known = _kept(ctx, coefficients), split_terms(ctx)

    def step(multiplier: Tensor) -> Tensor:
        pulled, _ = through(ctx, around, multiplier)
        following = coefficients + transposed(weight, pulled if known is None else pulled - known)
        return following if kept is None else kept * following

    multiplier = coefficients
    if iterations is None:
        with torch.no_grad(), uncounted_rounding():
            tolerance = _LEAF_TOLERANCE[z.radius.dtype] if ctx.splits else _TOLERANCE
            multiplier = _settled(step, coefficients, z.radius, tolerance)
        iterations = 0 if ctx.sound else _SEARCH_STEPS
    for _ in range(iterations):
        multiplier = step(multiplier)
    if ctx.met is not None:
        ctx.met[ctx.step] = multiplier, around
    return _bound(ctx, coefficients, multiplier, around, weight, z, preactivation, known)


def _without_off(ctx: Backward, z: Interval) -> Interval:
    """z's box, 0 where the pass says that the pre-activation is not positive."""
    if (sign := ctx.splits.get(ctx.step)) is None:
        return z
    off = sign < 0
    return Interval(torch.where(off, 0, z.center), torch.where(off, 0, z.radius))


def _kept(ctx: Backward, coefficients: Tensor) -> Tensor | None:
    """k, None for 1."""
    name = kept_name(ctx.step)
    if ctx.chosen is None and name not in ctx.slopes:
        return None
    return 1 - _SPARE * (1 - share(ctx, name, coefficients.new_ones(coefficients[:, :1].shape)))


def _settled(step: Callable[[Tensor], Tensor], coefficients: Tensor, radius: Tensor, tolerance: float) -> Tensor:
    """The multiplier after as many steps as it takes until what the residual costs, |L' - L| . radius, is a small part
    of what the box alone would, |a| . radius. Each row stops by itself, whatever others are in the batch."""
    multiplier = coefficients
    allowed = tolerance * _cost(coefficients, radius)
    moving = multiplier.new_ones(multiplier.shape[:2], dtype=torch.bool)
    for count in range(1, _LIMIT + 1):
        following = step(multiplier)
        moving = moving & (_cost(following - multiplier, radius) > allowed)
        if is_read(count, moving.device) and not bool(moving.any()):
            break
        multiplier = torch.where(moving.view(*moving.shape, *[1] * (following.dim() - 2)), following, multiplier)
    return multiplier


def _cost(coefficients: Tensor, radius: Tensor) -> Tensor:
    """|coefficients| [B, K, *shape] . radius [B, *shape]: [B, K]."""
    return torch.einsum("bkn,bn->bk", coefficients.abs().flatten(2), radius.flatten(1))


def _bound(
    ctx: Backward, coefficients: Tensor, multiplier: Tensor, around: Lines, weight: Tensor, z: Interval,
    preactivation: Box, known: Tensor | None = None,
) -> Pulled:  # fmt: skip
    pulled, constant = through(ctx, around, multiplier)
    if known is not None:
        pulled = pulled - known
    residual = coefficients + transposed(weight, pulled) - multiplier
    constant = constant + dot(ctx, residual, z.center) - dot(ctx, residual.abs(), z.radius)
    if ctx.sound:
        size, terms = magnitude(z), weight[0].numel() + 8
        reach = preactivation.center.abs() + preactivation.radius + around.offset.abs()
        constant = constant - slack(ctx, multiplier, reach, 4)
        if known is not None:
            constant = constant - slack(ctx, known, reach, 4)
        constant = constant - slack(ctx, pulled, apply_weight(weight.abs(), size), 2 * terms)
        constant = constant - slack(ctx, coefficients.abs() + multiplier.abs() + residual.abs(), size, 8)
    return Pulled((pulled,), constant)


def transposed(weight: Tensor, coefficients: Tensor) -> Tensor:
    """W^T on coefficients [B, K, *shape]."""
    return apply_transposed(weight, coefficients.flatten(0, 1)).unflatten(0, coefficients.shape[:2])
