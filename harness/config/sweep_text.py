"""Sweep files as text: YAML, files that they include, and `--set` on the command line."""

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from harness.config.trial import flatten
from harness.errors import InputError, SettingError, require, shorten

INCLUDE = "include"


class ConfigError(InputError):
    """A sweep file that cannot be used: a line a problem, with the file, the key, what was found, what is allowed."""

    def __init__(self, source: Path | str, problems: list[str]):
        super().__init__("\n".join(f"{source}: {problem}" for problem in problems))


def read(path: Path, including: tuple[Path, ...] = ()) -> tuple[dict[str, Any], list[str]]:
    """Return the content of a sweep file merged over the files that it includes, and the names of those files.

    including: the files that include this one. Raises ConfigError.
    """
    content = _read_mapping(path)
    if INCLUDE not in content:
        return content, []
    name = content.pop(INCLUDE)
    included = path.parent / str(name)
    files = [file.resolve() for file in (*including, path)]
    if not isinstance(name, str) or included.resolve() in files:
        allowed = "the path of another file, relative to this one, that does not include this one"
        raise ConfigError(path, [f"{INCLUDE}: found {shorten(name)}, allowed: {allowed}"])
    base, further = read(included, (*including, path))
    return merge(base, content), [name, *further]


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`: mappings are merged key by key, everything else is replaced."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merge(base[key], value) if both else value
    return result


def parse_yaml(text: str) -> Any:
    """Return what a text in YAML says, with the types of JSON. Raises ValueError."""
    try:
        return json.loads(json.dumps(yaml.load(text, _Loader), default=str))
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:  # as it raises for 2026-02-31 and !!int x
        raise ValueError(" ".join(str(error).split())) from None


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, [f"cannot be read: {getattr(error, 'strerror', None) or error}"]) from None
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(path, [f"is not YAML: {error}"]) from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise ConfigError(path, [f"found {found}, allowed: a mapping with name, dataset, eps, seeds, trials"])
    return content


class _Loader(yaml.SafeLoader):
    """YAML in which 5e-4 is a number, as in YAML 1.2, and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if key.value != "<<"]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def parse_assignments(assignments: Sequence[str], changeable: Collection[str]) -> dict[str, Any]:
    """Return what `--set KEY=VALUE ...` says, as a profile: dots lead into mappings, values are YAML, later ones win.

    changeable: the keys that may be set. Raises SettingError.
    """
    changes: dict[str, Any] = {}
    for text in assignments:
        key, equals, written = text.partition("=")
        section, *inside = key.split(".")
        allowed = f"KEY=VALUE, KEY one of {', '.join(sorted(changeable))} or in one, such as train.epochs=2"
        require("--set", text, equals == "=" and section in changeable, allowed)
        try:
            value = parse_yaml(written)
        except ValueError as error:
            raise SettingError("--set", text, f"a value in YAML: {error}") from None
        for name in reversed(inside):
            value = {name: value}
        changes = merge(changes, {section: value})
    return changes


def profile_mark(changes: dict[str, Any]) -> str:
    """Return the changes that change trials, in one spelling; '' for none."""
    settings = flatten({key: value for key, value in changes.items() if key not in ("seeds", "resources", "search")})
    texts = []
    for key, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"), sort_keys=True)
        texts.append("--set trials" if key == "trials" else f"--set {key}={text}")  # rows say what their trials are
    return " ".join(sorted(texts))
