"""An entry of `trials` made a trial: its recipe and options resolved, and what nothing uses of them refused."""

import inspect
import json
from dataclasses import asdict, fields
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from baselines import UnknownOptionError, options_of, refuse_unknown_options
from harness.config import plugins
from harness.config.buildable import check_buildable
from harness.config.ignored import ignored_judgement, ignored_settings
from harness.config.settings import TrainSettings
from harness.config.sweep_keys import SweepFile, TrialEntry, described
from harness.config.trial import TrialConfig
from harness.errors import InputError, shown
from harness.methods import make_method, method_options


class EntryError(ValueError):
    """What is wrong with an entry of `trials`: an argument a problem, each beginning with its key in the entry."""


def resolve(profile: str, sweep: SweepFile, entry: TrialEntry) -> tuple[TrialConfig, dict[str, str]]:
    """The entry's trial under seed 0, and the settings that it ignores, with reasons. Raises EntryError."""
    recipe = _recipe(sweep, entry)
    options = _chosen("options", entry.model, entry.options, options_of(entry.model))
    of_method = _chosen("method_options", entry.method, entry.method_options, method_options(entry.method))
    try:
        make_method(entry.method, of_method)
    except ValueError as error:
        raise EntryError(f"method_options: {error}") from None
    given = dict(sweep) | dict(entry) | {"options": options, "method_options": of_method, "train": recipe}
    given |= {"sweep": sweep.name, "profile": profile, "seed": 0, "width": entry.width or sweep.width}
    given |= {"plugins": plugins.digests(sweep.plugins)}
    try:
        trial = TrialConfig(**{field.name: given[field.name] for field in fields(TrialConfig)})
        ignored = ignored_settings(trial, check_buildable(trial))
    except InputError as error:
        raise EntryError(str(error)) from None
    except (TypeError, ValueError) as error:
        raise EntryError(f"options: {error}") from None
    sections = ("train", "options", "method_options")
    own = {f"{key}.{name}": value for key in sections for name, value in getattr(entry, key).items()}
    if problems := _refusals(own, ignored):
        raise EntryError(*problems)
    return trial, ignored


def candidate(profile: str, sweep: SweepFile, entry: TrialEntry, settings: dict[str, Any]) -> TrialConfig:
    """The entry's trial under seed 0 with these settings, by their keys in the entry. Raises EntryError."""
    changed: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        changed.setdefault(section, dict(getattr(entry, section)))[name] = value
    return resolve(profile, sweep, entry.model_copy(update=changed))[0]


def _refusals(given: dict[str, Any], ignored: dict[str, str]) -> list[str]:
    """A line for each setting that is given and ignored.

    A ramp of no epochs is no setting: so says who has no ramp that the sweep's is not to be longer than training.
    """
    refused = [key for key, value in given.items() if key in ignored and (key, value) != ("train.ramp_epochs", 0)]
    return [f"{key}: found {shown(given[key])}, allowed: nothing, for {ignored[key]}" for key in refused]


def refusals_of_all(
    sweep: SweepFile, given: dict[str, Any], trial: TrialConfig, every: list[dict[str, str]]
) -> list[str]:
    """A line for each setting that a file gives for all trials and none uses.

    given: what the file says. trial: any; all are judged alike. every: what each ignores, with reasons. Of judging,
    null and false set nothing, so that a profile can take back what it does not use.
    """
    recipe = {f"train.{key}": value for key, value in given.get("train", {}).items()}
    by_all = {key: reason for key, reason in every[0].items() if all(key in ignored for ignored in every)}
    judging = {f"evaluation.{key}": value for key, value in given.get("evaluation", {}).items() if value}
    lines = [f"{line}; no other trial uses it" for line in _refusals(recipe, by_all)]
    lines += _refusals(judging, ignored_judgement(trial))
    if "width" in given and all(entry.width is not None for entry in sweep.trials):
        lines.append(f"width: found {shown(given['width'])}, allowed: nothing, for each of trials has its own")
    return lines


def _recipe(sweep: SweepFile, entry: TrialEntry) -> TrainSettings:
    """The sweep's recipe with the entry's changes. Raises EntryError."""
    try:
        return TypeAdapter(TrainSettings).validate_json(json.dumps(asdict(sweep.train) | entry.train, default=str))
    except ValidationError as error:
        raise EntryError(*(described({**item, "loc": ("train", *item["loc"])}) for item in error.errors())) from None


def _chosen(key: str, owner: str, options: dict[str, Any], known: dict[str, inspect.Parameter]) -> dict[str, Any]:
    """The options that are not the owner's defaults, in their own types, so that 1 and 1.0 name one trial.

    Raises EntryError.
    """
    try:
        refuse_unknown_options(owner, options, known)
    except UnknownOptionError as error:
        raise EntryError(f"{key}.{error.option}: {error}") from None
    typed = {name: _typed(f"{key}.{name}", value, known[name].annotation) for name, value in options.items()}
    return {name: value for name, value in typed.items() if value != known[name].default}


def _typed(key: str, value: Any, kind: Any) -> Any:
    adapter = TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))
    try:
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise EntryError(f"{key}: found {shown(value)}: {error.errors()[0]['msg'].lower()}") from None
