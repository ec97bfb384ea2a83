"""The key `search` of a sweep file: which settings are searched, by what, for how long, and judged on what."""

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
    """What a setting may be: one of the keys below."""

    uniform: Ends[float] | None = None
    """From the first to the second number."""
    log_uniform: Ends[float] | None = None
    """As `uniform`, of the logarithm."""
    integer: Ends[int] | None = None
    """A whole number from the first to the second."""
    choice: list[bool | int | float | str | list[int] | None] | None = None
    """One of these values."""

    @model_validator(mode="after")
    def _one_kind(self) -> "Space":
        given = [key for key in type(self).model_fields if getattr(self, key) is not None]
        require("kind", given, len(given) == 1, f"one of {', '.join(type(self).model_fields)}")
        if self.choice is not None:
            different = all(value not in self.choice[:place] for place, value in enumerate(self.choice))
            require("choice", self.choice, len(self.choice) > 1 and different, "two different values or more")
            return self
        low, high = getattr(self, given[0])
        require(given[0], [low, high], low < high, "two numbers, the smaller one first")
        require(given[0], [low, high], low > 0 or given[0] != "log_uniform", "numbers above 0")
        return self

    @property
    def ends(self) -> Sequence[float]:
        """The least and the largest number; of a choice there are none."""
        return self.uniform or self.log_uniform or self.integer or ()

    @property
    def extremes(self) -> list[Any]:
        """The values that are tried before anything starts: both ends, or every choice."""
        return self.choice if self.choice is not None else list(self.ends)

    def holds(self, value: Any) -> bool:
        """Whether a value is in it."""
        if self.choice is not None:
            return any(value == one and type(value) is type(one) for one in self.choice)
        number = isinstance(value, int if self.integer else int | float) and not isinstance(value, bool)
        return number and min(self.ends) <= value <= max(self.ends)


class Asha(Strict):
    """Ends candidates early that are worse than others were, by IBP of the validation images at the sweep's eps."""

    min_epochs: int = Field(ge=1)
    """The first epoch after which candidates are compared: one after the ramp, since before it bounds say little."""
    factor: int = Field(3, ge=2)
    """Of those compared after an epoch the best 1/factor go on, and are compared again after factor times as many."""


class SearchSettings(Strict):
    """Settings of each entry of `trials` are searched on images held out of training; what is found is then trained on
    all training images, with every seed of the sweep."""

    spaces: dict[str, Space] = Field(default_factory=dict)
    """By key as in an entry, such as train.learning_rate, options.margin or method_options.alpha, what it may be; an
    entry whose network or method does not use a setting is searched without."""
    sampler: Annotated[Sampler, OneOf(SAMPLERS)] = "tpe"
    """Optuna's that proposes candidates: 'tpe', 'nsga2' for fronts, or 'random', the control."""
    objectives: list[Annotated[Objective, OneOf(OBJECTIVES)]] = Field([CERTIFIED_ERROR], min_length=1)
    """What is to be small: certified_error, standard_error, or both, whose front is sought."""
    validation_images: int = Field(5000, ge=1)
    """So many of the last training images are held out, and candidates judged on them."""
    seeds: int = Field(1, ge=1)
    """With so many of the sweep's seeds, the first ones, a candidate is trained; its objectives are means."""
    trials: int | None = Field(None, ge=1)
    """How many candidates each entry has; null is without end, for `hours`."""
    hours: float | None = Field(None, gt=0)
    """After so many hours of training and judging, added up over all candidates, none is begun; null is without end."""
    asha: Asha | None = None
    """Ends candidates early, where there is one objective and one seed; null trains all to their ends."""
    seed: int = Field(0, ge=0)
    """Of the sampler."""

    @model_validator(mode="after")
    def _fits_together(self) -> "SearchSettings":
        objectives = self.objectives
        require("spaces", self.spaces, bool(self.spaces), "what settings may be, by their keys: at least one")
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

    base: its trial as it is written, under seed 0. spaces: those of its settings.
    resolve: what `config` is made by.
    """

    base: TrialConfig
    spaces: dict[str, Space]
    resolve: Callable[[dict[str, Any]], TrialConfig]

    def config(self, settings: dict[str, Any]) -> TrialConfig:
        """The trial with these settings, by key, under seed 0. Raises ValueError where they do not fit together."""
        return replace(self.resolve(settings), profile=self.base.profile)

    @property
    def written(self) -> dict[str, Any] | None:
        """The settings that the entry has as it is written; None where one of them is outside its space."""
        found = {key: self._written(key) for key in self.spaces}
        return {key: values[0] for key, values in found.items()} if all(found.values()) else None

    def _written(self, key: str) -> list[Any]:
        """What of a setting's space is what the entry has, if anything: of a choice in the choice's own words."""
        space, value = self.spaces[key], _value(self.base, key)
        if space.choice is None:
            return [value] if space.holds(value) else []
        return [one for one in space.choice if self._resolves_to(key, one, value)]

    def _resolves_to(self, key: str, chosen: Any, value: Any) -> bool:
        try:
            return bool(_value(self.config({key: chosen}), key) == value)
        except ValueError:  # it does not go with the entry's other settings
            return False


def spaces_of(spaces: Mapping[str, Space], model: str, method: str, ignored: Mapping[str, str]) -> dict[str, Space]:
    """The spaces of what a network and a training method take. ignored: the keys that change nothing there."""
    known = {
        "train": [field.name for field in fields(TrainSettings)],
        "options": list(options_of(model)),
        "method_options": list(method_options(method)),
    }
    takes = {f"{section}.{name}" for section, names in known.items() for name in names} - ignored.keys()
    return {key: space for key, space in spaces.items() if key in takes}


def _value(config: TrialConfig, key: str) -> Any:
    """A setting of a trial, by its key, as a file has it."""
    section, _, name = key.partition(".")
    if section == "train":
        value = getattr(config.train, name)
        return list(value) if isinstance(value, tuple) else value
    owners = {"options": options_of(config.model), "method_options": method_options(config.method)}
    return getattr(config, section).get(name, owners[section][name].default)
