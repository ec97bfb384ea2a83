"""Entries of `trials` that stand for several: a list where none belongs is a choice.

What is a list by its type (decay_epochs, and options of networks and methods that take lists) stays one. To choose
among such lists, the mapping around them is listed: `train: [{decay_epochs: [6, 7]}, {decay_epochs: []}]`.
"""

import inspect
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from pydantic import TypeAdapter

from baselines import network_names, options_of
from harness.config.settings import TrainSettings
from harness.errors import SettingError, require
from harness.methods import METHODS, method_options

ZIP = "zip"
LARGEST = 10_000
"""How many an entry may stand for."""


@dataclass(frozen=True)
class Choice:
    """One of those that an entry stands for. number: of the entry in the file. chosen: which one it is, in words."""

    number: int
    content: Any
    chosen: str = ""

    @property
    def key(self) -> str:
        """Where it stands in the file."""
        return f"trials.{self.number}"


def expanded(number: int, entry: Any) -> list[Choice]:
    """All that an entry stands for: each of its lists' values with each, the list written first changing slowest.

    Those that `zip` names go together instead: the first values, the second ones and so on. What is no mapping is left
    as it is. Raises SettingError for lists that are empty, too many, in a list, or do not go together.
    """
    if not isinstance(entry, dict):
        return [Choice(number, entry)]
    rest = {key: value for key, value in entry.items() if key != ZIP}
    together = _together(rest, entry[ZIP]) if ZIP in entry else []
    made = list(islice(_expanded(rest, together, {}), LARGEST + 1))
    if len(made) > LARGEST:
        raise SettingError(", ".join(_lists(rest)), "more than that", f"lists that make at most {LARGEST:,} entries")
    return [Choice(number, content, _words(chosen)) for content, chosen in made]


def takes_list(annotation: Any) -> bool:
    """Whether a value of this type may be a list."""
    schema = TypeAdapter(annotation).json_schema()
    kinds = schema.get("anyOf", [schema])
    return any(kind.get("type", "array") == "array" and not {"enum", "$ref", "const"} & kind.keys() for kind in kinds)


def _expanded(
    entry: dict[str, Any], together: list[str], chosen: dict[str, Any]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Each entry that is made, with what was chosen for each key."""
    lists = _lists(entry)
    if not lists:
        yield entry, chosen
        return
    first = next(iter(lists))
    keys = together if first in together else [first]
    for values in zip(*(lists[key] for key in keys), strict=True):
        made = entry
        for key, value in zip(keys, values, strict=True):
            made = _with(made, key, value)
        yield from _expanded(made, together, chosen | dict(zip(keys, values, strict=True)))


def _lists(entry: dict[str, Any]) -> dict[str, list[Any]]:
    """The entry's choices by their keys, in the order they are written. Raises SettingError."""
    found: dict[str, list[Any]] = {}
    for key, value in entry.items():
        if isinstance(value, list):
            found[key] = value
        elif isinstance(value, dict) and key in _KINDS:
            found |= {f"{key}.{name}": item for name, item in value.items() if _is_choice(entry, key, name, item)}
    for key, values in found.items():
        require(key, values, bool(values), "a value, or a list of at least one")
        require(key, values, not any(isinstance(value, list) for value in values), "a list of values that are no lists")
    return found


def _is_choice(entry: dict[str, Any], section: str, name: str, value: Any) -> bool:
    if not isinstance(value, list):
        return False
    takes = {takes_list(kinds[name]) for kinds in _KINDS[section](entry) if name in kinds}
    allowed = "entries apart: it is a list by its type for one of this entry's networks or methods, not for another"
    require(f"{section}.{name}", value, len(takes) < 2, allowed)
    return takes != {True}


def _together(entry: dict[str, Any], keys: Any) -> list[str]:
    """The keys of `zip`, checked. Raises SettingError."""
    lists = _lists(entry)
    texts = isinstance(keys, list) and all(isinstance(key, str) for key in keys) and len(set(keys)) == len(keys) >= 2
    allowed = f"two or more of this entry's lists, each once: {', '.join(lists) or 'it has none'}"
    require(ZIP, keys, texts and set(keys) <= lists.keys(), allowed)
    lengths = [len(lists[key]) for key in keys]
    told = ", ".join(f"{key} has {length}" for key, length in zip(keys, lengths, strict=True))
    require(ZIP, keys, len(set(lengths)) == 1, f"lists of the same length: {told}")
    return keys


def _with(entry: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    section, _, name = key.partition(".")
    return entry | {section: entry[section] | {name: value} if name else value}


def _words(chosen: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in chosen.items())


def _annotations(options: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    return {name: option.annotation for name, option in options.items()}


def _named(value: Any, known: Any) -> list[str]:
    """Which names of a registry a key has, be it one or a list."""
    return [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str) and name in known]


_TRAIN = typing.get_type_hints(TrainSettings, include_extras=True)
_KINDS: dict[str, Any] = {
    "options": lambda entry: [_annotations(options_of(name)) for name in _named(entry.get("model"), network_names())],
    "method_options": lambda entry: [_annotations(method_options(m)) for m in _named(entry.get("method"), METHODS)],
    "train": lambda entry: [_TRAIN],
}
"""What the keys of an entry's mappings are by type, for each of its networks or methods."""
