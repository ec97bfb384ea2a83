"""Sweep files as text: YAML, files that they include, and `--set` on the command line."""

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from io import StringIO
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import yaml

from baselines import suggestion
from harness.common.errors import InputError, SettingError, located, require

INCLUDE = "include"
MOST_CHARACTERS = 1_000_000
"""How many characters a sweep file may have."""
_MOST_VALUES, _DEEPEST = 50_000, 50


def read(path: Path) -> tuple[dict[str, Any], list[Path]]:
    """Return the content of a sweep file merged over the files that it includes, and those files.

    Raises InputError, also for an included file outside of the directory of `path`: who wrote a file reads no others.
    """
    content, files = _read_mapping(path), {path.resolve(): path}
    last = path
    while INCLUDE in content:
        name = content.pop(INCLUDE)
        included = last.parent / str(name)
        allowed = f"the relative path of another file in {path.parent} or below, that does not include this one"
        try:
            target = included.resolve()
        except RuntimeError:  # links in a circle
            raise SettingError(f"{last}: {INCLUDE}", name, allowed) from None
        is_other = isinstance(name, str) and target not in files and target.is_relative_to(path.parent.resolve())
        require(f"{last}: {INCLUDE}", name, is_other, allowed)
        with located(f"{last}: {INCLUDE}: "):
            content = merge(_read_mapping(included), content)
        last = files[target] = included
    return content, list(files.values())[1:]


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`: mappings are merged key by key, everything else is replaced."""
    result = dict(base)
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        result[key] = merge(base[key], value) if both else value
    return result


def nest(keys: Sequence[str], value: Any) -> dict[str, Any]:
    """Return {'train': {'epochs': 2}} for ['train', 'epochs'] and 2."""
    for key in reversed(keys):
        value = {key: value}
    return value


def parse_yaml(text: str) -> Any:
    """Return what a text in YAML says, with the types of JSON. Raises ValueError, also for a text that is too large."""
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"it is longer than {MOST_CHARACTERS:,} characters")
    try:
        stream = StringIO(text)  # of a stream, messages quote no lines
        return json.loads(json.dumps(yaml.load(stream, _Loader), default=str))
    except (yaml.YAMLError, TypeError, ValueError) as error:  # as it raises for !!set x
        message = str(error).replace('"<file>", ', "")  # PyYAML's name of the text: callers name the file
        raise ValueError(" ".join(message.split())) from None


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is no file")
        with open(path, "rb") as file:
            text = file.read(4 * MOST_CHARACTERS).decode()
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        content = parse_yaml(text)
    except ValueError as error:
        raise InputError(f"{path}: is not YAML: {error}") from None
    if not isinstance(content, dict):  # what it holds is not shown: it may be no sweep file
        found = {list: "a list", type(None): "nothing", str: "a text"}.get(type(content), "a number")
        raise InputError(f"{path}: found {found}, allowed: a mapping with name, dataset, eps, seeds, trials")
    return content


class _Loader(yaml.SafeLoader):
    """YAML with the numbers and truth values of JSON; a repeated key is an error.

    YAML 1.1 reads 010 as 8, 1:30 as 90, no as false and 5e-4 as a text: here 5e-4 is a number, the others are texts.
    It is an error, too, if a text is too large once aliases stand for what they name: nothing is expanded before.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {}

    def __init__(self, text: StringIO):
        super().__init__(text)
        self.depth = 0
        self.counts: dict[int, int] = {}  # of the values within a node, by its id

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark
        self.depth += 1
        self._require(self.depth <= _DEEPEST, f"more than {_DEEPEST} levels", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        within = node.value if isinstance(node, yaml.CollectionNode) else []
        within = chain(*within) if isinstance(node, yaml.MappingNode) else within
        self.counts[id(node)] = 1 + sum(self.counts.get(id(each), 0) for each in within)
        self._require(self.counts[id(node)] <= _MOST_VALUES, f"more than {_MOST_VALUES:,} values", mark)
        is_no_text = isinstance(node, yaml.ScalarNode) and re.search("[\0\ud800-\udfff]", node.value)
        self._require(not is_no_text, "a NUL or half a surrogate pair", mark)
        return node

    @staticmethod
    def _require(holds: bool, found: str, mark: yaml.Mark) -> None:
        if not holds:
            raise yaml.composer.ComposerError(None, None, f"it has {found}", mark)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError, TypeError, ValueError):  # as PyYAML raises for !!timestamp x
            self._require(False, f"{node.value!r:.80} for {node.tag.rpartition(':')[2]}", node.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        counts = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<")
        for key in [key for key, count in counts.items() if count > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", node.start_mark)
        return super().construct_mapping(node, deep)


_INTEGER, _DECIMALS = r"[-+]?(0|[1-9][0-9]*)", r"[-+]?(?=\.?[0-9])(0|[1-9][0-9]*)?(\.[0-9]*)?([eE][-+]?[0-9]+)?"
for _tag, _pattern, _first in (  # an integer is looked for before a float
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", _INTEGER, list("-+0123456789")),
    ("float", rf"{_DECIMALS}|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.0123456789")),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


def parse_assignments(assignments: Sequence[str], changeable: Collection[str]) -> dict[str, Any]:
    """Return what `--set KEY=VALUE ...` says, as a profile: dots lead into mappings, values are YAML, later ones win.

    changeable: the keys that may be set. Raises SettingError.
    """
    changes: dict[str, Any] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        keys = key.split(".")
        allowed = f"KEY=VALUE, KEY one of {', '.join(sorted(changeable))} or in one, such as train.kappa=0.5"
        hint = suggestion(keys[0], sorted(changeable)) if keys[0] not in changeable else ""
        require("--set", text, equals == "=" and keys[0] in changeable, allowed + hint)
        try:
            changes = merge(changes, nest(keys, parse_yaml(value)))
        except ValueError as error:
            raise SettingError("--set", text, f"a value in YAML: {error}") from None
    return changes
