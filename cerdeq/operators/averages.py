"""Sums and means over dimensions."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cerdeq.operators.backward import affine
from cerdeq.operators.interval import Context, Interval, center_and_clean, widen_sum, widen_terms
from cerdeq.operators.record import Operator


def _over_dimensions(function: Callable[..., Tensor]) -> Callable[..., Interval]:
    """Return the interval rule of torch.sum or torch.mean over other dimensions than the batch."""

    def interval(ctx: Context, x: Interval, dim: Any = None, keepdim: bool = False) -> Interval:
        rank = x.center.dim()
        dims = {axis % rank for axis in ((dim,) if isinstance(dim, int) else dim or range(rank))}
        if 0 in dims or (len(dims) == rank - 1 and not keepdim):
            raise ValueError(
                f"no bound rule for {function.__name__} over dimensions {sorted(dims)} of {rank}; "
                "allowed: dimensions from 1 on; at least one of them must remain, or keepdim=True"
            )
        over = sorted(dims)
        terms = torch.Size(x.center.shape[axis] for axis in over).numel() + 1
        center, clean = center_and_clean(x, lambda value: function(value, over, keepdim))
        radius = function(widen_terms(ctx, x.center, x.radius, terms), over, keepdim)
        return Interval(center, widen_sum(ctx, radius, terms), clean)

    return interval


def _record(function: Callable[..., Tensor], method: Callable[..., Tensor]) -> Operator:
    interval = _over_dimensions(function)
    rule = affine(function, interval, lambda *args, **kwargs: 1)  # each element is part of one sum
    return Operator(function.__name__, interval, (function, method), {}, rule, affine="sums")


RECORDS = (_record(torch.mean, Tensor.mean), _record(torch.sum, Tensor.sum))
