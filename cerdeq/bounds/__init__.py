"""Bounds of any torch.fx-traceable module over a box of inputs."""

from typing import Any

import torch
from torch import Tensor, nn

from cerdeq.bounds.agreement import refuse_another_function
from cerdeq.bounds.crown_pass import linear_lower_bound
from cerdeq.bounds.ibp import output_of, points_of, propagate, values_of
from cerdeq.bounds.methods import BOUNDS, Bound, both_ends, bound_named, lower_bounds
from cerdeq.bounds.query import Query
from cerdeq.boxes import Box
from cerdeq.errors import UnsupportedOperator
from cerdeq.operators.backward import Backward, Pulled, affine, dot, magnitude, per_row, slack
from cerdeq.operators.interval import Context, Interval
from cerdeq.operators.record import Operator
from cerdeq.operators.table import register
from cerdeq.precision import uncompiled
from cerdeq.tracing.precisions import refuse_other_precision
from cerdeq.tracing.program import Program, Reference, Step, is_equal
from cerdeq.tracing.refusals import refuse_training
from cerdeq.tracing.trace import trace

_LABEL_TYPES = (torch.int64, torch.int32)  # as an index, uint8 and bool would be masks


@uncompiled
def bound(model: nn.Module, region: Box, method: str = "ibp", spec: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return lower and upper bounds, [B, K] each, of `spec` applied to the model's outputs, for all inputs in `region`.

    The bounds hold in real arithmetic for the stored weights: rounding is counted outwards. Linear bounds are computed
    in float64 on CPUs and on GPUs with fast float64. They stay in the model's precision on other GPUs, and if its
    forward computes constants in the input's dtype; then call `model.double()` for tight bounds. Only "ibp" has a
    gradient.

    Args:
        region: a Box [B, ...], from LinfBall for instance.
        method: one of BOUNDS, each never looser than those before it. "ibp": intervals; "crown-ibp": linear bounds over
            the boxes of IBP; "crown": over boxes that CROWN tightens layer by layer; "alpha-crown": with slopes
            optimised for each row of `spec`.
        spec: [B, K, N], K linear functions of the N outputs; None for the outputs themselves, in their own shape.

    Raises:
        ValueError: for an unknown method, a model in training mode or of another precision or device than the region,
            a region of another shape than the model takes or whose radius is negative or not a number, a spec of
            another shape, and arguments of other types.
        UnsupportedOperator: if an operation has no rule, or if torch.fx saw another function than the model is.
        NotContractiveError, NotConvergedError: of an equilibrium that is not proved to be unique, or whose solver
            misses its tolerance.
    """
    linear = bound_named(method).linear
    check_arguments(model, region, spec)
    kind = region.center.dtype
    if linear and spec is not None and not is_equal(spec.to(kind).to(spec.dtype), spec):
        raise ValueError(f"spec must have numbers of {kind}, as the region, found others of {spec.dtype}")
    program = trace(model, linear=linear)
    check_columns(spec, refuse_another_function(model, program, region))
    lower, upper = both_ends(program, Interval(region.center, region.radius), spec, method)
    return torch.where(lower.isnan(), -torch.inf, lower), torch.where(upper.isnan(), torch.inf, upper)


def check_arguments(model: nn.Module, region: Box, spec: Tensor | None) -> None:
    """Raise ValueError if bounds of the model over the region make no sense, as `bound` says."""
    for name, value, kind in (("model", model, nn.Module), ("region", region, Box)):
        if not isinstance(value, kind):
            raise ValueError(f"{name} must be a {kind.__name__}, found {_kind(value)}")
    refuse_training(model)
    center, radius = region.center, region.radius
    kinds = [_kind(part) for part in (center, radius)]
    if not _has_real_numbers(center) or not center.is_floating_point() or kinds[0] != kinds[1] or center.dim() < 2:
        raise ValueError(
            "the region must have a center and a radius [B, ...], floating-point tensors of one kind, found "
            f"{kinds[0]} and {kinds[1]}; a single example needs a batch dimension: x[None]"
        )
    tensors = [value for value in [*model.parameters(), *model.buffers()] if value.is_floating_point()]
    if not (dtypes := {value.dtype for value in tensors}) <= {center.dtype}:
        raise ValueError(f"model and region must have one precision, found {dtypes} and {center.dtype}")
    if spec is not None and (not _has_real_numbers(spec) or spec.dim() != 3 or len(spec) != len(center)):
        raise ValueError(f"spec must be [{len(center)}, K, N] as the region, real numbers, found {_kind(spec)}")
    devices = {str(tensor.device) for tensor in [center, *tensors, *([] if spec is None else [spec])]}
    if len(devices) > 1:
        raise ValueError(f"model, region and spec must be on one device, found {sorted(devices)}")
    if not bool((radius >= 0).all()):
        raise ValueError("the region's radius must be at least 0 everywhere")


def _has_real_numbers(value: Any) -> bool:
    """Return whether a value is a dense tensor of real numbers."""
    is_dense = isinstance(value, Tensor) and value.layout == torch.strided
    return is_dense and not value.is_complex() and value.dtype != torch.bool


def _kind(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(value)
    return f"{value.dtype} {list(value.shape)} on {value.device}, {value.layout}".removesuffix(", torch.strided")


def check_columns(spec: Tensor | None, output: torch.Size | None) -> None:
    """Raise ValueError if rows of the spec [B, K, N] are not as long as an output; None for an unknown one."""
    if spec is not None and output is not None and spec.shape[2] != output.numel():
        raise ValueError(
            f"spec must be [{len(spec)}, K, {output.numel()}] for outputs of {list(output)}, found {list(spec.shape)}"
        )


def margin_spec(labels: Tensor, classes: int) -> Tensor:
    """Return the margins of the true class over each other one: labels [B] -> spec [B, classes - 1, classes].

    Row k of example b is the unit vector of its label minus that of the k-th other class. Raises ValueError for fewer
    than two classes, and if labels are no tensor of this shape, or out of range.
    """
    if classes < 2:
        raise ValueError(f"classes must be at least 2, found {classes}")
    if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.dtype not in _LABEL_TYPES:
        found = f"{labels.dtype} {list(labels.shape)}" if isinstance(labels, Tensor) else repr(labels)
        raise ValueError(f"labels must be an int64 or int32 tensor [B], found {found}")
    if not bool(((labels >= 0) & (labels < classes)).all()):
        raise ValueError(f"labels must lie in 0 to {classes - 1}, found {labels.min().item()} to {labels.max().item()}")
    return unchecked_margin_spec(labels, classes)


def unchecked_margin_spec(labels: Tensor, classes: int) -> Tensor:
    """Return `margin_spec` without checks: compiled and captured steps must not read values."""
    identity = torch.eye(classes, device=labels.device)
    others = torch.arange(classes - 1, device=labels.device).expand(len(labels), -1)
    others = others + (others >= labels[:, None])
    return identity[labels][:, None, :] - identity[others]
