"""`--set KEY=VALUE`: keys of a sweep file, said on the command line."""

import json
import shlex
from collections.abc import Collection, Sequence
from typing import Any

import yaml

from harness.config.sweep_text import merged, parsed
from harness.errors import SettingError, require

_UNMARKED = ("seeds", "resources", "search")
"""What says which trials are run, and where, and changes none."""


def assigned(assignments: Sequence[str], changeable: Collection[str]) -> dict[str, Any]:
    """What the assignments say, as a profile does: dots lead into mappings, values are YAML.

    changeable: the keys that may be set. Raises SettingError for one that is no assignment, or one said before.
    """
    changes: dict[str, Any] = {}
    keys = [text.partition("=")[0] for text in assignments]
    for text, key in zip(assignments, keys, strict=True):
        section, *inside = key.split(".")
        allowed = f"KEY=VALUE, KEY one of {', '.join(sorted(changeable))} or in one, such as train.epochs=2"
        require("--set", text, "=" in text and section in changeable, allowed)
        alone = keys.count(key) == 1 and not any(other.startswith(f"{key}.") for other in keys)
        require("--set", text, alone, "each key once, and not beside keys in it")
        value = _value(text)
        for name in reversed(inside):
            value = {name: value}
        changes = merged(changes, {section: value})
    return changes


def command_of(assignments: Sequence[str]) -> str:
    """The assignments as they are given to a command."""
    return " ".join(f"--set {shlex.quote(text)}" for text in assignments)


def mark_of(changes: dict[str, Any]) -> str:
    """What changes trials among the changes, in words that do not depend on how they were written; '' for nothing."""
    told = {key: value for key, value in changes.items() if key not in _UNMARKED}
    return " ".join(f"--set {text}" for text in sorted(_written(told, "")))


def _written(changes: dict[str, Any], prefix: str) -> list[str]:
    texts: list[str] = []
    for name, value in changes.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict):
            texts += _written(value, f"{key}.")
        else:
            texts.append(key if key == "trials" else f"{key}={_compact(value)}")  # rows say themselves what they are
    return texts


def _compact(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True, default=str)


def _value(text: str) -> Any:
    try:
        return parsed(text.partition("=")[2])
    except yaml.YAMLError as error:
        raise SettingError("--set", text, f"a value in YAML: {' '.join(str(error).split())}") from None
