"""Lists in an entry of `trials`: a list where no list belongs is a choice between its values, a trial for each.

What is a list by its type (decay_epochs, and options of networks and methods that take lists) stays one. To choose
among such lists, list the mapping around them: `train: [{decay_epochs: [6, 7]}, {decay_epochs: []}]`.
"""

import math
from functools import cache
from itertools import product
from typing import Any

from pydantic import TypeAdapter

from baselines import network_names, options_of
from harness.common.errors import require
from harness.common.models import Model
from harness.config.yaml_text import merge, nest
from harness.pretrained.network_file import NetworkFile, Source
from harness.settings import Recipe

ZIP = "zip"
_SECTIONS: dict[str, type[Model]] = {"train": Recipe, "checkpoint": NetworkFile, "source": Source}
_OPTIONS = ("options", "method_options")
LARGEST = 10_000
"""How many trials a sweep may have."""


def expand(entry: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the product of an entry's lists: each entry without lists, and the values that it chose by dotted key.

    The list that is written first changes slowest. The lists that `zip` names advance together. Raises SettingError for
    lists that are empty, too long, hold lists, or are of different lengths in `zip`.
    """
    content = {key: value for key, value in entry.items() if key != ZIP}
    lists = _lists(content)
    zipped = _check_zip(entry[ZIP], lists) if ZIP in entry else []
    if not lists:
        return [(content, {})]
    axes: dict[str, list[dict[str, Any]]] = {}
    for key, values in lists.items():
        axis = ZIP if key in zipped else key
        choices = [{key: value} for value in values]
        axes[axis] = [one | other for one, other in zip(axes.get(axis, [{}] * len(values)), choices, strict=True)]
    count = math.prod(len(axis) for axis in axes.values())
    require(", ".join(lists), f"{count:,} trials", count <= LARGEST, f"at most {LARGEST:,}")
    expanded = []
    for parts in product(*axes.values()):
        choice = {key: value for part in parts for key, value in part.items()}
        changed = content
        for key, value in choice.items():
            changed = merge(changed, nest(key.split(".", 1), value))
        expanded += [(inner, choice | further) for inner, further in expand(changed)]  # a mapping may hold lists
        require(", ".join(lists), f"{len(expanded):,} trials or more", len(expanded) <= LARGEST, f"at most {LARGEST:,}")
    return expanded


def without_options(entry: dict[str, Any]) -> dict[str, Any]:
    """Return an entry without options that have lists: which of these are choices, only code that needs torch knows."""
    content = {key: value for key, value in entry.items() if key not in _OPTIONS or not _has_list(value)}
    if isinstance(entry.get(ZIP), list):
        content[ZIP] = [key for key in entry[ZIP] if str(key).partition(".")[0] not in _OPTIONS]
        if len(content[ZIP]) < 2:
            del content[ZIP]
    return content


def _has_list(value: Any) -> bool:
    return isinstance(value, list) or (
        isinstance(value, dict) and any(isinstance(each, list) for each in value.values())
    )


def names_in(entry: dict[str, Any], key: str) -> list[str]:
    """Return the name that an entry has under a key, or the names of its list there."""
    value = entry.get(key)
    return [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]


@cache
def takes_list(annotation: Any) -> bool:
    """Return whether a value of this type may be a list."""
    schema = TypeAdapter(annotation).json_schema()
    return schema == {} or any(kind.get("type") == "array" for kind in schema.get("anyOf", [schema]))


def _lists(entry: dict[str, Any]) -> dict[str, list[Any]]:
    """Return the entry's lists of choices by dotted key, in their order in the file. Raises SettingError."""
    lists: dict[str, list[Any]] = {}
    for key, value in entry.items():
        if isinstance(value, list) and "." not in key:
            lists[key] = value
        elif isinstance(value, dict):
            own = {f"{key}.{name}": item for name, item in value.items() if isinstance(item, list)}
            lists |= {dotted: item for dotted, item in own.items() if not _is_list(entry, *dotted.split(".", 1))}
    for key, values in lists.items():
        require(key, values, bool(values), "a value, or a list of at least one")
        require(key, values, not any(isinstance(value, list) for value in values), "a list without lists in it")
    return lists


def _is_list(entry: dict[str, Any], section: str, name: str) -> bool:
    """Return whether an option or setting of an entry is a list by its type."""
    owners: list[Any] = [_SECTIONS.get(section, Recipe).model_fields]
    if section == "options":
        owners = [options_of(model) for model in names_in(entry, "model") if model in network_names()]
    elif section == "method_options":
        from harness.methods import METHODS, method_options

        owners = [method_options(method) for method in names_in(entry, "method") if method in METHODS]
    return any(takes_list(owner[name].annotation) for owner in owners if name in owner)


def _check_zip(keys: Any, lists: dict[str, list[Any]]) -> list[str]:
    """Return the keys that `zip` names. Raises SettingError."""
    are_lists = isinstance(keys, list) and all(isinstance(key, str) and key in lists for key in keys)
    allowed = f"two or more of this entry's lists, each once: {', '.join(lists) or 'it has none'}"
    require(ZIP, keys, are_lists and len(set(keys)) == len(keys) >= 2, allowed)
    lengths = ", ".join(f"{key} has {len(lists[key])}" for key in keys)
    require(ZIP, keys, len({len(lists[key]) for key in keys}) == 1, f"lists of the same length: {lengths}")
    return keys
