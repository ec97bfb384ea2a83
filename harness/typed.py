"""Values out of JSON, checked by the types of a dataclass's fields."""

import sys
import types
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

from harness.errors import shown

_WRITTEN: dict[Any, tuple[type, ...]] = {
    **{kind: (kind,) for kind in (str, int, bool, dict, list, types.NoneType)},
    float: (int, float),
    tuple: (list, tuple),
}
"""How JSON has each type; what has no entry checks itself."""


def checked(kind: type, content: Any) -> dict[str, Any]:
    """An object out of JSON, whose values are of the types of the fields of `kind` that are called like them.

    Raises TypeError, also for an integer that is too large for the number that is wanted.
    """
    if type(content) is not dict:
        raise TypeError(f"found {shown(content)}, not an object")
    for name, wanted in _fields(kind).items():
        if name in content and not _fits(content[name], wanted):
            raise TypeError(f"{name}: found {shown(content[name])}, not {getattr(wanted, '__name__', wanted)}")
    return content


_fields = cache(get_type_hints)  # slow, and asked for with every file


def _fits(value: Any, kind: Any) -> bool:
    origin, inside = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, types.UnionType):
        return any(_fits(value, each) for each in inside)
    if origin not in _WRITTEN:
        return True
    if type(value) not in _WRITTEN[origin]:
        return False
    if origin is float:
        return type(value) is float or abs(value) <= sys.float_info.max
    items = value.values() if origin is dict else value if origin in (list, tuple) else ()
    return not inside or all(_fits(item, inside[-1 if origin is dict else 0]) for item in items)
