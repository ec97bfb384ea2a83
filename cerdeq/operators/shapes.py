"""Operators that only move numbers: shapes, parts, padding, concatenation; dropout in evaluation, identity."""

import operator
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cerdeq.operators.backward import Backward, Pulled, moving
from cerdeq.operators.interval import (
    Context,
    Interval,
    as_interval,
    center_and_clean,
    rearrange,
    widen_sum,
    widen_terms,
)
from cerdeq.operators.record import Operator, options


def concatenate_interval(ctx: Context, tensors: Any, dim: int = 0) -> Interval:
    """Concatenation of Intervals and constants; no arithmetic."""
    like = next(value for value in tensors if isinstance(value, Interval))
    parts = [as_interval(value, like) for value in tensors]
    center, radius = (torch.cat([getattr(p, end) for p in parts], dim) for end in ("center", "radius"))
    clean = None if like.clean is None else torch.cat([p.clean_value() for p in parts], dim)
    radius = widen_sum(ctx, widen_terms(ctx, center, radius, 0), 0)  # a constant may be of another precision
    return Interval(center, radius, clean)


def moved(function: Callable[..., Tensor]) -> Callable[..., Interval]:
    """Return the rule of a function that only moves numbers."""
    return lambda ctx, x, *args, **kwargs: rearrange(x, lambda value: function(value, *args, **kwargs))


def permute_interval(ctx: Context, x: Interval, *dims: Any) -> Interval:
    """Permuted dimensions; no arithmetic. The batch must stay first."""
    order = dims[0] if isinstance(dims[0], list | tuple) else dims
    if order[0] % x.center.dim() != 0:
        raise ValueError(f"no bound rule for permute to {list(order)}: dimension 0, the batch, must stay first")
    return rearrange(x, lambda value: value.permute(order))


def transpose_interval(ctx: Context, x: Interval, dim0: int, dim1: int) -> Interval:
    """Two exchanged dimensions; no arithmetic. The batch must stay first."""
    dims = {dim0 % x.center.dim(), dim1 % x.center.dim()}
    if 0 in dims and len(dims) > 1:
        raise ValueError(f"no bound rule for transpose of {dim0} and {dim1}: dimension 0, the batch, must stay first")
    return rearrange(x, lambda value: value.transpose(dim0, dim1))


def pad_interval(
    ctx: Context, x: Interval, pad, mode: Literal["constant"] = "constant", value: float | None = None
) -> Interval:
    """Padding by a constant, of any dimension but the batch."""
    if len(pad) // 2 >= x.center.dim():
        raise ValueError(f"no bound rule for padding {list(pad)}, which changes dimension 0, the batch")
    center, clean = center_and_clean(x, lambda part: F.pad(part, pad, value=value))
    radius = F.pad(x.radius, pad)
    if value:  # it may be of another precision
        radius = widen_sum(ctx, widen_terms(ctx, center, radius, 0), 0)
    return Interval(center, radius, clean)


def index_interval(ctx: Context, x: Interval, index: Any) -> Interval:
    """x[index] by constants: integers, slices, None and ..., or one list beside slices; the batch stays."""
    items = index if isinstance(index, tuple) else (index,)
    lists = sum(isinstance(item, list | tuple | Tensor) for item in items)
    numbers = sum(isinstance(item, int) for item in items)
    takes_batch = items[0] is Ellipsis and sum(isinstance(item, int | slice) for item in items) == x.center.dim()
    if not (isinstance(items[0], slice) and items[0] == slice(None)) and (
        items[0] is not Ellipsis or takes_batch or lists
    ):
        raise ValueError(f"no bound rule for an index of dimension 0, the batch; found {index}, allowed: x[:, ...]")
    if (lists and lists + numbers > 1) or any(isinstance(item, bool) for item in items):
        raise ValueError(
            f"no bound rule for the index {index}; allowed: integers and slices, or one list beside slices"
        )
    result = rearrange(x, lambda value: value[index])
    if result.center.dim() < 2:
        raise ValueError(f"the index {index} leaves no dimension but the batch; keep one, as in x[:, -1:]")
    return result


def along(function: Callable[..., Tensor]) -> Callable[..., Interval]:
    """Return the rule of a function of (x, dim, ...) that only moves numbers along one dimension."""

    def rule(ctx: Context, x: Interval, dim: int, *args: Any, **kwargs: Any) -> Interval:
        if dim % x.center.dim() == 0:
            raise ValueError(f"no bound rule for {function.__name__} along dimension 0, the batch")
        return rearrange(x, lambda value: function(value, dim, *args, **kwargs))

    return rule


def whole(ctx: Context, x: Interval, *args: Any, **kwargs: Any) -> Interval:
    """Return the argument of an operator with several results; `part` takes each of these from it."""
    return x


def part_interval(
    ctx: Context, x: Interval, number: int, function: Callable[..., Any], *args: Any, **kwargs: Any
) -> Interval:
    """Return one of the results of torch.chunk or torch.split, whose other arguments come last."""
    dim = kwargs.get("dim", args[1] if len(args) > 1 else 0)
    if dim % x.center.dim() == 0:
        raise ValueError(f"no bound rule for {function.__name__} along dimension 0, the batch; give another dim")
    return rearrange(x, lambda value: function(value, *args, **kwargs)[number])


def identity_interval(ctx: Context, x: Interval) -> Interval:
    """The value itself."""
    return x


def dropout_interval(
    ctx: Context, x: Interval, p: float = 0.5,
    training: Literal[False] = True,  # type: ignore[assignment]  # torch's default, which is refused
    inplace: bool = False,
) -> Interval:  # fmt: skip
    """Dropout in evaluation: the value itself."""
    return x


def reshape_backward(ctx: Backward, coefficients: Tensor, x: Interval, *args: Any, **kwargs: Any) -> Pulled:
    """Identity, flatten, reshape and view: no arithmetic."""
    pulled = coefficients.reshape(*coefficients.shape[:2], *x.center.shape[1:])
    return Pulled((pulled,), coefficients.new_zeros(coefficients.shape[:2]))


def take_part(parts: Any, number: int, *args: Any, **kwargs: Any) -> Tensor:
    """Return one of several results; the other arguments, a function and its own, tell the rules what they are."""
    return parts[number]


def _part(x: Tensor, number: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    return function(x, *args, **kwargs)[number]


PARTS = Operator(
    "parts", whole, (torch.chunk, torch.split, Tensor.chunk, Tensor.split), {}, reshape_backward, affine="view"
)
RECORDS = (
    Operator(
        "concatenate", concatenate_interval, (torch.cat, torch.concat, torch.concatenate), {},
        moving(torch.cat, concatenate_interval), bounded="list",
    ),
    Operator(
        "flatten", moved(torch.flatten), (torch.flatten, Tensor.flatten), {nn.Flatten: options("start_dim", "end_dim")},
        reshape_backward, affine="view",
    ),
    Operator(
        "reshape", moved(Tensor.reshape), (torch.reshape, Tensor.reshape, Tensor.view), {}, reshape_backward,
        affine="view",
    ),
    Operator(
        "permute", permute_interval, (torch.permute, Tensor.permute), {}, moving(Tensor.permute, permute_interval),
        affine="view",
    ),
    Operator(
        "transpose", transpose_interval, (torch.transpose, Tensor.transpose), {},
        moving(torch.transpose, transpose_interval), affine="view",
    ),
    Operator("pad", pad_interval, (F.pad,), {}, moving(F.pad, pad_interval), affine="single"),
    Operator(
        "index", index_interval, (operator.getitem,), {}, moving(operator.getitem, index_interval),
        affine="view",
    ),
    Operator(
        "narrow", along(torch.narrow), (torch.narrow, Tensor.narrow), {}, moving(torch.narrow, along(torch.narrow)),
        affine="view",
    ),
    Operator(
        "select", along(torch.select), (torch.select, Tensor.select), {}, moving(torch.select, along(torch.select)),
        affine="view",
    ),
    Operator(
        "index_select", along(torch.index_select), (torch.index_select, Tensor.index_select), {},
        moving(torch.index_select, along(torch.index_select)), affine="single",
    ),
    PARTS,
    Operator("part", part_interval, (take_part,), {}, moving(_part, part_interval), affine="view"),
    Operator(
        "identity", identity_interval, (), {nn.Identity: options()}, reshape_backward, affine="view", windows="boxes"
    ),
    Operator(
        "dropout", dropout_interval, (F.dropout, F.dropout2d),
        {nn.Dropout: options("training"), nn.Dropout2d: options("training")}, reshape_backward, affine="view",
        windows="boxes",
    ),
)  # fmt: skip
