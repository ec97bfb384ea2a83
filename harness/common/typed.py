"""Check values read from JSON by the types of a dataclass's fields."""

import sys
import types
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from harness.common.errors import shorten

_JSON_TYPES: dict[Any, tuple[type, ...]] = {
    **{kind: (kind,) for kind in (str, int, bool, dict, list, types.NoneType)},
    float: (int, float),
    tuple: (list, tuple),
}
"""The types that JSON has for each type; types without an entry are not checked."""


def check_types(kind: type, content: Any) -> dict[str, Any]:
    """Return an object read from JSON, after checking its values by the fields of `kind` with the same names.

    Raises TypeError for a value of another type, and for an integer too large for a float.
    """
    if type(content) is not dict:
        raise TypeError(f"found {shorten(content)}, not an object")
    for name, wanted in _fields(kind).items():
        if name in content and not _fits(content[name], wanted):
            raise TypeError(f"{name}: found {shorten(content[name])}, not {getattr(wanted, '__name__', wanted)}")
    return content


_fields = cache(get_type_hints)  # slow, and needed for every file


def _fits(value: Any, kind: Any) -> bool:
    origin, inside = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in inside)
    if origin not in _JSON_TYPES:
        return True
    if type(value) not in _JSON_TYPES[origin]:
        return False
    if origin is float:
        return type(value) is float or abs(value) <= sys.float_info.max
    items = value.values() if origin is dict else value if origin in (list, tuple) else ()
    return not inside or all(_fits(item, inside[-1 if origin is dict else 0]) for item in items)
