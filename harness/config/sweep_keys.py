"""The keys of a sweep file, and what to say of one that is wrong."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import CoreSchema, core_schema

from baselines import DATASETS, UnknownNameError, network_names, unknown_network
from harness.config.search import Asha, SearchSettings, Space
from harness.config.settings import STRICT, EvaluationSettings, OneOf, Radius, TrainSettings
from harness.config.trial import LARGEST_SEED, LARGEST_WIDTH, LONGEST_NAME, NAME_PATTERN
from harness.errors import SettingError, shorten
from harness.methods import METHODS

RENAMED = {"evaluation.methods": "evaluation.stages"}


@dataclass(frozen=True)
class _Registered:
    """Annotation of a text: one of the names in a registry, to which plugins add."""

    kind: str
    names: Callable[[], Iterable[str]]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        """Check the name before its type."""
        return core_schema.no_info_before_validator_function(self._check, handler(source))

    def _check(self, value: object) -> object:
        names = list(self.names())
        if value not in names:
            raise unknown_network(value) if self.kind == "network" else UnknownNameError(self.kind, value, names)
        return value

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """Add today's names to the schema."""
        return OneOf(tuple(self.names())).__get_pydantic_json_schema__(schema, handler)


def _whole_or_fraction(gpus: float) -> float:
    if gpus > 1 and not gpus.is_integer():
        raise SettingError("gpu", gpus, "a fraction of one GPU, or a whole number of them")
    return gpus


class TrialEntry(BaseModel):
    """One network with one training method, trained with each of the sweep's seeds."""

    model_config = STRICT

    model: Annotated[str, _Registered("network", network_names)]
    """The network; `module:function` for a function of a plugin that is not registered."""
    method: Annotated[str, _Registered("training method", lambda: METHODS)]
    """The training method."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The network's options, where they differ from their defaults."""
    method_options: dict[str, Any] = Field(default_factory=dict)
    """The training method's options, where they differ from their defaults."""
    width: float | None = Field(None, gt=0, le=LARGEST_WIDTH)
    """Factor of the network's channels; null for the sweep's `width`."""
    train: dict[str, Any] = Field(default_factory=dict)
    """What this entry changes of the recipe; it overrides the sweep's `train` and a profile's."""
    zip: list[str] = Field(default_factory=list)
    """Lists of the entry that advance together, such as [model, options.margin]: first values, then second ones."""


class Resources(BaseModel):
    """What Ray reserves for each trial; fractions of a GPU share it."""

    model_config = STRICT

    cpu: int = Field(1, ge=1)
    """CPU cores, and as many threads."""
    gpu: Annotated[float, Field(ge=0), AfterValidator(_whole_or_fraction)] = 0
    """GPUs, or a fraction of one, which is also the share of its memory."""


class SweepFile(BaseModel):
    """A sweep file, its includes merged."""

    model_config = STRICT

    name: str = Field(pattern=NAME_PATTERN, max_length=LONGEST_NAME)
    """Name of the folder under results/ and of the MLflow experiment."""
    dataset: Annotated[str, _Registered("data set", lambda: DATASETS)]
    """The data set to train and evaluate on."""
    eps: Radius
    """The exact l-inf radius of evaluation in pixel units, above 0 and at most 1: a number or a fraction like 8/255."""
    seeds: list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]] = Field(min_length=1)
    """Seeds of initial weights, batches and attacks; each entry of `trials` is trained once with each."""
    train: TrainSettings = Field(default_factory=TrainSettings)
    """The recipe."""
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    """How trained networks are evaluated."""
    trials: list[TrialEntry] = Field(min_length=1)
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
    """A file with more of these keys, such as a recipe, relative to this file; the keys here override its keys."""
    profiles: dict[str, dict[str, Any]] | None = None
    """The same study at another size: by name, the keys that each profile changes. Mappings are merged key by key,
    lists replaced. The profile 'cpu' is used where there is no GPU."""


FIXED = frozenset({"name", "dataset", "eps", "profiles", "include", "plugins"})
"""The keys that a profile cannot change."""

_SECTIONS: dict[Any, Any] = {
    "train": TrainSettings, "evaluation": EvaluationSettings, "trials": TrialEntry, "resources": Resources,
    "search": SearchSettings, "spaces": Space, "asha": Asha,
}  # fmt: skip


def describe(error: Any, *section: str) -> str:
    """Return the line for one of pydantic's errors: key, what was found, what is allowed. section: leads its key."""
    location = (*section, *error["loc"])
    key = ".".join(map(str, location))
    cause = error.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        inside = [] if location[-1:] == (cause.key,) else [cause.key]  # the error of a whole mapping, or of this key
        return f"{'.'.join([*map(str, location), *inside])}: found {shorten(cause.found)}, allowed: {cause.allowed}"
    if error["type"] == "missing":
        return f"{key}: missing"
    if key in RENAMED:
        return f"{key}: renamed; write {RENAMED[key]}"
    if error["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        mappings = [_SECTIONS[part] for part in location[:-1] if part in _SECTIONS]
        allowed = inspect.signature(mappings[-1]).parameters if mappings else SweepFile.model_fields
        return f"{key}: unknown key; allowed: {', '.join(allowed)}"
    if isinstance(cause, UnknownNameError):
        return f"{key}: found {shorten(error['input'])}, allowed: {cause.allowed}"
    allowed = error["msg"].removeprefix("Input should be ").replace("an object", "a mapping").replace("array", "list")
    return f"{key}: found {shorten(error['input'])}, allowed: {allowed[0].lower() + allowed[1:]}"
