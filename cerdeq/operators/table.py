"""The table of operators, in which every method looks up its rules. A new operator is a record and its test."""

from typing import Any

from torch import nn

from cerdeq.operators import (
    arithmetic,
    averages,
    batch_norm,
    clamp,
    convolution,
    hard_curves,
    linear,
    pooling,
    relu,
    sequences,
    shapes,
    sigmoid,
    sign,
)
from cerdeq.operators.record import Operator

_FILES = (
    convolution, linear, batch_norm, relu, clamp, hard_curves, pooling, averages, sequences, sigmoid, sign, arithmetic,
    shapes,
)  # fmt: skip
TABLE = tuple(record for file in _FILES for record in file.RECORDS)
AROUND_FORWARD = ("__call__", "_wrapped_call_impl", "_call_impl", "_compiled_call_impl")  # what a call runs first
_FORWARD = ("forward", "_conv_forward", "_check_input_dim", "_output_padding")  # torch's, with what they call
_by_function: dict[Any, Operator] = {}
_by_module: dict[type[nn.Module], Operator] = {}


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
