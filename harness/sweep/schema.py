"""The JSON schema of sweep files, made from the classes that read them and from the registries."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from inspect import Parameter
from typing import Any

from pydantic import TypeAdapter

from baselines import DATASETS, network_names, options_of
from harness.methods import METHODS, method_options
from harness.settings import STAGES, TrainSettings
from harness.sweep.checkpoint_settings import Checkpoint, Source
from harness.sweep.grid import ZIP, takes_list
from harness.sweep.sweep_keys import FIXED, SweepFile, TrialEntry, options_model
from harness.sweep.sweep_text import INCLUDE

Schema = dict[str, Any]


def sweep_schema() -> Schema:
    """Return the schema of a sweep file, with its profiles and the options of each network and training method."""
    schema = _shorten(SweepFile.model_json_schema())
    schema["anyOf"] = [{"required": schema.pop("required")}, {"required": [INCLUDE]}]
    keys, entry = schema["properties"], _shorten(TrialEntry.model_json_schema())
    inside = entry.pop("$defs")
    for kind in (Checkpoint, Source):
        own = inside[kind.__name__]
        own["properties"] = _or_lists(own["properties"], inspect.signature(kind).parameters)
    schema["$defs"] |= inside
    schema["$defs"]["TrialEntry"], keys["trials"]["items"] = entry, _reference("TrialEntry")
    schema["$defs"]["EvaluationSettings"]["properties"]["stages"]["items"]["enum"] = list(STAGES)
    registered = {"dataset": _allow_any_name(keys["dataset"], DATASETS)}
    names = {
        "model": _or_list(_allow_any_name(entry["properties"]["model"], network_names())),
        "method": _or_list(_allow_any_name(entry["properties"]["method"], METHODS)),
    }
    trials = {"trials": {"items": {"properties": names}}}
    profiles = {"profiles": {"additionalProperties": {"properties": trials}}}
    schema |= {"if": {"required": ["plugins"]}, "else": {"properties": registered | trials | profiles}}
    entry["properties"] = {key: kind if key == ZIP else _or_list(kind) for key, kind in entry["properties"].items()}
    recipe = _or_lists(schema["$defs"]["TrainSettings"]["properties"], inspect.signature(TrainSettings).parameters)
    networks = {name: _or_lists(network_options(name), options_of(name)) for name in network_names()}
    methods = {name: _or_lists(options_of_method(name), method_options(name)) for name in METHODS}
    schema["$defs"]["train-of-a-trial"] = _mapping(recipe)
    entry["allOf"] = [
        {"properties": {"train": _or_list(_reference("train-of-a-trial"))}},
        *_conditions(schema, "model", "options", networks),
        *_conditions(schema, "method", "method_options", methods),
    ]
    changeable = {key: kind for key, kind in keys.items() if key not in FIXED}
    keys["profiles"]["anyOf"][0]["additionalProperties"] = _mapping(changeable)
    return {"$schema": "http://json-schema.org/draft-07/schema#", **schema}


def network_options(name: str) -> dict[str, Schema]:
    """Return type and default of each option of a network."""
    return _properties(options_model(options_of(name)).model_json_schema())


def options_of_method(name: str) -> dict[str, Schema]:
    """Return type, default and meaning of each option of a training method."""
    described: dict[str, Schema] = {}
    # Pydantic reads the docstrings of a class's own fields alone.
    for kind in filter(is_dataclass, reversed(METHODS[name].__mro__)):
        own = inspect.get_annotations(kind)
        properties = _properties(TypeAdapter(kind).json_schema())
        described |= {option: schema for option, schema in properties.items() if option in own}
    return {option: described[option] for option in method_options(name)}


def _properties(schema: Schema) -> dict[str, Schema]:
    return _shorten(schema).get("properties", {})


def _allow_any_name(key: Schema, names: Iterable[str]) -> Schema:
    """Let a key be any name, since plugins add names; return what it must be without plugins."""
    registered = {"enum": list(names)}
    key["anyOf"] = [registered, {"type": key.pop("type")}]
    return registered


def _or_list(value: Schema) -> Schema:
    """Return the schema of a value or a list of values."""
    outside: Schema = {key: value[key] for key in ("description", "default") if key in value}
    kind = {key: item for key, item in value.items() if key not in outside}
    return {"anyOf": [kind, {"type": "array", "minItems": 1, "items": kind}], **outside}


def _or_lists(schemas: dict[str, Schema], types: Mapping[str, Parameter]) -> dict[str, Schema]:
    """Return the schemas, with lists of values where a value is no list by its type."""
    return {key: kind if takes_list(types[key].annotation) else _or_list(kind) for key, kind in schemas.items()}


def _conditions(schema: Schema, owner: str, section: str, options: Mapping[str, dict[str, Schema]]) -> Iterable[Schema]:
    """Yield what a section of an entry may hold for each network or method, whose options the schema then defines."""
    for name, properties in options.items():
        schema["$defs"][f"{section}-of-{name}"] = _mapping(properties)
        is_owner = {"properties": {owner: _or_list({"const": name})}, "required": [owner]}
        yield {"if": is_owner, "then": {"properties": {section: _or_list(_reference(f"{section}-of-{name}"))}}}


def _reference(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _mapping(properties: dict[str, Schema]) -> Schema:
    return {"type": "object", "additionalProperties": False, "properties": properties}


def _shorten(schema: Schema) -> Schema:
    """Return the schema without titles, which repeat names, and without line breaks in descriptions."""
    short: Schema = {}
    for key, value in schema.items():
        if key == "description":
            short[key] = " ".join(value.split())
        elif key != "title":
            short[key] = _shorten(value) if isinstance(value, dict) else value
    return short
