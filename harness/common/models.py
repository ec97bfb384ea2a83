"""The base of everything that is read from files, and what is wrong with a file: a line for each problem, by key."""

import json
from collections.abc import Iterator
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, NamedTuple, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from baselines import UnknownNameError, suggestion
from harness.common.errors import InputError, SettingError, shorten

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True)
"""No unknown keys, no values of another type."""
LENIENT: Any = STRICT | {"extra": "ignore"}
"""Of files that a later version may write more to."""
MOST_PROBLEMS = 100  # in a message

Integers = Annotated[tuple[int, ...], Field(strict=False)]  # a list of JSON, too
Floats = Annotated[tuple[float, ...], Field(strict=False)]
Texts = Annotated[tuple[str, ...], Field(strict=False)]


class KeysOf(NamedTuple):
    """In the annotation of a mapping: the model whose keys it has."""

    model: type[BaseModel]


class Model(BaseModel):
    """A part of a file that checks itself. `model_dump(mode="json")` and `model_validate` are its JSON."""

    model_config = STRICT | {"frozen": True}

    def replace(self, **changes: Any) -> Self:
        """Return a checked copy with changes. Raises InputError."""
        return validate(type(self), {**vars(self), **changes})


def validate(kind: Any, value: Any, *section: str, is_json: bool = False, context: object = None) -> Any:
    """Return a value, such as the content of a file, as a type has it.

    section: the keys that lead to the value. is_json: whether tuples may be lists everywhere. context: what validators
    find as `info.context`. Raises InputError, with a line for each problem: the key, what was found, what is allowed.
    """
    try:
        if is_json:
            return _adapter(kind).validate_json(json.dumps(value))
        return _adapter(kind).validate_python(value, context=context)
    except ValidationError as error:
        problems = sorted(error.errors(include_url=False), key=lambda item: item["type"] == "missing")
        lines = [line for item in problems[:MOST_PROBLEMS] for line in _describe(item, kind, value, section)]
        more = [f"and {len(problems) - MOST_PROBLEMS:,} problems more"] if len(problems) > MOST_PROBLEMS else []
        raise InputError("\n".join(lines + more)) from None


@lru_cache(64)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _describe(item: Any, kind: Any, value: Any, section: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of one of pydantic's errors about a value."""
    location = [*section, *_keys(item["loc"], value)]
    cause = item.get("ctx", {}).get("error")
    key, (owner, field) = ".".join(location), _field_at(kind, item["loc"])
    if item["type"] == "missing":
        yield f"{key}: missing{_example(field)}"
    elif item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        yield _unknown_key(key, kind, list(owner.model_fields) if owner else [])
    elif isinstance(cause, SettingError):
        inside = [] if [part for part in location if not part.isdecimal()][-1:] == [cause.key] else [cause.key]
        yield str(SettingError(".".join([*location, *inside]), cause.found, cause.allowed))
    elif isinstance(cause, InputError):
        yield from (f"{key}.{line}" if key else line for line in str(cause).splitlines())
    elif isinstance(cause, UnknownNameError):
        yield str(SettingError(key, item["input"], cause.allowed))
    elif cause is not None:
        yield str(SettingError(key, item["input"], str(cause)))
    else:
        example = _example(field) if item["type"].endswith("_type") else ""
        of_all = isinstance(item["input"], list) and location[:1] in (["train"], ["width"])
        hint = "; lists of values belong into entries of `trials`" if of_all else ""
        yield f"{key or 'it'}: found {shorten(item['input'])}: {item['msg']}{example}{hint}"


def _keys(location: tuple[int | str, ...], value: Any) -> Iterator[str]:
    """Yield the keys of a location in a value; an index leads through what is a list in the value alone."""
    for part in location:
        if isinstance(part, str) or isinstance(value, list | tuple):
            yield str(part)
            if isinstance(part, int) or isinstance(value, dict):
                value = value[part] if isinstance(part, int) else value.get(part)


def _unknown_key(key: str, kind: Any, names: list[str]) -> str:
    """Return a line on a key, with all that lead to it, that is none of these names. kind: of the whole."""
    name = key.rpartition(".")[2]
    sections = [f"`{section}.{name}`" for section, model in _sections(kind) if name in model.model_fields]
    hint = f"; did you mean {' or '.join(sections)}?" if sections else suggestion(name, names)
    return f"{key}: unknown key; allowed: {', '.join(names) or 'none'}{hint}"


def _sections(kind: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """Yield the keys of a model whose values are mappings, each with the model that has their keys."""
    for key, field in getattr(kind, "model_fields", {}).items():
        parts = [field.annotation, *get_args(field.annotation)]
        parts += [mark.model for mark in field.metadata if isinstance(mark, KeysOf)]
        yield from ((key, part) for part in parts if isinstance(part, type) and issubclass(part, BaseModel))


def _field_at(kind: Any, location: tuple[int | str, ...]) -> tuple[type[BaseModel] | None, FieldInfo | None]:
    """Return the innermost model that a location leads through, and the field of its last key; None for neither."""
    owner, field = None, None
    for part in location:
        while get_origin(kind) in (Annotated, Union, UnionType):
            kind = get_args(kind)[0]
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            owner, field = kind, kind.model_fields.get(str(part))
            kind = field.annotation if field else None
        else:  # of a list or a mapping
            field, kind = None, next(iter(get_args(kind)[::-1]), None)
    return owner, field


def _example(field: FieldInfo | None) -> str:
    """Return the end of a message with a right value: the field's example, else its default; "" if it has neither."""
    value = None if field is None else field.examples[0] if field.examples else field.default
    return "" if value in (None, PydanticUndefined) else f", such as {json.dumps(value, default=str)}"
