"""The keys of a sweep file, and what to say of one that is wrong."""

import json
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from inspect import Parameter, signature
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
)

from baselines import DATASETS, UnknownNameError, network_names, options_of, suggestion, unknown_network
from harness.common.errors import InputError, SettingError, SettingsError, require
from harness.own_data import OwnData
from harness.settings import STRICT, EvaluationSettings, Radius, TrainSettings
from harness.sweep.imported_network import Checkpoint, Source
from harness.sweep.search_settings import SearchSettings, Space
from harness.sweep.trial_config import LARGEST_SEED, LARGEST_WIDTH, LONGEST_NAME, NAME_PATTERN

_MOST_PROBLEMS = 100  # in a message
RENAMED = {"evaluation.methods": "evaluation.stages"}


def _registered(kind: str, names: Callable[[], Iterable[str]]) -> BeforeValidator:
    """Return the check of a name in a registry, to which plugins add."""

    def check(name: object) -> object:
        if name not in (registered := list(names())):
            raise unknown_network(name) if kind == "network" else UnknownNameError(kind, name, registered)
        return name

    return BeforeValidator(check)


def _method_names() -> Iterable[str]:
    from harness.methods import METHODS  # imported late: it imports torch

    return METHODS


def _check_gpus(gpus: float) -> float:
    require("gpu", gpus, gpus <= 1 or gpus.is_integer(), "a fraction of one GPU, or a whole number of them")
    return gpus


def _check_list(seeds: object) -> object:
    require("seeds", seeds, isinstance(seeds, list), "a list, such as [0, 1, 2]")
    return seeds


def _check_seeds(seeds: list[int]) -> list[int]:
    require("seeds", seeds, len(set(seeds)) == len(seeds), "each one once")
    return seeds


def _name_file(checkpoint: object) -> object:
    return {"file": checkpoint} if isinstance(checkpoint, str) else checkpoint


def _form_of(dataset: object) -> str:
    return _FORMS[isinstance(dataset, dict | OwnData)]


_FORMS = ("a registered name", "own data")  # pydantic puts these into the location of an error
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]


class TrialEntry(BaseModel):
    """One network with one training method, trained with each of the sweep's seeds; or one trained elsewhere."""

    model_config = STRICT

    model: Annotated[str, _registered("network", network_names)]
    """The network; `module:function` for a function of a plugin that is not registered."""
    method: Annotated[str, _registered("training method", _method_names)] = ""
    """The training method; required, except beside `checkpoint`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The network's options, where they differ from their defaults."""
    method_options: dict[str, Any] = Field(default_factory=dict)
    """The training method's options, where they differ from their defaults."""
    width: float | None = Field(None, gt=0, le=LARGEST_WIDTH)
    """Factor of the network's channels; null for the sweep's `width`."""
    train: dict[str, Any] = Field(default_factory=dict)
    """What this entry changes of the recipe; it overrides the sweep's `train` and a profile's."""
    checkpoint: Annotated[Checkpoint | None, BeforeValidator(_name_file, Checkpoint | str | None)] = None
    """A file with the weights of a network that was trained elsewhere, or a mapping with `file`, below. The network is
    not trained; it is evaluated once, under the first seed."""
    source: Source | None = None
    """Where a network trained elsewhere was published, and its published numbers."""
    zip: list[str] = Field(default_factory=list)
    """Lists of the entry that advance together, such as [model, options.margin]: first values, then second ones."""

    @property
    def is_trained_elsewhere(self) -> bool:
        """True if the network comes from a file."""
        return self.checkpoint is not None

    def check_keys(self) -> None:
        """Refuse a training method or its settings for a network trained elsewhere, and a source for any other.

        Raises InputError.
        """
        if not self.is_trained_elsewhere:
            if not self.method:
                raise InputError("method: missing")
            allowed = "nothing, for the network is trained here, without `checkpoint`"
            require("source", self.source and vars(self.source), self.source is None, allowed)
            return
        for key in ("method", "method_options", "train"):
            value = getattr(self, key)
            require(key, value, not value, "nothing beside `checkpoint`, for the network is not trained")


class Resources(BaseModel):
    """What Ray reserves for each trial; fractions of a GPU share it."""

    model_config = STRICT

    cpu: int = Field(1, ge=1)
    """CPU cores, and as many threads."""
    gpu: Annotated[float, Field(ge=0), AfterValidator(_check_gpus)] = 0
    """GPUs, or a fraction of one, which is also the share of its memory."""


class SweepFile(BaseModel):
    """A sweep file, its includes merged."""

    model_config = STRICT

    name: str = Field(pattern=NAME_PATTERN, max_length=LONGEST_NAME)
    """Name of the folder under results/ and of the MLflow experiment."""
    dataset: Annotated[
        Annotated[str, _registered("data set", lambda: DATASETS), Tag(_FORMS[0])] | Annotated[OwnData, Tag(_FORMS[1])],
        Discriminator(_form_of),
    ]
    """The data set to train and evaluate on: a name, or a mapping, below, for images of your own."""
    eps: Radius
    """The exact l-inf radius of evaluation in pixel units, above 0 and at most 1: a number or a fraction like 8/255."""
    seeds: Annotated[list[Seed], Field(min_length=1), BeforeValidator(_check_list), AfterValidator(_check_seeds)]
    """Seeds of initial weights, batches and attacks; each entry of `trials` is trained once with each."""
    train: TrainSettings = Field(default_factory=TrainSettings)
    """The recipe."""
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    """How trained networks are evaluated."""
    trials: list[dict[str, Any]] = Field(min_length=1)
    """What is compared: the rows of the leaderboard."""
    resources: Resources = Field(default_factory=lambda: Resources.model_validate({}))
    """What Ray reserves for each trial."""
    width: float = Field(1.0, gt=0, le=LARGEST_WIDTH)
    """Factor of every network's channels."""
    train_images: int | None = Field(None, ge=1)
    """Number of training images, the first ones; null takes all."""
    validation_images: int = Field(0, ge=0)
    """Above 0, so many of the last training images are held out and evaluated instead of the test split."""
    search: SearchSettings | None = None
    """Settings to search before anything is compared; null searches nothing."""
    plugins: list[str] = Field(default_factory=list)
    """Modules of your own to import, such as [my_package.nets]: what they register can be named in this file."""
    include: str = ""
    """A file with more of these keys, such as a recipe, relative to this file and in its folder or below; the keys here
    override its keys."""
    profiles: dict[str, dict[str, Any]] | None = None
    """The same study at another size: by name, the keys that each profile changes. Mappings are merged key by key,
    lists replaced. The profile 'cpu' is used where there is no GPU."""


FIXED = frozenset({"name", "dataset", "eps", "profiles", "include", "plugins"})
"""The keys that a profile cannot change."""

_WORDS = {
    "Input should be ": "", "a valid integer": "an integer", "a valid boolean": "true or false",
    "a valid string": "a text", "a valid dictionary": "a mapping", "a valid array": "a list", "a valid ": "a ",
    "an object": "a mapping", "String should": "a text that should", "List should": "a list that should",
}  # fmt: skip
"""Of pydantic's messages, and what we write."""

_SECTIONS: dict[Any, Any] = {
    "train": TrainSettings, "evaluation": EvaluationSettings, "resources": Resources, "search": SearchSettings,
    "spaces": Space, "checkpoint": Checkpoint, "source": Source,
    _FORMS[1]: OwnData,
}  # fmt: skip


def options_model(options: Mapping[str, Parameter]) -> type[BaseModel]:
    """Return a class whose fields are the options of a network or a training method."""
    kinds: Any = {
        name: (option.annotation, ... if option.default is option.empty else option.default)
        for name, option in options.items()
    }
    # A generated class has no source: pydantic's search for its docstrings finds nothing, and is slow in a deep stack.
    return create_model("options", __config__=STRICT | {"use_attribute_docstrings": False}, **kinds)


def validate(kind: Any, value: Any, *section: str) -> Any:
    """Return a value from a sweep file as a class has it. section: the keys that lead to the value.

    Raises InputError, with a line for each problem: the key, what was found, what is allowed.
    """
    try:
        return _adapter(kind).validate_json(json.dumps(value, default=str))
    except ValidationError as error:
        problems = sorted(error.errors(), key=lambda item: item["type"] == "missing")  # last: it may only be misspelt
        lines = [_describe(item, kind, section) for item in problems[:_MOST_PROBLEMS]]
        more = [f"and {len(problems) - len(lines):,} problems more"] if len(problems) > len(lines) else []
        raise InputError("\n".join(lines + more)) from None


@lru_cache(32)
def _adapter(kind: Any) -> TypeAdapter[Any]:
    """Return pydantic's validator of a class. The classes of sweep files are used again and again, and stay cached."""
    return TypeAdapter(kind)


def _describe(error: Any, kind: Any, section: tuple[str, ...]) -> str:
    location = [*section, *(str(part) for part in error["loc"] if part not in _FORMS)]
    key, cause = ".".join(location), error.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        causes = cause.errors if isinstance(cause, SettingsError) else [cause]
        return "\n".join(_name_key(location, one) for one in causes)
    if error["type"] == "missing":
        return f"{key}: missing"
    if key in RENAMED:
        return f"{key}: renamed; write {RENAMED[key]}"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        owner = [kind, *(_SECTIONS[part] for part in error["loc"][:-1] if part in _SECTIONS)][-1]
        names = list(signature(owner).parameters)
        hint = suggestion(location[-1], names) or _owner_of_option(location)
        return f"{key}: unknown key; allowed: {', '.join(names) or 'none'}{hint}"
    if isinstance(cause, UnknownNameError):
        return str(SettingError(key, error["input"], cause.allowed))
    return str(SettingError(key, error["input"], _allowed(error["msg"])))


def _owner_of_option(location: list[str]) -> str:
    """Return the end of a message that names a network with the unknown option; "" if there is none."""
    if location[-2:-1] != ["options"]:
        return ""
    owners = [name for name in network_names() if location[-1] in options_of(name)]  # this imports torch
    return f"; `model: {owners[0]}` has {location[-1]}" if owners else ""


def _allowed(message: str) -> str:
    """Return what pydantic's message allows, in the words of this project."""
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    return message[0].lower() + message[1:]


def _name_key(location: list[str], error: SettingError) -> str:
    """Return an error of the mapping or the key at this location, with all keys that lead to it."""
    inside = [] if location[-1:] == [error.key] else [error.key]
    return str(SettingError(".".join([*location, *inside]), error.found, error.allowed))
