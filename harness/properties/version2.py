"""VNN-LIB 2.0, read by the package `vnnlib` and written as expressions of version 1.0."""

import json
import re
from collections.abc import Iterator
from math import prod
from typing import Any

from harness.errors import InputError, shorten
from harness.properties.expressions import Expression

_START = re.compile(r"(\s|;[^\n]*\n)*\(\s*(vnnlib-version|declare-network)")
_SYMBOLS = {"And": "and", "Or": "or", "LessEqual": "<=", "GreaterEqual": ">=", "Plus": "+", "Multiply": "*"}


def is_version2(text: str) -> bool:
    """Return whether a text declares networks, as files of version 2.0 do."""
    return _START.match(text) is not None


def expressions_of(text: str) -> Iterator[Expression]:
    """Yield the expressions of version 1.0 that say the same as a text of version 2.0.

    Raises InputError if the package `vnnlib` is missing or refuses the text, and for what version 1.0 cannot say:
    several networks, inputs or outputs, hidden values, and strict inequalities.
    """
    try:
        import vnnlib
    except ImportError:
        raise InputError("VNN-LIB 2.0 needs the package vnnlib: install the extra `vnnlib`") from None
    try:
        query = vnnlib.parse_query_string(text)
    except vnnlib.VNNLibException as error:
        raise InputError(f"not VNN-LIB 2.0: {_first_message(str(error))}") from None
    if len(query.networks) != 1:
        raise InputError(f"found {len(query.networks)} networks, allowed: one")
    (network,) = query.networks
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        counts = f"{len(network.inputs)} inputs and {len(network.outputs)} outputs"
        raise InputError(f"found a network with {counts}, allowed: one of each")
    shapes = {"Input": network.inputs[0].shape, "Output": network.outputs[0].shape}
    for kind, shape in zip("XY", shapes.values(), strict=True):
        for number in range(prod(shape)):
            yield ["declare-const", f"{kind}_{number}", "Real"]
    for assertion in query.assertions:
        yield ["assert", _expression(assertion.expr, shapes)]


def _first_message(text: str) -> str:
    """Return the first error that the package reports."""
    try:
        error = json.loads(text)["errors"][0]
        return f"line {error['line']}: {error['message']}, {error['hint']}"
    except (ValueError, LookupError, TypeError):
        return shorten(" ".join(text.split()))


def _expression(node: Any, shapes: dict[str, list[int]]) -> Expression:
    kind, children = type(node).__name__, [_expression(child, shapes) for child in node.children()]
    match kind:
        case "Var" if node.kind.name in shapes:
            number = 0
            for index, size in zip(node.indices, shapes[node.kind.name], strict=True):
                number = number * size + index
            return f"{'X' if node.kind.name == 'Input' else 'Y'}_{number}"
        case "Float" | "Int" | "IntExpr":
            return str(node.lexeme)  # its value is rounded
        case "Negate" | "Minus":
            return ["-", *children]
        case "Equal":
            return ["and", ["<=", *children], [">=", *children]]
        case _ if kind in _SYMBOLS:
            return [_SYMBOLS[kind], *children]
    raise InputError(
        f"found {shorten(str(node))}, allowed: and, or, <=, >=, ==, +, -, * of inputs, outputs and numbers"
    )
