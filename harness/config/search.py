"""The key `search` of a sweep file: which settings are searched, how, for how long, and on which images."""

import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any

from pydantic import Field, model_validator

from baselines import options_of
from harness.config.settings import OneOf, TrainSettings
from harness.config.strict import Strict
from harness.config.trial import TrialConfig
from harness.errors import require
from harness.methods import method_options
from harness.storage.names import CERTIFIED_ERROR, STANDARD_ERROR

SAMPLERS = ("tpe", "nsga2", "random")
OBJECTIVES = (CERTIFIED_ERROR, STANDARD_ERROR)
_SECTIONS = ("train", "options", "method_options")
Sampler = typing.Literal[SAMPLERS]  # type: ignore[valid-type]
Objective = typing.Literal[OBJECTIVES]  # type: ignore[valid-type]
Number = typing.TypeVar("Number", int, float)
Ends = Annotated[list[Number], Field(min_length=2, max_length=2)]


class Space(Strict):
    """The values that a setting may have: one of the keys below."""

    uniform: Ends[float] | None = None
    """Numbers from the first to the second."""
    log_uniform: Ends[float] | None = None
    """As `uniform`, but the logarithm is uniform."""
    integer: Ends[int] | None = None
    """Whole numbers from the first to the second."""
    choice: list[bool | int | float | str | list[int] | None] | None = None
    """One of these values."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Space":
        kinds = [key for key in type(self).model_fields if getattr(self, key) is not None]
        require("kind", kinds, len(kinds) == 1, f"one of {', '.join(type(self).model_fields)}")
        if self.choice is not None:
            different = all(value not in self.choice[:index] for index, value in enumerate(self.choice))
            require("choice", self.choice, len(self.choice) > 1 and different, "two different values or more")
            return self
        low, high = getattr(self, kinds[0])
        require(kinds[0], [low, high], low < high, "two numbers, the smaller one first")
        require(kinds[0], [low, high], low > 0 or kinds[0] != "log_uniform", "numbers above 0")
        return self

    @property
    def ends(self) -> Sequence[float]:
        """The lowest and the highest number; empty for a choice."""
        return self.uniform or self.log_uniform or self.integer or ()

    @property
    def extremes(self) -> list[Any]:
        """The values that are checked before anything starts: both ends, or every choice."""
        return self.choice if self.choice is not None else list(self.ends)

    def holds(self, value: Any) -> bool:
        """Return whether a value is in the space."""
        if self.choice is not None:
            return any(value == one and type(value) is type(one) for one in self.choice)
        number = isinstance(value, int if self.integer else int | float) and not isinstance(value, bool)
        return number and min(self.ends) <= value <= max(self.ends)


class Asha(Strict):
    """Stops candidates early whose certified error is high, by IBP of the validation images at the sweep's eps."""

    min_epochs: int = Field(ge=1)
    """The first epoch after which candidates are compared. Choose one after the ramp: bounds say little before it."""
    factor: int = Field(3, ge=2)
    """After each comparison the best 1/factor go on; the next comparison is after factor times as many epochs."""


class SearchSettings(Strict):
    """Searches settings of each entry of `trials` on images held out of training. The winners are then trained on all
    training images, with every seed of the sweep."""

    spaces: dict[str, Space] = Field(default_factory=dict)
    """The values that each setting may have, by the setting's key in an entry, such as train.learning_rate,
    options.margin or method_options.alpha. An entry is searched without the settings that its network and method do not
    use."""
    sampler: Annotated[Sampler, OneOf(SAMPLERS)] = "tpe"
    """Optuna's sampler, which proposes candidates: 'tpe', 'nsga2' for two objectives, or 'random' for comparison."""
    objectives: list[Annotated[Objective, OneOf(OBJECTIVES)]] = Field([CERTIFIED_ERROR], min_length=1)
    """What is minimised: certified_error, standard_error, or both, for a Pareto front."""
    validation_images: int = Field(5000, ge=1)
    """How many training images, the last ones, are held out to evaluate candidates on."""
    seeds: int = Field(1, ge=1)
    """How many of the sweep's seeds, the first ones, each candidate is trained with; its objectives are means."""
    trials: int | None = Field(None, ge=1)
    """How many candidates each entry has; null is no limit and needs `hours`."""
    hours: float | None = Field(None, gt=0)
    """After so many hours of training and evaluation, summed over candidates, none is begun; null is no limit."""
    asha: Asha | None = None
    """Stops candidates early; needs objectives: [certified_error] and seeds: 1. null trains all to the end."""
    seed: int = Field(0, ge=0)
    """The sampler's seed."""

    @model_validator(mode="after")
    def _fits_together(self) -> "SearchSettings":
        objectives = self.objectives
        require("spaces", self.spaces, bool(self.spaces), "the values that at least one setting may have, by its key")
        require("objectives", objectives, len(set(objectives)) == len(objectives), "different ones")
        budget = self.trials is not None or self.hours is not None
        require("trials", self.trials, budget, "a number of candidates, or hours")
        alone = objectives == [CERTIFIED_ERROR] and self.seeds == 1
        only = f"null, but with objectives: [{CERTIFIED_ERROR}] and seeds: 1"
        require("asha", self.asha and self.asha.model_dump(), self.asha is None or alone, only)
        for key in self.spaces:
            section, _, name = key.partition(".")
            allowed = "a key in train, options or method_options, such as train.learning_rate"
            require(f"spaces.{key}", key, section in _SECTIONS and name.isidentifier(), allowed)
        return self


@dataclass(frozen=True)
class Searched:
    """An entry of `trials` whose settings are searched.

    Attributes:
        base: the entry's trial as it is written, with seed 0.
        spaces: the spaces of its settings, by key.
        resolve: returns a trial with other settings, by key.
    """

    base: TrialConfig
    spaces: dict[str, Space]
    resolve: Callable[[dict[str, Any]], TrialConfig]

    def config(self, settings: dict[str, Any]) -> TrialConfig:
        """Return the trial with these settings, by key, and seed 0. Raises ValueError if they do not fit together."""
        return replace(self.resolve(settings), profile=self.base.profile)

    @property
    def written(self) -> dict[str, Any] | None:
        """The settings that the entry has as it is written; None if one of them is outside its space."""
        matches = {key: self._written(key) for key in self.spaces}
        return {key: values[0] for key, values in matches.items()} if all(matches.values()) else None

    def _written(self, key: str) -> list[Any]:
        """Return the values of a setting's space that mean the same as what the entry has."""
        space, value = self.spaces[key], _value(self.base, key)
        if space.choice is None:
            return [value] if space.holds(value) else []
        return [choice for choice in space.choice if self._resolves_to(key, choice, value)]

    def _resolves_to(self, key: str, choice: Any, value: Any) -> bool:
        try:
            return bool(_value(self.config({key: choice}), key) == value)
        except ValueError:  # it does not go with the entry's other settings
            return False


def spaces_of(spaces: Mapping[str, Space], model: str, method: str, ignored: Mapping[str, str]) -> dict[str, Space]:
    """Return the spaces of the settings that a network and a method use. ignored: keys that change nothing there."""
    settings = {
        "train": [field.name for field in fields(TrainSettings)],
        "options": list(options_of(model)),
        "method_options": list(method_options(method)),
    }
    used = {f"{section}.{name}" for section, names in settings.items() for name in names} - ignored.keys()
    return {key: space for key, space in spaces.items() if key in used}


def _value(config: TrialConfig, key: str) -> Any:
    """Return a setting of a trial, by its key, as a sweep file has it."""
    section, _, name = key.partition(".")
    if section == "train":
        value = getattr(config.train, name)
        return list(value) if isinstance(value, tuple) else value
    owners = {"options": options_of(config.model), "method_options": method_options(config.method)}
    return getattr(config, section).get(name, owners[section][name].default)
