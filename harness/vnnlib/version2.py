"""VNN-LIB 2.0, read by the package `vnnlib` and written as expressions of version 1.0."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

from harness.common.errors import InputError, shorten
from harness.vnnlib.brackets import Expression, parse
from harness.vnnlib.properties import Declaration, Property
from harness.vnnlib.version1 import property_of

Shapes = dict[str, tuple[int, ...]]

_START = re.compile(r"\s*\(\s*(vnnlib-version|declare-network)")
_VERSION = re.compile(r"\s*\(\s*vnnlib-version\s*<\s*2\.0\s*>")
_INDICES = re.compile(r"\s*\[([^()\[\]]*)\]")
_NAME, _NUMBER = r"(declare-\w+|vnnlib-version|[a-zA-Z_]\w*)(\[(\d+(,\d+)*)?\])?", r"-?\d+(\.\d+)?([eE][+-]?\d+)?"
_WORD = re.compile(rf"{_NAME}|{_NUMBER}|[-+*<>]|[<>=!]=|<2\.0>", re.ASCII)
_TYPES = {"F32": "float32", "Real": "real"}  # whose numbers the network's float32 inputs and outputs are
_MOST_VARIABLES = 1_000_000
_LARGEST = 2**24  # characters: the package takes up to 200 times their memory, and 6 s a million, whatever the deadline
_SYMBOLS = {"And": "and", "Or": "or", "LessEqual": "<=", "GreaterEqual": ">=", "Plus": "+", "Multiply": "*"}


def is_version2(code: str) -> bool:
    """Return whether a text without comments declares networks, as files of version 2.0 do."""
    return _START.match(code) is not None


def property_of_version2(code: str) -> Property:
    """Return the property of a text of version 2.0 without comments: the package's own end at other characters.

    Raises InputError if the package `vnnlib` is missing or refuses the text, and for what version 1.0 cannot say:
    several networks, inputs or outputs, hidden values, other types than float32 and real, and strict inequalities.
    """
    if not _VERSION.match(code):
        raise InputError(f"found {shorten(code.split(')')[0].strip())}, allowed: (vnnlib-version <2.0>)")
    if len(code) > _LARGEST:
        raise InputError(f"found {len(code):,} characters outside of comments, allowed: up to {_LARGEST:,}")
    parse(code)  # checks brackets: the package has no limit to their depth
    _refuse_other_words(code)
    try:
        import vnnlib
    except ImportError:
        raise InputError("VNN-LIB 2.0 needs the package vnnlib: install the extra `vnnlib`") from None
    try:
        query = vnnlib.parse_query_string(code)
    except IndexError:  # an integer of more than 64 bits
        raise InputError("not VNN-LIB 2.0: it has an index or size that is too large") from None
    except vnnlib.VNNLibException as error:
        raise InputError(f"not VNN-LIB 2.0: {_first_message(str(error))}") from None
    if len(query.networks) != 1:
        raise InputError(f"found {len(query.networks)} networks, allowed: one")
    (network,) = query.networks
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        counts = f"{len(network.inputs)} inputs and {len(network.outputs)} outputs"
        raise InputError(f"found a network with {counts}, allowed: one of each")
    declared = _declaration(network.inputs[0]), _declaration(network.outputs[0])
    shapes = {"Input": declared[0].shape, "Output": declared[1].shape}
    return replace(property_of(_expressions(query.assertions, shapes)), declared=declared)


def _refuse_other_words(code: str) -> None:
    """Raise InputError for what is no name, number or operator: the package reads 1.5-2.0 as two, an index 1.9 as 1."""
    joined = _INDICES.sub(lambda indices: f"[{','.join(index.strip() for index in indices[1].split(','))}]", code)
    for word in re.findall(r"[^()\s]+", joined):
        if not _WORD.fullmatch(word):
            allowed = "numbers, names and operators apart from each other, and indices from 0 without a point"
            raise InputError(f"found {shorten(word)}, allowed: {allowed}")


def _declaration(declaration: Any) -> Declaration:
    """Return what is declared. Raises InputError if the type is not the network's, or there are too many numbers."""
    if declaration.dtype.name not in _TYPES:
        raise InputError(f"found {shorten(str(declaration).strip())}, allowed: the types float32 and real")
    if prod(declaration.shape) > _MOST_VARIABLES:
        raise InputError(f"found {shorten(str(declaration).strip())}, allowed: up to {_MOST_VARIABLES} numbers")
    return Declaration(str(declaration.name), _TYPES[declaration.dtype.name], tuple(declaration.shape))


def _expressions(assertions: Any, shapes: Shapes) -> Iterator[Expression]:
    """Yield the expressions of version 1.0 that say the same. shapes: of the input and of the output."""
    for kind, shape in zip("XY", (shapes["Input"], shapes["Output"]), strict=True):
        for number in range(prod(shape)):
            yield ["declare-const", f"{kind}_{number}", "Real"]
    for assertion in assertions:
        yield ["assert", _expression(assertion.expr, shapes)]


def _first_message(text: str) -> str:
    """Return the first error that the package reports."""
    try:
        error = json.loads(text)["errors"][0]
        return f"line {error['line']}: {error['message']}, {error['hint']}"
    except (ValueError, LookupError, TypeError):
        return shorten(" ".join(text.split()))


def _expression(node: Any, shapes: Shapes) -> Expression:
    kind, children = type(node).__name__, [_expression(child, shapes) for child in node.children()]
    match kind:
        case "Var" if node.kind.name in shapes:
            number, shape = 0, shapes[node.kind.name]
            for index, size in zip(node.indices, shape, strict=True):
                if not 0 <= index < size:  # the package lets negative ones through
                    raise InputError(f"found {shorten(str(node).strip())} of shape {[*shape]}, allowed: from 0")
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
