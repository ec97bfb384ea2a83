"""Write the tables of docs/*.md: `uv run python docs/reference.py`; --check only compares.

A table stands between `<!-- reference: KIND ARGUMENTS -->` and `<!-- end -->`:

    keys CLASS      the keys of a part of a sweep file; without a class, of a sweep file itself
    methods         training methods and their losses
    options KEY     `options` of networks, or `method_options` of training methods
    calls NAME ...  functions and classes: how they are called, and the first paragraph of their docstrings
"""

import inspect
import json
import pydoc
import re
import sys
from dataclasses import is_dataclass
from pathlib import Path

from pydantic import TypeAdapter

from baselines import network_names, options_of
from harness.config.entry import SweepEntry, options_model
from harness.config.sweep import Sweep
from harness.methods import METHODS, method_options

DOCS = Path(__file__).parent


def keys_table(part=None):
    """Return a table with a line for each key: type, default and meaning."""
    file, entry = (kind.model_json_schema() for kind in (Sweep, SweepEntry))
    parts = file["$defs"] | entry["$defs"] | {entry["title"]: entry}
    section = parts[part] if part else file
    required = section.get("required", [])
    rows = [(f"`{key}`", *_typed(value, key in required)) for key, value in section["properties"].items()]
    return _table(["key", "type", "default", "meaning"], rows)


def _network_options(name):
    """Return type and default of each option of a network."""
    return options_model(options_of(name)).model_json_schema().get("properties", {})


def _method_options(name):
    """Return type, default and meaning of each option of a training method."""
    described = {}
    for kind in filter(is_dataclass, reversed(METHODS[name].__mro__)):  # pydantic reads docstrings of own fields alone
        properties = TypeAdapter(kind).json_schema().get("properties", {})
        described |= {option: properties[option] for option in inspect.get_annotations(kind) if option in properties}
    return {option: described[option] for option in method_options(name)}


def methods_table():
    """Return a table with a line for each training method: the docstring of its class."""
    rows = [(f"`{name}`", " ".join(inspect.getdoc(kind).split())) for name, kind in METHODS.items()]
    return _table(["method", "its loss"], rows)


def options_table(key):
    """Return a table with a line for each option, and the networks or methods that share it."""
    all_options = {
        "options": {name: _network_options(name) for name in network_names()},
        "method_options": {name: _method_options(name) for name in METHODS},
    }[key]
    owners: dict[str, list[str]] = {}
    for name, options in all_options.items():
        for option, value in options.items():
            owners.setdefault(json.dumps([option, value]), []).append(name)
    rows = []
    for text, sharing in owners.items():
        option, value = json.loads(text)
        kind, default, meaning = _typed(value, "default" not in value)
        rows.append((f"`{option}`", kind, default, ", ".join(f"`{name}`" for name in sharing), meaning))
    titles = ["option", "type", "default", "of", "meaning"]
    return _table(titles, rows) if any(row[-1] for row in rows) else _table(titles[:-1], [row[:-1] for row in rows])


def calls_table(*names):
    """Return a table with a line for each function or class: how it is called, and what it does."""
    rows = []
    for name in names:
        called = pydoc.locate(name)
        parameters = inspect.signature(called).parameters.values()
        bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
        text = str(inspect.Signature(bare))
        rows.append((f"`{name}{text}`", " ".join(inspect.getdoc(called).partition("\n\n")[0].split())))
    return _table(["call", "what it does"], rows)


def _typed(value, is_required):
    """Return type, default and meaning of a key, as Markdown."""
    default = f"`{json.dumps(value['default'])}`" if "default" in value else "required" if is_required else ""
    return _kind(value), default, " ".join(value.get("description", "").split())


def _kind(value):
    if "enum" in value:
        return ", ".join(f"`{name}`" for name in value["enum"])
    if "$ref" in value:
        return "mapping, below"
    if kinds := value.get("anyOf") or value.get("oneOf"):
        return " or ".join(map(_kind, kinds))
    if "items" in value:
        return "list, below" if "$ref" in value["items"] else f"list of {_kind(value['items'])}"
    kinds = value["type"] if isinstance(value["type"], list) else [value["type"]]
    return " or ".join({"string": "text", "object": "mapping"}.get(kind, kind) for kind in kinds)


def _table(titles, rows):
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


_TABLES = {"keys": keys_table, "methods": methods_table, "options": options_table, "calls": calls_table}


def with_tables(text):
    """Return a page's text with its tables as the code has them today."""

    def table(match):
        kind, *arguments = match[1].split()
        return f"<!-- reference: {match[1]} -->\n\n{_TABLES[kind](*arguments)}\n\n<!-- end -->"

    return re.sub(r"<!-- reference: ([^>]+?) -->.*?<!-- end -->", table, text, flags=re.DOTALL)


if __name__ == "__main__":
    pages = {page: page.read_text() for page in sorted(DOCS.glob("*.md"))}
    stale = {page: new for page, text in pages.items() if (new := with_tables(text)) != text}
    if "--check" in sys.argv:
        sys.exit(f"run `uv run python docs/reference.py`: {', '.join(page.name for page in stale)}" if stale else 0)
    for page, text in stale.items():
        page.write_text(text)
