"""Sweep files as text: YAML, other files that they include, and mappings merged."""

import re
from collections.abc import Hashable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from harness.errors import InputError, shown

INCLUDE = "include"
_TOLD = 50
LONGEST, MOST = 1_000_000, 100_000
"""Bytes of a file, and values in it with its aliases written out."""

_TOO_MUCH = f"more than {MOST:,} values, aliases written out"


class ConfigError(InputError):
    """A sweep file that cannot be used. A line a problem, the first so many of them: the file, the key, what was found
    and what is allowed."""

    def __init__(self, path: Path | str, problems: list[str]):
        left = len(problems) - _TOLD
        told = [*problems[:_TOLD], f"and {left:,} more"] if left > 0 else problems
        super().__init__("\n".join(f"{path}: {problem}" for problem in told))


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
    """What a text says in YAML, keys as texts.

    Raises yaml.YAMLError, also where it contains itself, or is nested too deep or too much with its aliases written
    out.
    """
    try:
        return _plain(yaml.load(text, _Loader), count(1))
    except RecursionError:
        raise yaml.YAMLError("it is nested too deep") from None


def _with_included(path: Path, root: Path, before: tuple[Path, ...]) -> tuple[dict[str, Any], list[str]]:
    content = _mapping(path)
    if INCLUDE not in content:
        return content, []
    named = content.pop(INCLUDE)
    allowed = f"the path of a file below {root}, from {path} on, that does not include this one"
    try:
        place = (path.parent / named).resolve()
    except (TypeError, ValueError, OSError):  # no text, or with what no path has
        place = root
    if not place.is_relative_to(root) or place == root or place in (*before, path.resolve()):
        raise ConfigError(path, [f"{INCLUDE}: found {shown(named)}, allowed: {allowed}"])
    base, further = _with_included(place, root, (*before, path.resolve()))
    return merged(base, content), [str(named), *further]


def _mapping(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            written = file.read(LONGEST + 1)
        if len(written) > LONGEST:
            raise ConfigError(path, [f"found more, allowed: at most {LONGEST:,} bytes"])
        content = parsed(written.decode("utf-8"))
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

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """What a node says; whatever Python's own types raise of a text that is none of theirs is an error in YAML."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError) as error:
            kind = node.tag.rpartition(":")[2]
            told = f"{shown(node.value)} is no {kind}: {error}"
            raise yaml.constructor.ConstructorError(None, None, told, node.start_mark) from None

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put in what `<<` names."""
        super().flatten_mapping(node)
        if len(node.value) > MOST:
            raise yaml.constructor.ConstructorError(None, None, _TOO_MUCH, node.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        found = set()
        for key in [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != _MERGE]:
            if isinstance(key, Hashable):
                if key in found:
                    raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", node.start_mark)
                found.add(key)
        return super().construct_mapping(node, deep)


_MERGE = "tag:yaml.org,2002:merge"


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _plain(value: Any, number: Iterator[int], key: str = "", inside: tuple[int, ...] = ()) -> Any:
    """`value` with text for keys, as JSON has them. Raises yaml.YAMLError where it contains itself, or is too much."""
    if id(value) in inside:
        raise yaml.YAMLError(f"{key}: contains itself")
    if next(number) > MOST:
        raise yaml.YAMLError(f"{key}: {_TOO_MUCH}")
    if isinstance(value, dict):
        within = (*inside, id(value))
        return {_text(str(name)): _plain(item, number, key or _text(str(name)), within) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, number, key, (*inside, id(value))) for item in value]
    return _text(value) if isinstance(value, str) else value


def _text(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise yaml.YAMLError(f"{shown(value)} is no text that can be written") from None
    return value
