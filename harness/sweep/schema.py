"""The schema of sweep files that the documentation shows, made from the classes that read them and the registries."""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from inspect import Parameter
from typing import Any

from pydantic import TypeAdapter

from baselines import DATASETS, network_names, options_of
from harness.methods import METHODS, method_options
from harness.settings import STAGES
from harness.sweep.checkpoint_settings import Checkpoint, Source
from harness.sweep.grid import ZIP, takes_list
from harness.sweep.sweep_keys import SweepFile, TrialEntry, options_model

Schema = dict[str, Any]


def sweep_schema() -> Schema:
    """Return pydantic's schema of a sweep file, with registered names; keys of `trials` may also be lists of values."""
    schema = _shorten(SweepFile.model_json_schema())
    entry = _shorten(TrialEntry.model_json_schema())
    inside = entry.pop("$defs")
    for kind in (Checkpoint, Source):
        own = inside[kind.__name__]
        own["properties"] = _or_lists(own["properties"], inspect.signature(kind).parameters)
    schema["$defs"] |= inside
    schema["$defs"]["TrialEntry"], schema["properties"]["trials"]["items"] = entry, {"$ref": "#/$defs/TrialEntry"}
    schema["$defs"]["EvaluationSettings"]["properties"]["stages"]["items"]["enum"] = list(STAGES)
    _allow_names(schema["properties"]["dataset"], DATASETS)
    _allow_names(entry["properties"]["model"], network_names())
    _allow_names(entry["properties"]["method"], METHODS)
    entry["properties"] = {key: kind if key == ZIP else _or_list(kind) for key, kind in entry["properties"].items()}
    return schema


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


def _allow_names(key: Schema, names: Iterable[str]) -> None:
    """Let a key be a registered name, or any other, since plugins add names."""
    key["anyOf"] = [{"enum": list(names)}, {"type": key.pop("type")}]


def _or_list(value: Schema) -> Schema:
    """Return the schema of a value or a list of values."""
    outside: Schema = {key: value[key] for key in ("description", "default") if key in value}
    kind = {key: item for key, item in value.items() if key not in outside}
    return {"anyOf": [kind, {"type": "array", "minItems": 1, "items": kind}], **outside}


def _or_lists(schemas: dict[str, Schema], types: Mapping[str, Parameter]) -> dict[str, Schema]:
    """Return the schemas, with lists of values where a value is no list by its type."""
    return {key: kind if takes_list(types[key].annotation) else _or_list(kind) for key, kind in schemas.items()}


def _shorten(schema: Schema) -> Schema:
    """Return the schema without titles, which repeat names, and without line breaks in descriptions."""
    short: Schema = {}
    for key, value in schema.items():
        if key == "description":
            short[key] = " ".join(value.split())
        elif key != "title":
            short[key] = _shorten(value) if isinstance(value, dict) else value
    return short
