"""The rules of an equilibrium: its interval rule, its backward rule, and how CROWN tightens it."""

from typing import Any

import torch
from torch import Tensor

from cerdeq.bounds.crown import Tighter
from cerdeq.bounds.patches import Coefficients, dense
from cerdeq.boxes import Box, outward_ends, smaller_box
from cerdeq.equilibrium.adjoint_bound import pull_back, transpose_product
from cerdeq.equilibrium.certificate import (
    intersect_with_image,
    preactivation_box,
    reachable_preactivation,
    verified_box,
)
from cerdeq.equilibrium.gradients import box_with_implicit_gradient
from cerdeq.equilibrium.layer import FixedPoint
from cerdeq.equilibrium.monotone.box import cut_by_images, equilibrium_boxes
from cerdeq.equilibrium.monotone.network import equilibrium_network
from cerdeq.equilibrium.monotone.tightening import row_bounds
from cerdeq.equilibrium.recurrence import apply_lifted, apply_weight, dense_weight, per_example
from cerdeq.operators.backward import Backward, Pulled, dot, magnitude, rounded_constant, rounding_costs
from cerdeq.operators.interval import Context, Interval
from cerdeq.operators.record import Operator
from cerdeq.operators.relu import is_unstable, relu_box
from cerdeq.operators.table import register
from cerdeq.precision import counted_rounding
from cerdeq.tracing.program import Program

Ends = tuple[Tensor, Tensor]
_IMAGES, _IMAGES_IN_TRAINING = 20, 5  # by which the box of a strongly monotone layer is cut


def _interval(ctx: Context, x: Interval, module: FixedPoint) -> Interval:
    """Return a verified box if `ctx.sound`; else, for training, the lifted equilibrium by fixed counts."""
    weight = _weight(ctx, module)
    clean = None if x.clean is None else module.at(weight, x.clean)
    if ctx.sound or (module.is_split and not module.training):
        proved = _proved_box(weight, x.box, module)
        box = Box(proved.center.to(x.center), _rounded_up(proved.radius, proved.center, x.radius))
        ctx.preactivations[ctx.step] = preactivation_box(weight, x.box, box)
        return Interval(box.center, box.radius, clean)
    if module.is_split:
        ctx.preactivations[ctx.step] = x.box
        return Interval(*_box_in_training(ctx, weight, x, module), clean)
    h = (x.center, x.radius)
    start = relu_box(ctx, *h)
    if module.warm_start and clean is not None:
        start = clean.detach(), torch.zeros_like(clean)
    preactivation = apply_lifted(weight, _lifted(ctx, module, weight, h, start), h)
    ctx.preactivations[ctx.step] = Box(*preactivation)
    return Interval(*relu_box(ctx, *preactivation), clean)


def _box_in_training(ctx: Context, weight: Tensor, h: Interval, module: FixedPoint) -> Ends:
    """Return the ball z +- |r| / m, r the radius of h, cut by its images: differentiable; z has four digits."""
    matrix, radius = dense_weight(weight, h.center.shape[1:]), h.radius.flatten(1).norm(dim=1)
    with torch.no_grad():
        modulus = 1 - torch.linalg.eigvalsh((matrix + matrix.mT) / 2)[-1]
    z, reach = module.at(weight, h.center), per_example(radius / modulus, h.center)
    low, high = torch.relu(z - reach), z + reach
    ball = Box(((low + high) / 2).flatten(1), ((high - low) / 2).flatten(1))
    box = cut_by_images(ctx, matrix, Box(h.center.flatten(1), h.radius.flatten(1)), ball, _IMAGES_IN_TRAINING)
    return box.center.view_as(z), box.radius.view_as(z)


def _proved_box(weight: Tensor, h: Box, module: FixedPoint) -> Box:
    """Return a proved float64 box of z, by contraction or by strong monotonicity. Raises NotContractiveError."""
    if (proof := module.contraction(weight)).rate < 1:
        return verified_box(weight, h, proof)
    module.refuse_unproved(weight, h.center.shape[1:])
    other = module.monotonicity(weight, h.center.shape[1:])
    flat = Box(h.center.double().flatten(1), h.radius.double().flatten(1))
    with counted_rounding(h.center.device.type):
        z = cut_by_images(Context(sound=True), other.weight, flat, equilibrium_boxes(other, flat), _IMAGES)
    return Box(z.center.view_as(h.center), z.radius.view_as(h.center))


def _weight(ctx: Context, module: FixedPoint) -> Tensor:
    """Return the W that this context has saved: in training every reading moves the parametrisation on."""
    if ctx.step not in ctx.saved:
        ctx.saved[ctx.step] = module.weight
    return ctx.saved[ctx.step]


def _lifted(ctx: Context, module: FixedPoint, weight: Tensor, h: Ends, solution: Ends) -> Ends:
    """Return the lifted equilibrium after the module's iterations from `solution`, differentiable as it says."""
    with torch.set_grad_enabled(module.is_unrolled and torch.is_grad_enabled()):
        for _ in range(module.iterations):
            solution = relu_box(ctx, *apply_lifted(weight, solution, h))
    if module.is_unrolled:
        return solution
    return box_with_implicit_gradient(weight, h, solution, module.adjoint.iterations, ctx.relu_shrinkage)


def _backward(ctx: Backward, coefficients: Tensor, h: Interval, module: FixedPoint) -> Pulled:
    if not module.training and not module.contraction(module.weight).rate < 1:
        return _by_box(ctx, coefficients)
    if module.training:
        return pull_back(ctx, coefficients, h, ctx.saved[ctx.step], module.adjoint.iterations)
    return pull_back(ctx, coefficients, h, module.weight, None)


def _by_box(ctx: Backward, coefficients: Tensor) -> Pulled:
    """Return a bound by z's box alone: the adjoint iteration would not converge."""
    assert ctx.output is not None, "the pass sets it"
    z = ctx.output
    none = torch.zeros_like(coefficients)
    if not ctx.sound:
        return Pulled((none,), dot(ctx, coefficients, z.center) - dot(ctx, coefficients.abs(), z.radius))

    def costs() -> tuple[Tensor, Tensor]:
        each, rest = rounding_costs(magnitude(z), 9)
        return each + z.radius, rest

    return Pulled((none,), rounded_constant(ctx, coefficients, ctx.constant("box", costs), z.center))


def _refine(tighter: Tighter, z: Interval, h: Interval, module: FixedPoint) -> Interval:
    """Return z's box over pre-activations that linear bounds tighten where they have 0 inside, then cut by images."""
    weight, proved, h_box = module.weight.double(), z.box.double(), h.box.double()
    p = reachable_preactivation(weight, h_box, proved)

    def functionals(rows: Coefficients) -> list[Coefficients]:
        rows = dense(rows).to(z.center)
        return [transpose_product(module.weight, rows), rows]

    p = tighter(p, is_unstable(p), functionals)
    proved = intersect_with_image(weight, h_box, smaller_box(proved, *(torch.relu(end) for end in outward_ends(p))))
    return Interval(proved.center.to(z.center), _rounded_up(proved.radius, proved.center, z.radius), z.clean)


def _row_bounds(program: Program, values: list[Any], spec: Tensor) -> Tensor | None:
    """Return bounds by multipliers of a network with one strongly monotone equilibrium; else, and in float32, None."""
    network = equilibrium_network(program, values, spec) if spec.dtype == torch.float64 else None
    return None if network is None else row_bounds(network)


def _alive(h: Box, module: FixedPoint) -> Tensor:
    """Return where the pre-activation may be above 0; elsewhere z is 0, whatever h is."""
    weight = module.weight
    box = _proved_box(weight, h, module)
    preactivation = preactivation_box(weight.double(), h.double(), box)
    return ~(preactivation.upper <= 0) & (h.radius > 0)


def _rounded_up(radius: Tensor, center: Tensor, like: Tensor) -> Tensor:
    """Return a float64 radius in the precision of `like`, with a reserve for rounding radius and centre."""
    limits = torch.finfo(like.dtype)
    return (radius * (1 + 2 * limits.eps) + 2 * limits.eps * center.abs() + 2 * limits.tiny).to(like)


register(
    Operator(
        "fixed_point", _interval, (), {FixedPoint: lambda module: {"module": module}}, backward=_backward,
        needs_tighter_box=_alive, refine=_refine, row_bounds=_row_bounds,
        preactivation=lambda z, h, module: apply_weight(module.weight, z) + h,
        points=lambda ctx, h, module: module.at(_weight(ctx, module), h),
    )
)  # fmt: skip
