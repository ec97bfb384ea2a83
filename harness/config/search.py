"""The key `search` of a sweep file: which settings are searched, how, and what is evaluated."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, field_validator, model_validator

from baselines import options_of
from harness.common.errors import located, require
from harness.common.models import Model
from harness.common.names import CERTIFIED_ERROR, STANDARD_ERROR
from harness.config.training import Training
from harness.settings import Evaluation

Objective = Literal[CERTIFIED_ERROR, STANDARD_ERROR]  # type: ignore[valid-type]
Number = TypeVar("Number", int, float)
Ends = Annotated[list[Number], Field(min_length=2, max_length=2)]


class Space(Model):
    """The values that a setting may have: exactly one of the keys below."""

    uniform: Ends[float] | None = None
    """A number from the first to the second."""
    log_uniform: Ends[float] | None = None
    """As `uniform`, of the logarithm."""
    integer: Ends[int] | None = None
    """An integer from the first to the second."""
    choice: list[bool | int | float | str | list[int] | None] | None = None
    """One of these values."""

    @model_validator(mode="after")
    def _check(self) -> "Space":
        kinds = [key for key, value in self if value is not None]
        require("kind", kinds, len(kinds) == 1, f"one of {', '.join(type(self).model_fields)}")
        if self.choice is not None:
            count = len(set(map(json.dumps, self.choice)))
            require("choice", self.choice, count == len(self.choice) > 1, "two different values or more")
        else:
            low, high = self.ends
            require(kinds[0], [low, high], low < high, "two numbers, the smaller one first")
            require(kinds[0], [low, high], low > 0 or kinds[0] != "log_uniform", "numbers above 0")
        return self

    @property
    def ends(self) -> Sequence[float]:
        """The smallest and the largest number; empty for a choice."""
        return self.uniform or self.log_uniform or self.integer or ()

    def encode(self, value: Any) -> Any:
        """Return Optuna's parameter for a setting: of a choice its JSON text, which tells 1, 1.0 and true apart."""
        return value if self.ends else json.dumps(value)

    def decode(self, value: Any) -> Any:
        """Return the setting for Optuna's parameter; numbers are rounded to 4 digits, within the space."""
        if not self.ends:
            return json.loads(value)
        return min(max(float(f"{value:.4g}"), self.ends[0]), self.ends[1]) if isinstance(value, float) else value

    def find(self, value: Any) -> list[Any]:
        """Return a list of the value as the space has it; empty for a value outside of the space."""
        if self.ends:
            value = float(Fraction(value)) if isinstance(value, str) else value  # a radius
            return [value] if value is not None and self.ends[0] <= value <= self.ends[1] else []
        return [choice for choice in self.choice or () if choice == value][:1]


class SearchSettings(Model):
    """Settings of each entry of `trials` are searched on images held out of training. The chosen settings are then
    trained on all training images, with every seed of the sweep."""

    spaces: dict[str, Space] = Field(min_length=1)
    """The values each setting may have, by its key in an entry, such as train.learning_rate, options.margin or
    method_options.alpha. An entry whose network or method does not use a setting is searched without it."""
    trials: int = Field(ge=1, examples=[50])
    """Number of candidates of each entry; each is trained with the sweep's first seed."""
    sampler: Literal["tpe", "random"] = "tpe"
    """Optuna's sampler, which proposes candidates: 'tpe', or 'random' as a control."""
    objectives: list[Objective] = Field([CERTIFIED_ERROR], min_length=1)
    """What to minimise: certified_error, standard_error, or both, which gives a front."""
    validation_images: int = Field(5000, ge=1)
    """Number of training images, the last ones, that are held out of training; candidates are evaluated on them."""
    seed: int = Field(0, ge=0)
    """The sampler's seed."""
    train: dict[str, Any] = Field(default_factory=dict, examples=[{"epochs": 5}])
    """Changes to the recipe of candidates alone, such as fewer epochs and the ramp and decays that fit them. Winners
    have the recipe of the file."""
    evaluation: dict[str, Any] = Field(default_factory=dict, examples=[{"stages": ["ibp"]}])
    """Changes to the evaluation of candidates alone, such as fewer stages: keys of the sweep's `evaluation`, except
    test_images. It is that of the first one."""

    @field_validator("objectives")
    @classmethod
    def _check_objectives(cls, objectives: list[str]) -> list[str]:
        require("objectives", objectives, len(set(objectives)) == len(objectives), "each one once")
        return objectives

    def evaluation_of_candidates(self, main: Evaluation) -> Evaluation:
        """Return the evaluation of candidates, on held-out images. main: the sweep's first one. Raises InputError."""
        with located("evaluation."):
            found = self.evaluation.get("test_images")
            require("test_images", found, found is None, "none: all held-out images, search.validation_images")
            return main.replace(**self.evaluation | {"split": "validation", "test_images": None})

    @field_validator("spaces")
    @classmethod
    def _check_spaces(cls, spaces: dict[str, Space]) -> dict[str, Space]:
        for key in spaces:
            section, _, name = key.partition(".")
            allowed = "a key in train, options or method_options, such as train.learning_rate"
            require(key, key, section in ("train", "options", "method_options") and name.isidentifier(), allowed)
        return spaces

    @model_validator(mode="after")
    def _check_train(self) -> "SearchSettings":
        twice = [name for name in self.train if f"train.{name}" in self.spaces]
        require("train", twice, not twice, "settings that are not among `spaces`")
        return self


@dataclass(frozen=True)
class SearchedRow:
    """A row of a sweep whose settings are searched.

    base: its training with the settings in the file, under seed 0. spaces: the spaces of settings that it uses.
    training: returns the training with settings, by key, under seed 0. Raises InputError where they do not fit.
    of_candidates: the settings that candidates alone have, by key.
    """

    base: Training
    spaces: dict[str, Space]
    training: Callable[[dict[str, Any]], Training]
    of_candidates: dict[str, Any]

    def candidate(self, settings: dict[str, Any]) -> Training:
        """Return the training of a candidate. Raises InputError if that, or its winner's, does not fit."""
        of_winner = self.training(settings)
        return self.training(self.of_candidates | settings) if self.of_candidates else of_winner

    @property
    def written(self) -> dict[str, Any] | None:
        """The settings of the entry in the file; None where one of them is outside its space."""
        settings = {key: space.find(_settings_of(self.base)[key]) for key, space in self.spaces.items()}
        return {key: value for key, (value,) in settings.items()} if all(settings.values()) else None


def make_searched_row(
    search: SearchSettings, base: Training, unused: Mapping[str, str], training: Callable[[Any], Training]
) -> SearchedRow:
    """Return a searched row, after making its training with both ends, or every choice, of each space.

    base, training: as in `SearchedRow`. unused: the settings that change nothing in it. Raises InputError.
    """
    used = _settings_of(base).keys() - unused.keys()
    spaces = {key: space for key, space in search.spaces.items() if key in used}
    row = SearchedRow(base, spaces, training, {f"train.{name}": value for name, value in search.train.items()})
    extremes = {key: space.ends or space.choice or () for key, space in row.spaces.items()}
    first = {key: values[0] for key, values in extremes.items()}
    if search.train:
        with located("search."):
            row.candidate(first)
    for key, values in extremes.items():
        for value in values:
            with located(f"search.spaces.{key}: "):
                row.candidate(first | {key: value})
    return row


def _settings_of(training: Training) -> dict[str, Any]:
    """Return all settings that can be searched, by their keys in an entry, as in JSON."""
    from harness.methods import method_options  # imports torch, which most wrong files are refused without

    settings = {f"train.{name}": value for name, value in training.train.model_dump(mode="json").items()}
    settings["train.eps"] = str(training.train_eps)
    sections = {"options": options_of(training.model), "method_options": method_options(training.method)}
    for section, parameters in sections.items():
        own = getattr(training, section)
        settings |= {f"{section}.{name}": own.get(name, option.default) for name, option in parameters.items()}
    return settings


def check_search(search: SearchSettings, validation_images: int, rows: Sequence[SearchedRow]) -> None:
    """Raise InputError unless the sweep holds out no images itself, and spaces and rows fit each other."""
    allowed = "0 beside search, whose winners are evaluated on test images"
    require("validation_images", validation_images, validation_images == 0, allowed)
    used = {key for row in rows for key in row.spaces}
    for key, space in search.spaces.items():
        allowed = "a setting that a network or method of trials uses"
        require(f"search.spaces.{key}", space.model_dump(exclude_none=True), key in used, allowed)
    for row in rows:
        allowed = f"also a setting that {row.base.row} uses"
        require("search.spaces", list(search.spaces), bool(row.spaces), allowed)
