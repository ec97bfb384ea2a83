"""An entry of `trials` in a sweep file: its keys, and the rows that it expands to."""

from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationInfo,
    create_model,
    field_validator,
    model_validator,
)

from baselines import check_network_name, network_names, options_of, suggestion
from harness.common.errors import InputError, collect_problems, located, require
from harness.common.method_names import check_method, method_names
from harness.common.models import MOST_PROBLEMS, STRICT, KeysOf, Model, validate
from harness.config import plugins
from harness.config.grid import LARGEST, expand, names_in, without_options
from harness.config.training import LARGEST_WIDTH, LONGEST_LABEL
from harness.config.yaml_text import merge
from harness.pretrained.network_file import NetworkFile, Source
from harness.settings import Recipe


def _name_file(checkpoint: object) -> object:
    return {"file": checkpoint} if isinstance(checkpoint, str) else checkpoint


Width = Annotated[float, Field(gt=0, le=LARGEST_WIDTH)]


class SweepEntry(Model):
    """One network with one training method, trained with each of the sweep's seeds; or one trained elsewhere."""

    model: Annotated[str, AfterValidator(check_network_name)] = Field(examples=["cnn7"])
    """The network; `module:function` for a function of a plugin that is not registered."""
    method: Annotated[str, AfterValidator(check_method)] = Field("", examples=["ibp"])
    """The training method; required, except beside `checkpoint`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The network's options, where they differ from their defaults."""
    method_options: dict[str, Any] = Field(default_factory=dict)
    """The training method's options, where they differ from their defaults."""
    width: Width | None = None
    """Factor of the network's channels; null for the sweep's `width`."""
    train: Annotated[dict[str, Any], KeysOf(Recipe)] = Field(default_factory=dict)
    """What this entry changes of the recipe; it overrides the sweep's `train` and a profile's."""
    checkpoint: Annotated[NetworkFile | None, BeforeValidator(_name_file, NetworkFile | str | None)] = None
    """A file with the weights of a network that was trained elsewhere, or a mapping with `file`, below. The network is
    not trained; it is evaluated once, under the first seed."""
    source: Source | None = None
    """Where a network trained elsewhere was published, and its published numbers."""
    label: str = Field("", max_length=LONGEST_LABEL, pattern=r"\A[^\r\n]*\z", examples=["CerDEQ, orthogonal"])
    """The row's name in tables, pages and figures, for network, method and settings; it decides no number. Rows that
    share it, such as those of an entry with lists, have these after it."""
    zip: list[str] = Field(default_factory=list)
    """Lists of the entry that advance together, such as [model, options.margin]: first values, then second ones."""

    @field_validator("train")
    @classmethod
    def _check_recipe(cls, own: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Refuse a wrong recipe; unknown keys alone if the context, the sweep's recipe, is wrong itself."""
        if info.context is None:
            validate(Recipe, {key: value for key, value in own.items() if key not in Recipe.model_fields})
        else:
            merge_recipes(info.context, own)
        return own

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        """Refuse a training method or its settings for a network trained elsewhere, and a source for any other."""
        if self.checkpoint is None:
            if not self.method:
                raise InputError(f"method: missing; allowed: {', '.join(method_names())}, or `checkpoint` instead")
            allowed = "nothing, for the network is trained here, without `checkpoint`"
            require("source", self.source and self.source.model_dump(), self.source is None, allowed)
        for key in ("method", "method_options", "train") if self.checkpoint else ():
            value = getattr(self, key)
            require(key, value, not value, "nothing beside `checkpoint`, for the network is not trained")
        return self

    def teacher_entry(self, recipe: Recipe | None) -> "SweepEntry | None":
        """Return the entry of the teacher, None without one. recipe: the sweep's. Raises InputError."""
        content = self.method_options.get("teacher")
        if not isinstance(content, dict):  # another type is refused with the method's options
            return None
        shared: dict[str, Any] = {"width": self.width}
        if "model" not in content:
            shared |= {"model": self.model, "options": self.options}
        if content.get("checkpoint") is None:
            radius = {name: value for name, value in self.train.items() if name == "eps"}
            shared |= {"method": "pgd", "train": radius}
        content = {name: value for name, value in content.items() if (name, value) != ("width", None)}
        with located("method_options.teacher."):
            teacher = validate(SweepEntry, merge(shared, content), context=recipe)
            require("zip", teacher.zip, not teacher.zip, "none: lists of a teacher are lists of its student's entry")
            further = teacher.method_options.get("teacher")
            require("method_options.teacher", further, further is None, "none: a teacher has no teacher")
            return teacher


_OWNERS = {"options": "model", "method_options": "method"}


def merge_recipes(shared: Recipe, own: dict[str, Any]) -> Recipe:
    """Return the sweep's recipe with an entry's changes. Raises InputError."""
    return validate(Recipe, shared.model_dump(exclude_unset=True) | own)


def changed_options(section: str, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of a network or method that are not at their defaults, as JSON has them.

    So 1 and 1.0 name one trial. section: `options` or `method_options`. Raises InputError.
    """
    from harness.methods import method_options  # here, since it imports torch: keys and names are checked without

    names, of = (network_names(), options_of) if section == "options" else (method_names(), method_options)
    allowed = of(name)
    text = f"allowed: {', '.join(allowed)}" if allowed else f"{name} has no options"
    with collect_problems() as at:
        for option in [option for option in options if option not in allowed][:MOST_PROBLEMS]:
            owners = [other for other in names if option in of(other)]
            owner = f"; `{_OWNERS[section]}: {owners[0]}` has {option}" if owners else ""
            hint = suggestion(option, list(allowed)) or owner
            with at(f"{option}: "):
                raise InputError(f"unknown option of {name}; {text}{hint}")
    checked = validate(options_model(allowed), options, is_json=True)
    return checked.model_dump(mode="json", exclude_defaults=True)


def options_model(options: Any) -> type[BaseModel]:
    """Return a class whose fields are the options of a network or a training method, by name as signatures have them.

    A tuple may be a list, as in JSON.
    """
    kinds: Any = {
        name: (option.annotation, ... if option.default is option.empty else option.default)
        for name, option in options.items()
    }
    # A generated class has no source: pydantic's search for its docstrings finds nothing, and is slow in a deep stack.
    return create_model("options", __config__=STRICT | {"use_attribute_docstrings": False}, **kinds)


def check_entries(entries: list[dict[str, Any]], info: ValidationInfo) -> list[dict[str, Any]]:
    """Return the entries of `trials`, after checking what needs no torch: all but options of networks and methods.

    info: has the keys before `trials` that are right. Raises InputError.
    """
    keys, count = info.data, 0
    with collect_problems() as at:
        for number, entry in enumerate(entries):
            with at(f"{number}."):
                for name in _models_in(entry) if "plugins" in keys else ():
                    plugins.add_factory(name, keys["plugins"])
                count += len(expand_entry(without_options(entry), keys.get("train")))
            check_count(count * len(keys.get("seeds", [0])))
    return entries


def _models_in(entry: dict[str, Any]) -> list[str]:
    """Return the names of an entry's networks, and of its teacher's."""
    options = entry.get("method_options")
    teacher = options.get("teacher") if isinstance(options, dict) else None
    return names_in(entry, "model") + (names_in(teacher, "model") if isinstance(teacher, dict) else [])


def check_count(trials: int) -> None:
    """Raise SettingError for more trials than a sweep may have."""
    require("trials", f"{trials:,} trials or more with all seeds", trials <= LARGEST, f"at most {LARGEST:,}")


def expand_entry(entry: dict[str, Any], recipe: Recipe | None) -> list[tuple[str, SweepEntry]]:
    """Return an entry of `trials` for each value of its lists, after that value as messages end, "" without lists.

    recipe: the sweep's, None if that is wrong. Raises InputError, with each problem once, and the first entry that has
    it.
    """
    entries, problems = list[tuple[str, SweepEntry]](), dict[str, str]()
    for content, values in expand(entry):
        choice = f" (with {', '.join(f'{k} {v}' for k, v in values.items())})" if values else ""
        try:
            expanded = validate(SweepEntry, content, context=recipe)
            expanded.teacher_entry(recipe)
            entries.append((choice, expanded))
        except InputError as error:
            for line in str(error).splitlines():
                problems.setdefault(line, choice)
    if problems:
        raise InputError("\n".join(f"{line}{choice}" for line, choice in problems.items()))
    return entries
