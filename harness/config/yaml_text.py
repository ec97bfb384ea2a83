"""YAML with the types of JSON, and mappings that are merged."""

import json
import re
from collections.abc import Sequence
from io import StringIO
from itertools import chain
from typing import Any, ClassVar

import yaml

MOST_CHARACTERS = 1_000_000
"""How many characters a sweep file may have."""
_MOST_VALUES, _DEEPEST = 50_000, 50


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


def format_yaml(content: dict[str, Any]) -> str:
    """Return a text that `parse_yaml` reads as this content."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=110)


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
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        first = {key.value: key for key in reversed(keys)}
        for key in keys:
            if key is not first[key.value]:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} appears twice", key.start_mark)
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


class _Dumper(yaml.SafeDumper):
    """YAML in which a text that `_Loader` would take for a number stands in quotes, and nothing is an alias."""

    yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers

    def ignore_aliases(self, data: object) -> bool:
        return True
