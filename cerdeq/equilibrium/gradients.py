"""Gradients of fixed points by the implicit function theorem: memory does not grow with the iterations.

The solver runs without autograd; the functions here hand its solution on with a gradient. For z = f(z) a
gradient g in z gives y = D (g + W^T y), D the derivative of the activation at z; y is then the gradient in h and
y z^T the one in W (Bai, Kolter and Koltun 2019, theorem 1). Where W contracts, the backward is a fixed count of Picard
steps, written out, so that torch.compile takes it whole; its products are in autocast's precision where the forward
pass ran under autocast.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cerdeq.equilibrium.monotone.splitting import Splitting
from cerdeq.equilibrium.recurrence import apply_transposed, weight_gradient
from cerdeq.operators.relu import relu_box_slopes


def with_implicit_gradient(weight: Tensor, h: Tensor, z: Tensor, iterations: int) -> Tensor:
    """Return z, a solution of z = relu(W z + h), differentiable in weight and h. z, h: [B, ...]."""
    return _Clean.apply(weight, h, z, iterations)


def box_with_implicit_gradient(
    weight: Tensor, h: tuple[Tensor, Tensor], solution: tuple[Tensor, Tensor], iterations: int, relu_shrinkage: float
) -> tuple[Tensor, Tensor]:
    """Return a solution (c, r) of the lifted equilibrium of h (c, r), differentiable in weight and h; all [B, ...].

    relu_shrinkage: the factor of unstable units' upper ends in that equilibrium. Below 1 the iteration jumps where a
    unit becomes stable, and there may be no solution; the last iterate is then taken for one.
    """
    return _Lifted.apply(weight, *h, *solution, iterations, relu_shrinkage)


def split_with_implicit_gradient(weight: Tensor, h: Tensor, z: Tensor, splitting: Splitting) -> Tensor:
    """Return z [B, N], equilibria of h by splitting, differentiable in weight [N, N] and h."""
    return _Split.apply(weight, h, z, splitting)


def _precision(like: Tensor) -> torch.dtype:
    """Return the precision of products: autocast's if it is on."""
    device = like.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype


class _Clean(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, h: Tensor, z: Tensor, iterations: int) -> Tensor:
        ctx.save_for_backward(weight, z)
        ctx.precision = _precision(weight)
        ctx.iterations = iterations
        return z.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        weight, z, rounded = (tensor.to(ctx.precision) for tensor in (*ctx.saved_tensors, g))
        active = torch.sign(z)
        y = active * rounded
        for _ in range(ctx.iterations):
            y = active * (rounded + apply_transposed(weight, y))
        grad_weight = weight_gradient(weight, z, y).to(g) if ctx.needs_input_grad[0] else None  # not in attacks
        return grad_weight, y.to(g), None, None


class _Lifted(torch.autograd.Function):
    """The derivative of the ReLU on (c, r) is the identity where the unit is active (after it, c > r), the mean of both
    gradients, shrunk, where it is unstable (c = r > 0), and 0 where it is dead (c = r = 0)."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, h_center: Tensor, h_radius: Tensor, center: Tensor, radius: Tensor,
        iterations: int, relu_shrinkage: float,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.save_for_backward(weight, center, radius)
        ctx.precision = _precision(weight)
        ctx.iterations, ctx.relu_shrinkage = iterations, relu_shrinkage
        return center.clone(), radius.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_center: Tensor, grad_radius: Tensor) -> tuple[Tensor | None, ...]:
        solution = ctx.saved_tensors[1:]
        always, shared = (slope.to(ctx.precision) for slope in relu_box_slopes(solution, ctx.relu_shrinkage))
        weight, center, radius, of_center, of_radius = (
            tensor.to(ctx.precision) for tensor in (*ctx.saved_tensors, grad_center, grad_radius)
        )
        magnitude = weight.abs()

        def through_relu(gc: Tensor, gr: Tensor) -> tuple[Tensor, Tensor]:
            mixed = shared * (gc + gr)
            return torch.addcmul(mixed, always, gc), torch.addcmul(mixed, always, gr)

        yc, yr = through_relu(of_center, of_radius)
        for _ in range(ctx.iterations):
            yc, yr = through_relu(of_center + apply_transposed(weight, yc), of_radius + apply_transposed(magnitude, yr))
        grad_weight = None
        if ctx.needs_input_grad[0]:
            of_magnitude = torch.sign(weight) * weight_gradient(weight, radius, yr)
            grad_weight = (weight_gradient(weight, center, yc) + of_magnitude).to(grad_center)
        return grad_weight, yc.to(grad_center), yr.to(grad_radius), None, None, None, None


class _Split(torch.autograd.Function):
    """A strongly monotone W need not contract: y solves a linear system for each example, to a tolerance."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, h: Tensor, z: Tensor, splitting: Splitting) -> Tensor:
        ctx.save_for_backward(z)
        ctx.splitting = splitting
        return z.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor, None, None]:
        (z,) = ctx.saved_tensors
        y = ctx.splitting.gradient(z, g)
        return (y.mT @ z if ctx.needs_input_grad[0] else None), y, None, None
