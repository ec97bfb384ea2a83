"""Tables of the keys of sweep files, made from their JSON schema when the documentation is built.

{sweep-keys} CLASS: the keys of a part of the file; without a class, of the file itself. {sweep-methods}: training
methods and their losses. {sweep-options} options: of networks; {sweep-options} method_options: of training methods.
"""

import inspect
import json

from sphinx.util.docutils import SphinxDirective

from baselines import network_names
from harness.methods import METHODS
from harness.sweep.schema import network_options, options_of_method, sweep_schema


def keys_table(part=None):
    """Return a table with a line for each key: type, default and meaning."""
    schema = sweep_schema()
    section = schema["$defs"][part] if part else schema
    required = section.get("required") or section.get("anyOf", [{"required": []}])[0]["required"]  # unless it includes
    rows = [(f"`{key}`", *_typed(value, key in required)) for key, value in section["properties"].items()]
    return _table(["key", "type", "default", "meaning"], rows)


def methods_table():
    """Return a table with a line for each training method: the docstring of its class."""
    rows = [(f"`{name}`", " ".join(inspect.getdoc(kind).split())) for name, kind in METHODS.items()]
    return _table(["method", "its loss"], rows)


def options_table(key):
    """Return a table with a line for each option, and the networks or methods that share it."""
    all_options = {
        "options": {name: network_options(name) for name in network_names()},
        "method_options": {name: options_of_method(name) for name in METHODS},
    }[key]
    owners: dict[str, list[str]] = {}
    for name, options in all_options.items():
        for option, value in options.items():
            owners.setdefault(json.dumps([option, value]), []).append(name)
    rows = []
    for text, names in owners.items():
        option, value = json.loads(text)
        kind, default, meaning = _typed(value, "default" not in value)
        rows.append((f"`{option}`", kind, default, ", ".join(f"`{name}`" for name in names), meaning))
    titles = ["option", "type", "default", "of", "meaning"]
    return _table(titles, rows) if any(row[-1] for row in rows) else _table(titles[:-1], [row[:-1] for row in rows])


def _typed(value, is_required):
    """Return type, default and meaning of a key, as Markdown."""
    default = f"`{json.dumps(value['default'])}`" if "default" in value else "required" if is_required else ""
    return _kind(value), default, value.get("description", "")


def _kind(value):
    if "enum" in value:
        return "a name" if len(value["enum"]) > 9 else ", ".join(f"`{name}`" for name in value["enum"])
    if "$ref" in value:
        return "mapping, below"
    if "anyOf" in value and value["anyOf"][-1].get("items") == value["anyOf"][0]:
        return f"{_kind(value['anyOf'][0])}, or a list to choose from"
    if "anyOf" in value:
        return " or ".join(_kind(kind) for kind in value["anyOf"])
    if "items" in value:
        return "list, below" if "$ref" in value["items"] else f"list of {_kind(value['items'])}"
    kinds = value["type"] if isinstance(value["type"], list) else [value["type"]]
    return " or ".join({"string": "text", "object": "mapping"}.get(kind, kind) for kind in kinds)


def _table(titles, rows):
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def _directive(make_table):
    """Return a directive that puts a table into a page; its arguments are the function's."""

    class Table(SphinxDirective):
        optional_arguments = 1

        def run(self):
            return self.parse_text_to_nodes(make_table(*self.arguments))

    return Table


def setup(app):
    """Sphinx's hook."""
    app.add_directive("sweep-keys", _directive(keys_table))
    app.add_directive("sweep-methods", _directive(methods_table))
    app.add_directive("sweep-options", _directive(options_table))
    return {"parallel_read_safe": True}
