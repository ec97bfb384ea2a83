"""Fully connected layers, products with a constant matrix, and a specification as a last one."""

import operator
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cerdeq.operators.backward import Backward, Pulled, magnitude, rounded_constant, rounding_costs
from cerdeq.operators.interval import (
    Context,
    Interval,
    center_and_clean,
    rearrange,
    rounding_factor,
    widen_sum,
    widen_terms,
)
from cerdeq.operators.record import Operator, options


def linear_interval(ctx: Context, x: Interval, weight, bias=None) -> Interval:
    """Fully connected layer over the last dimension."""
    center, clean = center_and_clean(x, lambda value: F.linear(value, weight, bias))
    terms = weight.shape[1] + 1
    radius = F.linear(widen_terms(ctx, x.center, x.radius, terms), weight.abs())
    return Interval(center, widen_sum(ctx, radius, terms, bias), clean)


def matmul_interval(ctx: Context, x: Interval, weight) -> Interval:
    """Product of rows x [B, ..., M] and a constant matrix [M, N]."""
    if weight.dim() != 2:
        raise ValueError(f"no bound rule for products with a constant of shape {list(weight.shape)}, only for matrices")
    return linear_interval(ctx, x, weight.T)


def linear_backward(ctx: Backward, coefficients: Tensor, x: Interval, weight, bias=None) -> Pulled:
    """Fully connected layer over the last dimension: A W."""
    pulled = (coefficients @ weight,)
    if not ctx.sound:
        constant = coefficients.new_zeros(coefficients.shape[:2])
        return Pulled(pulled, constant if bias is None else (coefficients * bias).flatten(2).sum(2))

    def costs() -> tuple[Tensor, Tensor]:
        result = F.linear(magnitude(x), weight.abs())
        return rounding_costs(result if bias is None else result + bias.abs(), *weight.shape)

    each, rest = ctx.constant("costs", costs)
    return Pulled(
        pulled, rounded_constant(ctx, coefficients, (each, rest), None if bias is None else bias.expand_as(each))
    )


def specified_linear(ctx: Context, x: Interval, spec: Tensor, weight, bias=None) -> Interval:
    """`spec` [B, K, N] merged into a last linear layer [N, M] before its weights are taken absolutely: [B, K]."""
    spec = spec.to(weight)
    merged, terms = spec @ weight, weight.shape[1] + 1

    def margins(value: Tensor, matrix: Tensor) -> Tensor:
        return torch.einsum("bkm,bm->bk", matrix, value)

    radius = margins(widen_terms(ctx, x.center, x.radius, terms), merged.abs())
    if not ctx.sound:  # B N M products in place of B K M, and no rounding to bound
        center, clean = center_and_clean(x, lambda value: F.linear(value, weight, bias))
        of_outputs = partial(torch.einsum, "bkn,bn->bk", spec)
        return Interval(of_outputs(center), radius, None if clean is None else of_outputs(clean))
    limits, size = torch.finfo(radius.dtype), x.center.abs() + x.radius
    products = rounding_factor(spec.shape[2], radius.dtype)
    radius = radius + products * margins(size, spec.abs() @ weight.abs())
    # Of products of spec and weights, and of numbers of spec, that are rounded to a subnormal number or 0.
    radius = radius + spec.shape[2] * limits.tiny * (size @ (1 + weight.abs().sum(0))).unsqueeze(1)
    offset = 0.0
    if bias is not None:
        offset = spec @ bias
        radius = radius + (terms + spec.shape[2] + 4) * limits.eps * (spec.abs() @ bias.abs())
        radius = radius + limits.tiny * bias.abs().sum()
    return Interval(margins(x.center, merged) + offset, widen_sum(ctx, radius, terms * spec.shape[2]))


def specified(ctx: Context, x: Interval, spec: Tensor) -> Interval:
    """`spec` [B, K, N] of outputs of N elements that no linear layer precedes: [B, K]."""
    apply = "bkn,bn->bk"
    x = rearrange(x, lambda value: value.flatten(1))
    spec = spec.to(x.center)
    radius = torch.einsum(apply, spec.abs(), widen_terms(ctx, x.center, x.radius, spec.shape[2]))
    if ctx.sound:  # of numbers of spec that are rounded to a subnormal number or 0
        radius = radius + torch.finfo(radius.dtype).tiny * (x.center.abs() + x.radius).sum(1, keepdim=True)
    clean = None if x.clean is None else torch.einsum(apply, spec, x.clean)
    return Interval(torch.einsum(apply, spec, x.center), widen_sum(ctx, radius, spec.shape[2]), clean)


RECORDS = (
    Operator(
        "linear", linear_interval, (F.linear,), {nn.Linear: options("weight", "bias")}, linear_backward, affine="sums"
    ),
    Operator(
        "matmul",
        matmul_interval,
        (operator.matmul, torch.matmul, Tensor.matmul),
        {},
        lambda ctx, a, x, weight: linear_backward(ctx, a, x, weight.T),
        affine="sums",
    ),
)
