"""Print the JSON schema of sweep files, which editors complete and check them by.

It is made from the classes that read sweep files and from the registries: `sweeps/schema.json` is what this prints.
Whether values fit together is told by `python -m harness.run`.
"""

import argparse
import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import TypeAdapter

from baselines import network_names, options_of
from harness.command_line import OK
from harness.config.sweep_file import FIXED, SweepFile
from harness.methods import METHODS, method_options

Schema = dict[str, Any]


def sweep_schema() -> Schema:
    """Of a whole sweep file: its profiles and the options of each network and training method included."""
    schema = _short(SweepFile.model_json_schema())
    entry = schema["$defs"]["TrialEntry"]
    entry["properties"]["train"]["$ref"] = "#/$defs/TrainSettings"
    entry["allOf"] = [
        *_conditions("model", "options", {name: network_options(name) for name in network_names()}),
        *_conditions("method", "method_options", {name: options_of_method(name) for name in METHODS}),
    ]
    changeable = {key: value for key, value in schema["properties"].items() if key not in FIXED}
    schema["properties"]["profiles"] = {
        "description": "The same study at another size: by name, what each changes of the keys above. Mappings are "
        "merged key by key, lists replaced. 'cpu' is taken where there is no GPU.",
        "type": ["object", "null"],
        "additionalProperties": _options_schema(changeable),
    }
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}


def network_options(name: str) -> dict[str, Schema]:
    """Of each option of a network, by its name: type and default."""
    return _typed(options_of(name))


def options_of_method(name: str) -> dict[str, Schema]:
    """Of each option of a training method, by its name: type, default and meaning."""
    described: dict[str, Schema] = {}
    for kind in reversed(METHODS[name].__mro__[:-1]):  # pydantic reads what stands below a class's own fields alone
        properties = _short(TypeAdapter(kind).json_schema()).get("properties", {})
        described |= {option: properties[option] for option in inspect.get_annotations(kind) if option in properties}
    return {option: described[option] | own for option, own in _typed(method_options(name)).items()}


def _typed(options: Mapping[str, inspect.Parameter]) -> dict[str, Schema]:
    kinds = {name: _short(TypeAdapter(option.annotation).json_schema()) for name, option in options.items()}
    return {name: kind | {"default": options[name].default} for name, kind in kinds.items()}


def _conditions(owner: str, key: str, options: Mapping[str, dict[str, Schema]]) -> Iterable[Schema]:
    """What `key` may hold, for each set of options and all those `owner`s that have it."""
    sets = {json.dumps(value): value for value in options.values()}
    for text, value in sets.items():
        names = [name for name in options if json.dumps(options[name]) == text]
        yield {
            "if": {"properties": {owner: {"enum": names}}, "required": [owner]},
            "then": {"properties": {key: _options_schema(value)}},
        }


def _options_schema(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _short(schema: Schema) -> Schema:
    """Without titles, which repeat names, and line breaks in descriptions."""
    kept: Schema = {}
    for key, value in schema.items():
        if isinstance(value, dict):
            kept[key] = _short(value)
        elif key == "description":
            kept[key] = " ".join(value.split())
        elif key != "title":
            kept[key] = value
    return kept


def arguments(parser: argparse.ArgumentParser) -> None:
    """The command takes nothing."""


def main(options: argparse.Namespace) -> int:
    """Returns the exit status."""
    print(json.dumps(sweep_schema(), indent=1))
    return OK
