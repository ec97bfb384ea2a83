"""Sweep files as text: YAML, other files that they include, and mappings merged."""

import re
from pathlib import Path
from typing import Any

import yaml

from harness.errors import InputError

INCLUDE = "include"


class ConfigError(InputError):
    """A sweep file that cannot be used. A line a problem: the file, the key, what was found and what is allowed."""

    def __init__(self, path: Path | str, problems: list[str]):
        super().__init__("\n".join(f"{path}: {problem}" for problem in problems))


def read(path: Path) -> tuple[dict[str, Any], list[str]]:
    """What a sweep file says together with the files that it includes, and which those are, as it names them.

    A file's own keys go before those of the one it includes, as `merged` does. Raises ConfigError.
    """
    return _with_included(path, path.resolve().parent, ())


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` with `changes`, mappings merged key by key, anything else replaced."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merged(base[key], value) if both else value
    return result


def parsed(text: str) -> Any:
    """What a text says in YAML, keys as texts. Raises yaml.YAMLError, also where it contains itself."""
    return _plain(yaml.load(text, _Loader))


def _with_included(path: Path, root: Path, before: tuple[Path, ...]) -> tuple[dict[str, Any], list[str]]:
    content = _mapping(path)
    if INCLUDE not in content:
        return content, []
    named = content.pop(INCLUDE)
    allowed = f"the path of a file below {root}, from {path} on, that does not include this one"
    place = (path.parent / named).resolve() if isinstance(named, str) else root
    if not place.is_relative_to(root) or place == root or place in (*before, path.resolve()):
        raise ConfigError(path, [f"{INCLUDE}: found {named!r}, allowed: {allowed}"])
    base, further = _with_included(place, root, (*before, path.resolve()))
    return merged(base, content), [str(named), *further]


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = parsed(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(path, [f"cannot be read: {getattr(error, 'strerror', None) or error}"]) from None
    except yaml.YAMLError as error:
        raise ConfigError(path, [f"is not YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise ConfigError(path, [f"found {found}, allowed: a mapping with name, dataset, eps, seeds, trials"])
    return content


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers (5e-4 is one), and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", node.start_mark)
        return super().construct_mapping(node, deep)


_MERGE = "tag:yaml.org,2002:merge"


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _plain(value: Any, key: str = "", inside: tuple[int, ...] = ()) -> Any:
    """`value` with text for keys, as JSON has them. Raises yaml.YAMLError where it contains itself."""
    if id(value) in inside:
        raise yaml.YAMLError(f"{key}: contains itself")
    if isinstance(value, dict):
        return {str(name): _plain(item, key or str(name), (*inside, id(value))) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, key, (*inside, id(value))) for item in value]
    return value
