"""The rule table: one record an operator, from which every method's rules are looked up.

A new operator is one record here, or one `register` call from outside, and its test.
"""

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cerdeq.bounds import interval


@dataclass(frozen=True)
class Operator:
    """What bounds know of one operator.

    interval: rule (Context, *args, **kwargs) -> Interval, with the arguments of the functional form.
    functions: the functionals and tensor methods it stands for. modules: for each module class, the arguments
    that follow the input. bounded: which arguments may be bounded values: the "first" alone, "one" at any place, or
    "any". view: whether the result may share its input's memory.
    """

    name: str
    interval: Callable[..., interval.Interval]
    functions: tuple[Callable[..., Any], ...] = ()
    modules: dict[type[nn.Module], Callable[[Any], dict[str, Any]]] = field(default_factory=dict)
    bounded: Literal["first", "one", "any"] = "first"
    view: bool = False


class UnsupportedOperator(TypeError):  # noqa: N818
    """An operation of the model has no bound rule; the message names its node and the user's line of code."""


def _conv2d_arguments(module: nn.Conv2d) -> dict[str, Any]:
    if module.padding_mode != "zeros":
        raise UnsupportedOperator(f"no bound rule for Conv2d with padding_mode={module.padding_mode!r}")
    return {
        "weight": module.weight,
        "bias": module.bias,
        "stride": module.stride,
        "padding": module.padding,
        "dilation": module.dilation,
        "groups": module.groups,
    }


def _batch_norm_arguments(module: Any) -> dict[str, Any]:
    if module.momentum is None:
        raise UnsupportedOperator("no bound rule for batch norm with momentum=None")
    return {
        "running_mean": module.running_mean,
        "running_var": module.running_var,
        "weight": module.weight,
        "bias": module.bias,
        "training": module.training or module.running_mean is None,
        "momentum": module.momentum,
        "eps": module.eps,
    }


def _avg_pool2d_arguments(module: nn.AvgPool2d) -> dict[str, Any]:
    names = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
    return {name: getattr(module, name) for name in names}


def _dropout_arguments(module: nn.Module) -> dict[str, Any]:
    if module.training:
        raise UnsupportedOperator("no bound rule for dropout in training mode")
    return {}


TABLE = (
    Operator("conv2d", interval.conv2d, (F.conv2d,), {nn.Conv2d: _conv2d_arguments}),
    Operator("linear", interval.linear, (F.linear,), {nn.Linear: lambda m: {"weight": m.weight, "bias": m.bias}}),
    Operator(
        "batch_norm",
        interval.batch_norm,
        (F.batch_norm,),
        {nn.BatchNorm1d: _batch_norm_arguments, nn.BatchNorm2d: _batch_norm_arguments},
    ),
    Operator("relu", interval.relu, (F.relu, torch.relu, Tensor.relu), {nn.ReLU: lambda m: {}}),
    Operator("add", interval.add, (operator.add, operator.iadd, torch.add, Tensor.add), bounded="any"),
    Operator("subtract", interval.subtract, (operator.sub, operator.isub, torch.sub, Tensor.sub), bounded="any"),
    Operator("multiply", interval.multiply, (operator.mul, operator.imul, torch.mul, Tensor.mul), bounded="one"),
    Operator("divide", interval.divide, (operator.truediv, operator.itruediv, torch.div, Tensor.div)),
    Operator("avg_pool2d", interval.avg_pool2d, (F.avg_pool2d,), {nn.AvgPool2d: _avg_pool2d_arguments}),
    Operator(
        "adaptive_avg_pool2d",
        interval.adaptive_avg_pool2d,
        (F.adaptive_avg_pool2d,),
        {nn.AdaptiveAvgPool2d: lambda m: {"output_size": m.output_size}},
    ),
    Operator(
        "flatten",
        interval.flatten,
        (torch.flatten, Tensor.flatten),
        {nn.Flatten: lambda m: {"start_dim": m.start_dim, "end_dim": m.end_dim}},
        view=True,
    ),
    Operator("identity", interval.identity, (), {nn.Identity: lambda m: {}, nn.Dropout: _dropout_arguments}, view=True),
)

_by_function: dict[Any, Operator] = {}
_by_module: dict[type[nn.Module], Operator] = {}


def register(record: Operator) -> None:
    """Add an operator, or replace the record of the same functions and module classes."""
    _by_function.update(dict.fromkeys(record.functions, record))
    _by_module.update(dict.fromkeys(record.modules, record))


def of_function(function: Any) -> Operator | None:
    """The record of a functional or tensor method, None where there is none."""
    return _by_function.get(function)


def of_module(module: nn.Module) -> Operator | None:
    """The record of a module's class, or of a base class whose forward it runs unchanged; None where there is none."""
    found = _registered_class(module)
    return None if found is None else _by_module[found]


def module_arguments(record: Operator, module: nn.Module) -> dict[str, Any]:
    """The functional form's arguments after the input, read from the module as it is now."""
    found = _registered_class(module)
    assert found is not None, "a step's module has a record"
    return record.modules[found](module)


def _registered_class(module: nn.Module) -> type[nn.Module] | None:
    nearest = next((cls for cls in type(module).__mro__ if cls in _by_module), None)
    if nearest is None:
        return None
    own = any(
        name in vars(module) or getattr(type(module), name, None) is not getattr(nearest, name, None)
        for name in ("forward", "_conv_forward")  # torch's convolutions do their work in the second
    )
    return None if own else nearest


for _record in TABLE:
    register(_record)
