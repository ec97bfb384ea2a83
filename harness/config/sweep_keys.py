"""The keys of a sweep file with one profile applied, and what to say of one that is wrong."""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, Field
from pydantic_core import CoreSchema, core_schema

from baselines import DATASETS, UnknownNameError, network_names
from harness.config.radius import Radius
from harness.config.search import Asha, SearchSettings, Space
from harness.config.settings import EvaluationSettings, OneOf, TrainSettings
from harness.config.strict import Strict
from harness.config.trial import LARGEST_SEED, LARGEST_WIDTH, LONGEST_NAME, NAME_PATTERN
from harness.errors import SettingError, shown
from harness.methods import METHODS

RENAMED = {"evaluation.methods": "evaluation.stages"}


@dataclass(frozen=True)
class _Known:
    """Annotation of a text: one of a registry's names, which plugins add to, checked."""

    names: Callable[[], Iterable[str]]
    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        """Refuse any other before anything else is looked at."""
        return core_schema.no_info_before_validator_function(self._checked, handler(source))

    def _checked(self, value: object) -> object:
        if value not in (known := list(self.names())):
            raise ValueError(str(UnknownNameError(self.kind, value, known)))
        return value

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        """The names that there are."""
        return OneOf(tuple(self.names())).__get_pydantic_json_schema__(schema, handler)


def _whole_or_fraction(gpus: float) -> float:
    if gpus > 1 and not gpus.is_integer():
        raise SettingError("gpu", gpus, "a fraction of one GPU, or a whole number of them")
    return gpus


class TrialEntry(Strict):
    """One network under one training method; the sweep's seeds multiply it."""

    model: Annotated[str, _Known(network_names, "network")]
    """The network; `module:function` for one that a plugin has and does not register."""
    method: Annotated[str, _Known(lambda: METHODS, "training method")]
    """The training method."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The network's, where they are not its defaults."""
    method_options: dict[str, Any] = Field(default_factory=dict)
    """The training method's, where they are not its defaults."""
    width: float | None = Field(None, gt=0, le=LARGEST_WIDTH)
    """Factor of the network's channels; null for the sweep's."""
    train: dict[str, Any] = Field(default_factory=dict)
    """What this entry changes of the recipe; it goes before the sweep's and a profile's."""
    zip: list[str] = Field(default_factory=list)
    """Which of the entry's lists go together, such as [model, options.margin]: first values, then second ones."""


class Resources(Strict):
    """What Ray reserves for each trial; fractions of a GPU share it."""

    cpu: int = Field(1, ge=1)
    """Cores, as many threads."""
    gpu: Annotated[float, Field(ge=0), AfterValidator(_whole_or_fraction)] = 0
    """GPUs, or a fraction of one, which is also its share of the memory."""


class SweepFile(Strict):
    """A sweep with one profile applied: everything but `profiles`."""

    name: str = Field(pattern=NAME_PATTERN, max_length=LONGEST_NAME)
    """Of the folder under results/ and of the MLflow experiment."""
    dataset: Annotated[str, _Known(lambda: DATASETS, "data set")]
    """What is trained on and judged."""
    eps: Radius
    """The l-inf radius judged, in pixel units, above 0 and at most 1, exact: a number or a fraction such as 8/255."""
    seeds: list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]] = Field(min_length=1)
    """Of initial weights, batches and attacks: each entry of `trials` is trained once with each."""
    train: TrainSettings = Field(default_factory=TrainSettings)
    """The recipe."""
    evaluation: EvaluationSettings = Field(default_factory=EvaluationSettings)
    """How trained networks are judged."""
    trials: list[TrialEntry] = Field(min_length=1)
    """What is compared: the leaderboard's rows."""
    resources: Resources = Field(default_factory=lambda: Resources.model_validate({}))
    """What Ray reserves for each trial."""
    width: float = Field(1.0, gt=0, le=LARGEST_WIDTH)
    """Factor of every network's channels."""
    train_images: int | None = Field(None, ge=1)
    """The first so many; null takes all."""
    validation_images: int = Field(0, ge=0)
    """So many of the last training images are held out and judged instead of the test split, where above 0: for
    searching."""
    search: SearchSettings | None = None
    """Settings that are searched before anything is compared; null searches nothing."""
    plugins: list[str] = Field(default_factory=list)
    """Modules of your own to import, such as [my_package.nets]: what they register can be named here."""
    include: str = ""
    """A file with more of these keys, such as a recipe, below this file's folder; what stands here goes before it."""


FIXED = frozenset({"name", "dataset", "eps", "profiles", "include", "plugins"})
"""What a profile cannot change."""


def described(item: Any) -> str:
    """A line of what is wrong, from an error of pydantic's, which says where."""
    key = ".".join(str(part) for part in item["loc"])
    cause = item.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        inside = [] if item["loc"][-1:] == (cause.key,) else [cause.key]  # of a whole mapping, or of this very key
        full = ".".join([*map(str, item["loc"]), *inside])
        return f"{full}: found {shown(cause.found)}, allowed: {cause.allowed}"
    if item["type"] == "missing":
        return f"{key}: missing"
    if item["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        if key in RENAMED:
            return f"{key}: renamed; write {RENAMED[key]}"
        return f"{key}: unknown key; allowed: {', '.join(_allowed_keys(item['loc']))}"
    message = item["msg"].removeprefix("Value error, ")
    return f"{key}: found {shown(item['input'])}: {message[0].lower() + message[1:]}"


def _allowed_keys(location: tuple[Any, ...]) -> list[str]:
    schemas = {"train": TrainSettings, "evaluation": EvaluationSettings, "trials": TrialEntry, "resources": Resources}
    schemas |= {"search": SearchSettings, "spaces": Space, "asha": Asha}
    inside = [schemas[part] for part in location[:-1] if part in schemas]
    return list(inspect.signature(inside[-1]).parameters) if inside else [*SweepFile.model_fields, "profiles"]
