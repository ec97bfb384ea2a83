"""Errors about names that do not exist: networks, data sets, options; each suggests the nearest names."""

import difflib
import inspect
from collections.abc import Iterable, Mapping

SUGGESTED = 1
"""How many names a message suggests."""


def suggestion(name: object, names: list[str]) -> str:
    """Return the end of a message that suggests the nearest of the names, or one with these initials, or ""."""
    by_lower = {each.lower(): each for each in names}
    near = [by_lower[each] for each in difflib.get_close_matches(str(name).lower(), by_lower, n=SUGGESTED)]
    near = near or [each for each in names if str(name) == "".join(word[:1] for word in each.split("_"))]  # as lr
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""


class UnknownNameError(ValueError):
    """A name that is not registered; the message says what to write instead, or the nearest name and all names.

    hint: what to write instead, where that is certain. allowed: the names and the hint, as one text.
    """

    def __init__(self, kind: str, name: object, names: list[str], hint: str = ""):
        hint = f"; {hint}" if hint else suggestion(name, names)
        end = "" if hint.endswith("?") else "."
        super().__init__(f"unknown {kind} {name!r}{hint}{end} Known: {', '.join(names)}")
        self.allowed = f"{', '.join(names)}{hint}"


class UnknownOptionError(TypeError):
    """An option that its owner does not have; the message lists those it has. option: its name."""

    def __init__(self, option: str, owner: str, names: Iterable[str]):
        allowed = f"{', '.join(names) or 'none'}{suggestion(option, [*names])}"
        super().__init__(f"unknown option {option!r} of {owner}; allowed: {allowed}")
        self.option = option


def refuse_unknown_options(owner: str, options: Iterable[str], allowed: Mapping[str, inspect.Parameter]) -> None:
    """Raise UnknownOptionError for the first of the `options` of `owner` that is not allowed."""
    for option in options:
        if option not in allowed:
            raise UnknownOptionError(option, owner, allowed)
