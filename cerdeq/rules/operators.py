"""The rule table: one record for each operator, in which every method looks up its rules.

A new operator is one record here, or one `register` call from outside, and its test.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cerdeq.boxes import Box
from cerdeq.rules import activations, batch_norm, interval, linear, relaxation, sign
from cerdeq.rules.interval import Interval
from cerdeq.rules.sigmoid import SIGMOID, TANH


def crossing(box: Box, **options: Any) -> Tensor:
    """Return where a box has 0 inside: the neurons whose ReLU is not linear."""
    return (box.lower < 0) & (box.upper > 0)


def _is_wide(box: Box, **options: Any) -> Tensor:
    return box.radius > 0


@dataclass(frozen=True)
class Operator:
    """The rules and properties of one operator.

    interval: rule (Context, *args, **kwargs) -> Interval, with the arguments of the functional form.
    functions: its functionals and tensor methods.
    modules: for each module class, the arguments that follow the input.
    backward: rule (Backward, coefficients, *args, **kwargs) -> Pulled, `linear.affine` of an affine operator; None
        if only IBP can bound it.
    unsettled: of one that is not affine, (Box, **options) -> a mask of where a tighter input box makes its relaxation
        tighter.
    refine: of one with pre-activations of its own, (tighten.Tighter, result, *args, **kwargs) -> the result over those,
        tightened.
    preactivation: of an activation, the values whose sign may be split on: (result, *args, **kwargs) -> Tensor, of
        points.
    points: of one that in training depends on the batch or changes with each reading, (Context, Tensor, *args,
        **kwargs) -> Tensor by what the context has saved.
    bounded: which arguments may be bounded values: the "first" alone, "one" at any position, "any", or "list", any of
        those in the first argument.
    allowed: the values that an argument may take, if not all.
    affine: of an affine operator of one bounded argument, whether each element of the result "sums" elements of the
        argument or is made of a "single" one; None where neither is known.
    local: whether a pixel of the result comes from one "pixel" of an image, treated like every other, or from a
        "window" as of conv2d; None where neither is known.
    by_constants: whether the sound backward rule reads boxes in `Backward.constant` alone, which returns a tuple; then
        windows of an image need no boxes of their own.
    broadcasts: whether arguments of several shapes are broadcast.
    view: whether the result may share its input's memory.
    """

    name: str
    interval: Callable[..., interval.Interval]
    functions: tuple[Callable[..., Any], ...] = ()
    modules: dict[type[nn.Module], Callable[[Any], dict[str, Any]]] = field(default_factory=dict)
    backward: linear.Rule | None = None
    unsettled: Callable[..., Tensor] | None = None
    refine: Callable[..., Interval] | None = None
    preactivation: Callable[..., Tensor] | None = None
    points: Callable[..., Tensor] | None = None
    bounded: Literal["first", "one", "any", "list"] = "first"
    allowed: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    affine: Literal["sums", "single"] | None = None
    local: Literal["pixel", "window"] | None = None
    by_constants: bool = False
    broadcasts: bool = False
    view: bool = False


class UnsupportedOperator(TypeError):  # noqa: N818
    """An operation of the model has no bound rule; the message names its node and the user's line of code."""


def _options(*attributes: str) -> Callable[[Any], dict[str, Any]]:
    """Return a function that reads arguments from a module's attributes of the same names."""
    return lambda module: {name: getattr(module, name) for name in attributes}


_OWNERS = (torch, F, Tensor)
AROUND_FORWARD = ("__call__", "_wrapped_call_impl", "_call_impl", "_compiled_call_impl")  # what a call runs first
_POOL = ("kernel_size", "stride", "padding", "ceil_mode")


def _conv2d_arguments(module: nn.Conv2d) -> dict[str, Any]:
    if module.padding_mode != "zeros":
        raise UnsupportedOperator(f"no bound rule for Conv2d with padding_mode={module.padding_mode!r}")
    return _options("weight", "bias", "stride", "padding", "dilation", "groups")(module)


def _batch_norm_arguments(module: Any) -> dict[str, Any]:
    if module.momentum is None:
        raise UnsupportedOperator("no bound rule for batch norm with momentum=None")
    if module.running_mean is None and not module.training:
        raise UnsupportedOperator("batch norm without running statistics is a function of the whole batch")
    arguments = _options("running_mean", "running_var", "weight", "bias", "momentum", "eps")(module)
    return {**arguments, "training": module.training or module.running_mean is None}


def _product(x: Any, y: Any) -> list[tuple[Any, Any]]:
    return [(x, y)] if isinstance(x, interval.Interval) else [(y, x)]


def _first(result: Tensor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return the argument of an activation."""
    return x


def _once(coefficients: Tensor, *args: Any, **kwargs: Any) -> int:
    """Return the fan-out of an operator that only moves elements."""
    return 1


def _window(coefficients: Tensor, x: Any, kernel_size: Any, *args: Any, **kwargs: Any) -> int:
    return math.prod(interval.pair(kernel_size))


def take_part(parts: Any, number: int, *args: Any, **kwargs: Any) -> Tensor:
    """Return one of several results; the other arguments, a function and its own, tell the rules what they are."""
    return parts[number]


def _index_fan_out(coefficients: Tensor, x: Any, index: Any) -> int:
    return (
        coefficients[0, 0].numel()
        if any(isinstance(item, list | Tensor) for item in linear.nested_items([index]))
        else 1
    )


def _part(x: Tensor, number: int, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
    return function(x, *args, **kwargs)[number]


PARTS = Operator(
    "parts", interval.whole, (torch.chunk, torch.split, Tensor.chunk, Tensor.split),
    backward=linear.reshape, affine="single", view=True,
)  # fmt: skip
TABLE = (
    Operator(
        "conv2d", interval.conv2d, (F.conv2d,), {nn.Conv2d: _conv2d_arguments},
        backward=linear.conv2d, affine="sums", local="window",
    ),
    Operator(
        "linear", interval.linear, (F.linear,), {nn.Linear: _options("weight", "bias")},
        backward=linear.linear, affine="sums",
    ),
    Operator(
        "matmul", interval.matmul, (operator.matmul, torch.matmul, Tensor.matmul),
        backward=linear.matmul, affine="sums",
    ),
    Operator(
        "batch_norm", batch_norm.interval, (F.batch_norm,),
        {nn.BatchNorm1d: _batch_norm_arguments, nn.BatchNorm2d: _batch_norm_arguments},
        backward=batch_norm.backward, points=batch_norm.points, affine="single", local="pixel", by_constants=True,
    ),
    Operator(
        "relu", activations.relu, (F.relu, torch.relu, Tensor.relu), {nn.ReLU: _options()},
        backward=relaxation.relu, unsettled=crossing, preactivation=_first, local="pixel", by_constants=True,
    ),
    Operator(
        "leaky_relu", activations.leaky_relu, (F.leaky_relu,), {nn.LeakyReLU: _options("negative_slope")},
        backward=relaxation.leaky_relu, unsettled=crossing, preactivation=_first, local="pixel", by_constants=True,
    ),
    Operator(
        "absolute", activations.absolute, (torch.abs, torch.absolute, Tensor.abs, Tensor.absolute),
        backward=relaxation.absolute, unsettled=crossing, preactivation=_first, local="pixel", by_constants=True,
    ),
    Operator(
        "clamp", activations.clamp, (torch.clamp, torch.clip, Tensor.clamp, Tensor.clip),
        backward=relaxation.clamp, unsettled=_is_wide, local="pixel", by_constants=True,
    ),
    Operator(
        "hardtanh", activations.hardtanh, (F.hardtanh,), {nn.Hardtanh: _options("min_val", "max_val")},
        backward=relaxation.hardtanh, unsettled=_is_wide, local="pixel", by_constants=True,
    ),
    Operator(
        "relu6", activations.relu6, (F.relu6,),
        backward=relaxation.relu6, unsettled=_is_wide, local="pixel", by_constants=True,
    ),
    Operator(
        "max_pool2d", activations.max_pool2d, (F.max_pool2d, torch.max_pool2d),
        {nn.MaxPool2d: _options(*_POOL, "dilation", "return_indices")},
        backward=relaxation.max_pool2d, unsettled=_is_wide,
        allowed={"return_indices": (False,)},
    ),
    Operator(
        "sigmoid", SIGMOID.interval, (torch.sigmoid, Tensor.sigmoid), {nn.Sigmoid: _options()},
        backward=SIGMOID.backward, unsettled=lambda box: box.radius > 0,
    ),
    Operator(
        "tanh", TANH.interval, (torch.tanh, Tensor.tanh), {nn.Tanh: _options()},
        backward=TANH.backward, unsettled=lambda box: box.radius > 0,
    ),
    Operator(
        "sign", sign.interval, (torch.sign, Tensor.sign), backward=sign.backward, unsettled=sign.is_undecided,
    ),
    Operator(
        "conv_transpose2d", interval.conv_transpose2d, (F.conv_transpose2d,),
        {
            nn.ConvTranspose2d: _options(
                "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"
            )
        },
        backward=linear.conv_transpose2d, affine="sums",
    ),
    Operator(
        "add", interval.add, (operator.add, operator.iadd, torch.add, Tensor.add),
        backward=linear.combination(lambda x, y, alpha=1: [(x, 1), (y, float(alpha))], interval.add), bounded="any",
        affine="single", local="pixel", broadcasts=True,
    ),
    Operator(
        "subtract", interval.subtract,
        (operator.sub, operator.isub, torch.sub, torch.subtract, Tensor.sub, Tensor.subtract),
        backward=linear.combination(lambda x, y, alpha=1: [(x, 1), (y, -float(alpha))], interval.subtract),
        bounded="any", affine="single", local="pixel", broadcasts=True,
    ),
    Operator(
        "multiply", interval.multiply,
        (operator.mul, operator.imul, torch.mul, torch.multiply, Tensor.mul, Tensor.multiply),
        backward=linear.combination(_product, interval.multiply), bounded="one",
        affine="single", local="pixel", broadcasts=True,
    ),
    Operator(
        "divide", interval.divide,
        (operator.truediv, operator.itruediv, torch.div, torch.divide, Tensor.div, Tensor.divide),
        backward=linear.combination(lambda x, y: [(x, interval.reciprocal(y, x.center))], interval.divide),
        affine="single", local="pixel", broadcasts=True,
    ),
    Operator(
        "negative", interval.negative, (operator.neg, torch.neg, torch.negative, Tensor.neg, Tensor.negative),
        backward=linear.combination(lambda x: [(x, -1)], interval.negative), affine="single", local="pixel",
    ),
    Operator(
        "avg_pool2d", interval.avg_pool2d, (F.avg_pool2d,),
        {nn.AvgPool2d: _options(*_POOL, "count_include_pad", "divisor_override")},
        backward=linear.affine(F.avg_pool2d, interval.avg_pool2d, _window), affine="sums",
    ),
    Operator(
        "adaptive_avg_pool2d", interval.adaptive_avg_pool2d, (F.adaptive_avg_pool2d,),
        {nn.AdaptiveAvgPool2d: _options("output_size")},
        backward=linear.affine(F.adaptive_avg_pool2d, interval.adaptive_avg_pool2d), affine="sums",
    ),
    Operator(
        "concatenate", interval.concatenate, (torch.cat, torch.concat, torch.concatenate),
        backward=linear.affine(torch.cat, interval.concatenate, _once), bounded="list",
    ),
    Operator(
        "flatten", interval.flatten, (torch.flatten, Tensor.flatten),
        {nn.Flatten: _options("start_dim", "end_dim")},
        backward=linear.reshape, affine="single", view=True,
    ),
    Operator(
        "reshape", interval.reshape, (torch.reshape, Tensor.reshape, Tensor.view),
        backward=linear.reshape, affine="single", view=True,
    ),
    Operator(
        "permute", interval.permute, (torch.permute, Tensor.permute),
        backward=linear.permute, affine="single", view=True,
    ),
    Operator(
        "transpose", interval.transpose, (torch.transpose, Tensor.transpose),
        backward=linear.transpose, affine="single", view=True,
    ),
    Operator(
        "pad", interval.pad, (F.pad,),
        backward=linear.affine(F.pad, interval.pad, _once), allowed={"mode": ("constant",)}, affine="single",
    ),
    Operator(
        "index", interval.index, (operator.getitem,),
        backward=linear.affine(operator.getitem, interval.index, _index_fan_out), affine="single", view=True,
    ),
    Operator(
        "narrow", interval.along(torch.narrow), (torch.narrow, Tensor.narrow),
        backward=linear.affine(torch.narrow, interval.along(torch.narrow), _once), affine="single", view=True,
    ),
    Operator(
        "select", interval.along(torch.select), (torch.select, Tensor.select),
        backward=linear.affine(torch.select, interval.along(torch.select), _once), affine="single", view=True,
    ),
    Operator(
        "index_select", interval.along(torch.index_select), (torch.index_select, Tensor.index_select),
        backward=linear.affine(torch.index_select, interval.along(torch.index_select)), affine="single",
    ),
    PARTS,
    Operator(
        "part", interval.part, (take_part,), backward=linear.affine(_part, interval.part, _once),
        affine="single", view=True,
    ),
    Operator(
        "identity", interval.identity, (), {nn.Identity: _options()},
        backward=linear.reshape, affine="single", local="pixel", view=True,
    ),
    Operator(
        "dropout", interval.dropout, (F.dropout, F.dropout2d),
        {nn.Dropout: _options("training"), nn.Dropout2d: _options("training")},
        backward=linear.reshape, allowed={"training": (False,)},
        affine="single", local="pixel", view=True,
    ),
)  # fmt: skip

_by_function: dict[Any, Operator] = {}
_by_module: dict[type[nn.Module], Operator] = {}
_FORWARD = ("forward", "_conv_forward", "_check_input_dim", "_output_padding")  # torch's, with what they call
_originals: dict[tuple[Any, str], Any] = {(nn.Module, name): getattr(nn.Module, name) for name in AROUND_FORWARD}
"""The code that rules know, by the class or package that holds it and its name."""


def register(record: Operator, replace: bool = False) -> None:
    """Add an operator. replace: instead of those that its functions and module classes have.

    Raises ValueError if one of them has a record and `replace` is False.
    """
    existing = [key for key in (*record.functions, *record.modules) if key in _by_function or key in _by_module]
    if existing and not replace:
        raise ValueError(
            f"operator {record.name!r}: {existing[0]} has a rule already; replace=True puts this one in its place"
        )
    _by_function.update(dict.fromkeys(record.functions, record))
    _by_module.update(dict.fromkeys(record.modules, record))
    keys: list[tuple[Any, str]] = [(kind, name) for kind in record.modules for name in (*AROUND_FORWARD, *_FORWARD)]
    names = {getattr(function, "__name__", "") for function in record.functions}
    keys += [(owner, name) for name in names for owner in _OWNERS]
    keys += [(Tensor, operation.format(name)) for name in names for operation in ("__{}__", "__r{}__")]
    _originals.update({(owner, name): getattr(owner, name) for owner, name in keys if hasattr(owner, name)})


def replaced_code() -> list[str]:
    """Return the names of methods and functions that were replaced in torch since rules for them were registered."""
    now = {key: getattr(*key, None) for key in _originals}
    return [f"{owner.__name__}.{name}" for (owner, name), code in _originals.items() if now[owner, name] is not code]


def of_function(function: Any) -> Operator | None:
    """Return the record of a functional or tensor method, None if there is none."""
    return _by_function.get(function)


def of_module(module: nn.Module) -> Operator | None:
    """Return the record of a module's class, or of a base class whose forward it runs unchanged, or None."""
    kind = _registered_class(module)
    return None if kind is None else _by_module[kind]


def module_arguments(record: Operator, module: nn.Module) -> dict[str, Any]:
    """Return the functional form's arguments after the input, read from the module as it is now."""
    kind = _registered_class(module)
    assert kind is not None, "a step's module has a record"
    return record.modules[kind](module)


def _registered_class(module: nn.Module) -> type[nn.Module] | None:
    nearest = next((cls for cls in type(module).__mro__ if cls in _by_module), None)
    if nearest is None:
        return None
    return None if replaces(module, nearest, (*AROUND_FORWARD, *_FORWARD)) else nearest


def replaces(module: nn.Module, base: type[nn.Module], names: tuple[str, ...]) -> bool:
    """Return whether a module has other methods of these names than its base class."""
    return any(
        name in vars(module) or getattr(type(module), name, None) is not getattr(base, name, None) for name in names
    )


for _record in TABLE:
    register(_record)
