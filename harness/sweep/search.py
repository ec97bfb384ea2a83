"""The key `search` of a sweep file: which settings are searched, how, for how long, and what is evaluated."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, Field, model_validator

from baselines import options_of
from harness.common.errors import InputError, require
from harness.common.names import CERTIFIED_ERROR, STANDARD_ERROR
from harness.settings import STRICT
from harness.sweep.trial import TrialConfig, identity

Sampler = Literal["tpe", "nsga2", "random"]
Objective = Literal[CERTIFIED_ERROR, STANDARD_ERROR]  # type: ignore[valid-type]
Number = TypeVar("Number", int, float)
Ends = Annotated[list[Number], Field(min_length=2, max_length=2)]


class Space(BaseModel):
    """The values that a setting may have: exactly one of the keys below."""

    model_config = STRICT

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
        kinds = [key for key in type(self).model_fields if getattr(self, key) is not None]
        require("kind", kinds, len(kinds) == 1, f"one of {', '.join(type(self).model_fields)}")
        if self.choice is not None:
            are_different = len(set(map(json.dumps, self.choice))) == len(self.choice)
            require("choice", self.choice, len(self.choice) > 1 and are_different, "two different values or more")
            return self
        low, high = getattr(self, kinds[0])
        require(kinds[0], [low, high], low < high, "two numbers, the smaller one first")
        require(kinds[0], [low, high], low > 0 or kinds[0] != "log_uniform", "numbers above 0")
        return self

    @property
    def ends(self) -> Sequence[float]:
        """The smallest and the largest number; empty for a choice."""
        return self.uniform or self.log_uniform or self.integer or ()

    @property
    def extremes(self) -> Sequence[Any]:
        """The values that are checked before anything starts: both ends, or every choice."""
        return self.ends if self.choice is None else self.choice


class Asha(BaseModel):
    """Stops candidates early that are worse than others at the same epoch, by IBP on the validation images."""

    model_config = STRICT

    min_epochs: int = Field(ge=1)
    """The first epoch after which candidates are compared. Choose one after the ramp: bounds say little before it."""
    factor: int = Field(3, ge=2)
    """The best 1/factor of the candidates go on, and are compared again after factor times as many epochs."""


class SearchSettings(BaseModel):
    """Settings of each entry of `trials` are searched on images held out of training. The chosen settings are then
    trained on all training images, with every seed of the sweep."""

    model_config = STRICT

    spaces: dict[str, Space] = Field(default_factory=dict)
    """The values each setting may have, by its key in an entry, such as train.learning_rate, options.margin or
    method_options.alpha. An entry whose network or method does not use a setting is searched without it."""
    sampler: Sampler = "tpe"
    """Optuna's sampler, which proposes candidates: 'tpe', 'nsga2' for fronts, or 'random' as a control."""
    objectives: list[Objective] = Field([CERTIFIED_ERROR], min_length=1)
    """What to minimise: certified_error, standard_error, or both, which gives a front."""
    validation_images: int = Field(5000, ge=1)
    """Number of training images, the last ones, that are held out of training; candidates are evaluated on them."""
    seeds: int = Field(1, ge=1)
    """Number of seeds, the sweep's first ones, with which each candidate is trained; its objectives are means."""
    trials: int | None = Field(None, ge=1)
    """Candidates per entry; null: only `hours` limits the search."""
    hours: float | None = Field(None, gt=0)
    """Hours of training and evaluation, summed over all candidates, after which none starts; null sets no limit."""
    asha: Asha | None = None
    """Stops candidates early, with one objective and one seed; null trains every candidate to its end."""
    seed: int = Field(0, ge=0)
    """The sampler's seed."""

    @model_validator(mode="after")
    def _check(self) -> "SearchSettings":
        objectives = self.objectives
        require("spaces", self.spaces, bool(self.spaces), "the values of at least one setting, by its key")
        require("objectives", objectives, len(set(objectives)) == len(objectives), "each one once")
        has_budget = self.trials is not None or self.hours is not None
        require("trials", self.trials, has_budget, "a number of candidates, or hours")
        is_single = objectives == [CERTIFIED_ERROR] and self.seeds == 1
        only = f"null, or objectives: [{CERTIFIED_ERROR}] and seeds: 1"
        require("asha", self.asha and self.asha.model_dump(), self.asha is None or is_single, only)
        for key in self.spaces:
            section, _, name = key.partition(".")
            allowed = "a key in train, options or method_options, such as train.learning_rate"
            require(
                f"spaces.{key}", key, section in ("train", "options", "method_options") and name.isidentifier(), allowed
            )
        return self


@dataclass(frozen=True)
class Searched:
    """An entry of `trials` whose settings are searched.

    base: its trial with the settings in the file, under seed 0. spaces: the spaces of settings that it uses.
    resolve: makes a trial of settings.
    """

    base: TrialConfig
    spaces: dict[str, Space]
    resolve: Callable[[dict[str, Any]], TrialConfig]

    def config(self, settings: dict[str, Any]) -> TrialConfig:
        """Return the trial with these settings, by key, under seed 0. Raises InputError where they do not fit."""
        return replace(self.resolve(settings), profile=self.base.profile)

    @property
    def written(self) -> dict[str, Any] | None:
        """The settings of the entry in the file; None where one of them is outside its space."""
        settings = {}
        for key, space in self.spaces.items():
            if space.choice is not None:
                values = [choice for choice in space.choice if self._is_base(key, choice)]
            else:
                value = _settings_of(self.base)[key]
                values = [value] if value is not None and min(space.ends) <= value <= max(space.ends) else []
            if not values:
                return None
            settings[key] = values[0]
        return settings

    def _is_base(self, key: str, value: Any) -> bool:
        """Return whether a setting is the entry's own, perhaps in another spelling."""
        try:
            return self.config({key: value}) == self.base
        except InputError:  # it does not fit the entry's other settings
            return False


def _settings_of(trial: TrialConfig) -> dict[str, Any]:
    """Return all settings that can be searched, by their keys in an entry."""
    from harness.methods import method_options  # imported late: it imports torch

    settings = {f"train.{field.name}": getattr(trial.train, field.name) for field in fields(trial.train)}
    for section, parameters in (("options", options_of(trial.model)), ("method_options", method_options(trial.method))):
        own = getattr(trial, section)
        settings |= {f"{section}.{name}": own.get(name, option.default) for name, option in parameters.items()}
    return settings


def spaces_of(spaces: Mapping[str, Space], trial: TrialConfig, ignored: Mapping[str, str]) -> dict[str, Space]:
    """Return the spaces of the settings that a trial uses. ignored: the keys that change nothing in it."""
    used = _settings_of(trial).keys() - ignored.keys()
    return {key: space for key, space in spaces.items() if key in used}


def check_search(search: SearchSettings, validation_images: int, seeds: int, searched: Sequence[Searched]) -> None:
    """Raise InputError unless a search fits the sweep and each of its entries.

    validation_images, seeds: how many images the sweep itself holds out, and how many seeds it has.
    """
    allowed = "0 beside search, whose winners are evaluated on test images"
    require("validation_images", validation_images, validation_images == 0, allowed)
    require("search.seeds", search.seeds, search.seeds <= seeds, f"at most the sweep's {seeds}")
    used = {key for entry in searched for key in entry.spaces}
    for key, space in search.spaces.items():
        allowed = "a setting that a network or method of trials uses"
        require(f"search.spaces.{key}", space.model_dump(exclude_none=True), key in used, allowed)
    first_values: set[str] = set()
    for entry in searched:
        row, epochs = entry.base.row, entry.base.train.epochs
        require("search.spaces", list(search.spaces), bool(entry.spaces), f"also a setting that {row} uses")
        if search.asha is not None:
            begin = search.asha.min_epochs
            require("search.asha.min_epochs", begin, begin < epochs, f"less than epochs = {epochs} of {row}")
        first = {key: space.extremes[0] for key, space in entry.spaces.items()}
        for key, space in entry.spaces.items():
            for value in space.extremes:
                try:
                    entry.config(first | {key: value})
                except InputError as error:
                    raise InputError(f"search.spaces.{key}: {error}") from None
        trial = identity(entry.config(first))
        require("trials", row, trial not in first_values, "entries that differ in more than what is searched")
        first_values.add(trial)
