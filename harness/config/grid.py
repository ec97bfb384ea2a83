"""Entries of `trials` that stand for several trials: a list where no list belongs is a choice between its values.

What is a list by its type (decay_epochs, and options of networks and methods that take lists) stays one. To choose
among such lists, list the mapping around them: `train: [{decay_epochs: [6, 7]}, {decay_epochs: []}]`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, signature
from itertools import product
from typing import Any

from pydantic import TypeAdapter

from baselines import network_names, options_of
from harness.config.settings import TrainSettings
from harness.errors import require
from harness.methods import METHODS, method_options

ZIP = "zip"
LARGEST = 10_000
"""How many trials an entry may stand for under one seed."""


@dataclass(frozen=True)
class Choice:
    """One of the entries that an entry stands for. number: of the entry in the file. words: the values it chose."""

    number: int
    content: Any
    words: str = ""

    @property
    def key(self) -> str:
        """The entry's key in the file."""
        return f"trials.{self.number}"


def expand(number: int, entry: Any) -> list[Choice]:
    """Return the product of the entry's lists; the list that is written first changes slowest.

    The lists that `zip` names advance together: first values with first values. Raises SettingError for lists that are
    empty, too long, hold lists, or are of different lengths in `zip`.
    """
    if not isinstance(entry, dict):
        return [Choice(number, entry)]
    content = {key: value for key, value in entry.items() if key != ZIP}
    zipped = _check_zip(entry[ZIP], _lists(content)) if ZIP in entry else []
    return [
        Choice(number, expanded, ", ".join(f"{key} {value}" for key, value in chosen.items()))
        for expanded, chosen in _expand(content, zipped)
    ]


@cache
def takes_list(annotation: Any) -> bool:
    """Return whether a value of this type may be a list."""
    schema = TypeAdapter(annotation).json_schema()
    return schema == {} or any(kind.get("type") == "array" for kind in schema.get("anyOf", [schema]))


def _expand(entry: dict[str, Any], zipped: list[str]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each entry without lists, with the values chosen for it by key."""
    lists = _lists(entry)
    if not lists:
        return [(entry, {})]
    groups: list[list[str]] = []
    for key in lists:
        if key not in zipped:
            groups.append([key])
        elif zipped not in groups:
            groups.append(zipped)
    axes = [
        [dict(zip(keys, values, strict=True)) for values in zip(*(lists[key] for key in keys), strict=True)]
        for keys in groups
    ]
    count = math.prod(len(axis) for axis in axes)
    require(", ".join(lists), f"{count:,} trials", count <= LARGEST, f"at most {LARGEST:,}")
    expanded = []
    for parts in product(*axes):
        chosen = {key: value for part in parts for key, value in part.items()}
        for content, further in _expand(_replace(entry, chosen), []):  # a chosen mapping may hold lists
            expanded.append((content, chosen | further))
    return expanded


def _lists(entry: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the entry's lists of choices by dotted key, in their order in the file. Raises SettingError."""
    lists: dict[str, list[Any]] = {}
    for key, value in entry.items():
        if isinstance(value, list):
            lists[key] = value
        elif isinstance(value, dict):
            for name, item in value.items():
                if isinstance(item, list) and not _is_list(entry, key, name):
                    lists[f"{key}.{name}"] = item
    for key, values in lists.items():
        require(key, values, bool(values), "a value, or a list of at least one")
        require(key, values, not any(isinstance(value, list) for value in values), "a list of values that are no lists")
    return lists


def _is_list(entry: dict[str, Any], section: str, name: str) -> bool:
    """Return whether an option or setting of an entry is a list by its type."""
    owners: list[Mapping[str, Parameter]] = [signature(TrainSettings).parameters]
    if section == "options":
        owners = [options_of(model) for model in _names(entry.get("model"), network_names())]
    elif section == "method_options":
        owners = [method_options(method) for method in _names(entry.get("method"), METHODS)]
    return any(takes_list(owner[name].annotation) for owner in owners if name in owner)


def _names(value: Any, registered: Iterable[str]) -> list[str]:
    """Return the registered names in a value, which is a name or a list of names."""
    return [name for name in registered if name == value or (isinstance(value, list) and name in value)]


def _check_zip(keys: Any, lists: dict[str, list[Any]]) -> list[str]:
    """Return the keys that `zip` names. Raises SettingError."""
    is_list = isinstance(keys, list) and len(keys) >= 2 and all(keys.count(key) == 1 for key in keys)
    allowed = f"two or more of this entry's lists, each once: {', '.join(lists) or 'it has none'}"
    require(ZIP, keys, is_list and all(isinstance(key, str) and key in lists for key in keys), allowed)
    lengths = ", ".join(f"{key} has {len(lists[key])}" for key in keys)
    require(ZIP, keys, len({len(lists[key]) for key in keys}) == 1, f"lists of the same length: {lengths}")
    return keys


def _replace(entry: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """Return the entry with values by dotted key."""
    result = dict(entry)
    for key, value in values.items():
        section, dot, name = key.partition(".")
        result[section] = result[section] | {name: value} if dot else value
    return result
