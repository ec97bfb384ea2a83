"""Select things by the names that users type, which may hold wildcards."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from harness.common.errors import require

Item = TypeVar("Item")


def select_by_pattern(option: str, patterns: Sequence[str], names: Mapping[Item, Sequence[str]]) -> list[Item]:
    """Return the items with a name that equals a pattern or, if none equals it, that matches it.

    names: all names of each item. Raises SettingError, with two names of each, for a pattern that selects nothing.
    """
    selected = set[Item]()
    allowed = "\n  ".join(["one of", *("  ".join(each[:2]) for each in names.values())])
    for pattern in patterns:
        items = {item for item in names if pattern in names[item]}
        items = items or {item for item in names if any(fnmatchcase(name, pattern) for name in names[item])}
        require(option, pattern, bool(items), allowed)
        selected |= items
    return [item for item in names if item in selected]
