"""The JSON schema of sweep files, made from the classes that read them and from the registries."""

import inspect
import json
from collections.abc import Iterable, Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from baselines import network_names, options_of
from harness.config.grid import ZIP, takes_list
from harness.config.settings import TrainSettings
from harness.config.sweep_keys import FIXED, SweepFile
from harness.config.sweep_text import INCLUDE
from harness.methods import METHODS, method_options

Schema = dict[str, Any]


def sweep_schema() -> Schema:
    """Of a whole sweep file: its profiles and the options of each network and training method included."""
    schema = _short(SweepFile.model_json_schema())
    schema["anyOf"] = [{"required": schema.pop("required")}, {"required": [INCLUDE]}]
    entry = schema["$defs"]["TrialEntry"]
    dataset = _opened(schema["properties"]["dataset"])
    known = {key: _choice(_opened(entry["properties"][key])) for key in ("model", "method")}
    trials = {"trials": {"items": {"properties": known}}}
    profiles = {"profiles": {"additionalProperties": {"properties": trials}}}
    schema |= {"if": {"required": ["plugins"]}, "else": {"properties": {"dataset": dataset} | trials | profiles}}
    entry["properties"] = {key: value if key == ZIP else _choice(value) for key, value in entry["properties"].items()}
    recipe = _choices(schema["$defs"]["TrainSettings"]["properties"], get_type_hints(TrainSettings))
    schema["$defs"]["train-of-a-trial"] = _options_schema(recipe)
    entry["allOf"] = [
        {"properties": {"train": _choice(_reference("train-of-a-trial"))}},
        *_conditions(schema, "model", "options", {name: _network_choices(name) for name in network_names()}),
        *_conditions(schema, "method", "method_options", {name: _method_choices(name) for name in METHODS}),
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


def _network_choices(name: str) -> dict[str, Schema]:
    return _choices(network_options(name), {key: option.annotation for key, option in options_of(name).items()})


def _method_choices(name: str) -> dict[str, Schema]:
    own = {key: option.annotation for key, option in method_options(name).items()}
    return _choices(options_of_method(name), own)


def _choices(schemas: dict[str, Schema], kinds: Mapping[str, Any]) -> dict[str, Schema]:
    """Where a value is no list by its type, a list of values will do, too."""
    return {key: value if takes_list(kinds[key]) else _choice(value) for key, value in schemas.items()}


def _opened(key: Schema) -> Schema:
    """Let a key be any name, since plugins have some of their own; returns what it must be where there are none."""
    names = {"enum": key.pop("enum")}
    key["anyOf"] = [names, {"type": key.pop("type")}]
    return names


def _choice(value: Schema) -> Schema:
    """A value or a list of them: what says what it means stays outside."""
    told: Schema = {key: value[key] for key in ("description", "default") if key in value}
    kind = {key: item for key, item in value.items() if key not in told}
    return {"anyOf": [kind, {"type": "array", "minItems": 1, "items": kind}], **told}


def _typed(options: Mapping[str, inspect.Parameter]) -> dict[str, Schema]:
    kinds = {name: _short(TypeAdapter(option.annotation).json_schema()) for name, option in options.items()}
    return {name: kind | {"default": options[name].default} for name, kind in kinds.items()}


def _conditions(schema: Schema, owner: str, key: str, options: Mapping[str, dict[str, Schema]]) -> Iterable[Schema]:
    """What `key` may hold, for each set of options, which the schema then defines, and all `owner`s that have it."""
    sets = {json.dumps(value): value for value in options.values()}
    for text, value in sets.items():
        names = [name for name in options if json.dumps(options[name]) == text]
        schema["$defs"][f"{key}-of-{names[0]}"] = _options_schema(value)
        all_of_them = {"anyOf": [{"enum": names}, {"type": "array", "items": {"enum": names}}]}
        yield {
            "if": {"properties": {owner: all_of_them}, "required": [owner]},
            "then": {"properties": {key: _choice(_reference(f"{key}-of-{names[0]}"))}},
        }


def _reference(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


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
