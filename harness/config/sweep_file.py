"""Sweep files: YAML, checked to the last key, expanded to a list of trials."""

import inspect
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import CoreSchema, core_schema

from baselines import DATASETS, UnknownNameError, UnknownOptionError, network_names, options_of, refuse_unknown_options
from harness.config import plugins
from harness.config.assignments import assigned, command_of, mark_of
from harness.config.buildable import check_buildable
from harness.config.grid import Choice, expanded
from harness.config.ignored import ignored_judgement, ignored_settings
from harness.config.radius import Radius
from harness.config.search import Asha, Searched, SearchSettings, Space, spaces_of
from harness.config.settings import EvaluationSettings, OneOf, TrainSettings
from harness.config.strict import Strict
from harness.config.sweep_text import ConfigError, merged, read
from harness.config.trial import (
    FULL_PROFILE,
    LARGEST_SEED,
    LARGEST_WIDTH,
    LONGEST_NAME,
    NAME_PATTERN,
    TrialConfig,
    identity,
)
from harness.errors import InputError, SettingError, require, shown
from harness.methods import METHODS, make_method, method_options

CPU_PROFILE = "cpu"
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


@dataclass(frozen=True)
class Sweep:
    """A sweep file under one profile, checked and expanded.

    changed: what `--set` changed of its trials; those that differ in it from the file's have it in their profile.
    search, searched: how settings of its entries are searched, and each of the entries; None and empty where they are
        not.
    """

    name: str
    profile: str
    dataset: str
    eps: Radius
    resources: Resources
    trials: list[TrialConfig]
    changed: str = ""
    search: SearchSettings | None = None
    searched: tuple[Searched, ...] = ()


def load_sweep(path: Path, profile: str | None, has_gpu: bool, assignments: Sequence[str] = ()) -> Sweep:
    """Read and check a sweep file, every profile in it included, and expand it under one.

    profile: None picks `cpu` where there is no GPU and the file has such a profile, else `full`. assignments: what
    `--set` says, KEY=VALUE each, as a further profile over the chosen one. Raises ConfigError, and SettingError for an
    assignment that is none.
    """
    content, included = read(path)
    profiles = content.pop("profiles", None)
    profiles = {} if profiles is None else profiles
    if not isinstance(profiles, dict) or not all(isinstance(value, dict) for value in profiles.values()):
        raise ConfigError(
            path, [f"profiles: found {shown(profiles)}, allowed: a mapping from profile names to the keys they change"]
        )
    if FULL_PROFILE in profiles:
        raise ConfigError(path, [f"profiles.{FULL_PROFILE}: the name of the sweep without a profile; choose another"])
    told = f"includes {', '.join(included)}" if included else ""
    _load_plugins(path, content.get("plugins", []))
    resolved = {FULL_PROFILE: _validated(path, content, told)}
    for name, changes in profiles.items():
        unknown = sorted(set(changes) & FIXED)
        if unknown:
            raise ConfigError(path, [f"profiles.{name}.{key}: a profile cannot change this" for key in unknown])
        resolved[name] = _validated(path, merged(content, changes), ", ".join(filter(None, [f"profile {name}", told])))
    chosen = profile or (CPU_PROFILE if CPU_PROFILE in profiles and not has_gpu else FULL_PROFILE)
    if chosen not in resolved:
        raise ConfigError(path, [str(UnknownNameError("profile", chosen, list(resolved)))])
    sweeps = {name: _sweep(path, name, *checked) for name, checked in resolved.items()}
    if not assignments:
        return sweeps[chosen]
    changes, given = assigned(assignments, SweepFile.model_fields.keys() - FIXED), command_of(assignments)
    checked = _validated(given, merged(merged(content, profiles.get(chosen, {})), changes), f"profile {chosen}")
    return _marked(_sweep(given, chosen, *checked), sweeps[chosen], mark_of(changes))


def _load_plugins(path: Path, names: Any) -> None:
    """Import a file's plugins, so that what they register is known. Raises ConfigError."""
    try:
        texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
        require("plugins", names, texts, "a list of names of modules, such as [my_package.nets]")
        plugins.digests(names)  # of all of them, before any is imported
        plugins.load(names)
    except SettingError as error:
        raise ConfigError(path, [str(error)]) from error


def _marked(sweep: Sweep, file_s: Sweep, mark: str) -> Sweep:
    """The sweep, each trial that the file does not have, under any seed, with the mark in its profile.

    Profiles are part of keys and stand over tables, so that nothing changed is ever taken for the file's.
    """
    known = {identity(trial) for trial in file_s.trials}

    def marked(trial: TrialConfig) -> TrialConfig:
        return trial if identity(trial) in known else replace(trial, profile=f"{trial.profile} {mark}")

    searched = tuple(replace(entry, base=marked(entry.base)) for entry in sweep.searched)
    return replace(sweep, trials=[marked(trial) for trial in sweep.trials], changed=mark, searched=searched)


def _validated(path: Path | str, content: dict[str, Any], where: str) -> tuple[SweepFile, list[Choice], dict[str, Any]]:
    """The file's content, checked, each of its entries one trial; which of the file's entries those are; the content.

    where: what it is besides the file, for messages. Raises ConfigError.
    """
    choices = _choices(path, content.get("trials"), where, content.get("plugins", []))
    made = {"trials": [choice.content for choice in choices]} if choices else {}
    try:
        checked = SweepFile.model_validate_json(json.dumps(content | made, default=str))
    except ValidationError as error:
        problems = [_placed(item, choices) for item in error.errors()]
        raise ConfigError(path, _told(problems, where)) from None
    return checked, choices, content


def _choices(path: Path | str, entries: Any, where: str, modules: list[str]) -> list[Choice]:
    """All that a file's `trials` stand for; none where they are no list. modules: its plugins. Raises ConfigError."""
    choices: list[Choice] = []
    problems = []
    for number, entry in enumerate(entries if isinstance(entries, list) else []):
        try:
            for model in _models(entry):
                plugins.add_factory(model, modules)
            choices += expanded(number, entry)
        except SettingError as error:
            problems.append((f"trials.{number}.{error}", ""))
    if problems:
        raise ConfigError(path, _told(problems, where))
    return choices


def _models(entry: Any) -> list[str]:
    """The networks that an entry names."""
    named = entry.get("model") if isinstance(entry, dict) else None
    return [model for model in (named if isinstance(named, list) else [named]) if isinstance(model, str)]


def _placed(item: Any, choices: list[Choice]) -> tuple[str, str]:
    """What is wrong, by its key in the file, and in which of an entry's choices."""
    section, *inside = item["loc"]
    if section != "trials" or not inside:
        return _problem(item), ""
    choice = choices[inside[0]]
    return _problem({**item, "loc": ("trials", choice.number, *inside[1:])}), choice.chosen


def _told(problems: list[tuple[str, str]], where: str) -> list[str]:
    """A line a problem, with the first choice that has it, and where it is besides the file."""
    first: dict[str, str] = {}
    for problem, chosen in problems:
        first.setdefault(problem, chosen)
    asides = {
        problem: "; ".join(filter(None, [chosen and f"with {chosen}", where])) for problem, chosen in first.items()
    }
    return [f"{problem} ({aside})" if aside else problem for problem, aside in asides.items()]


def _problem(item: Any) -> str:
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


def _sweep(path: Path | str, profile: str, sweep: SweepFile, choices: list[Choice], given: dict[str, Any]) -> Sweep:
    """The checked file's trials. given: what the file says, as it stands there. Raises ConfigError."""
    twice = sorted({seed for seed in sweep.seeds if sweep.seeds.count(seed) > 1})
    problems = [(f"seeds: {seed} appears twice", "") for seed in twice]
    resolved: dict[str, Choice] = {}
    trials: list[TrialConfig] = []
    every: list[dict[str, str]] = []
    searched: list[Searched] = []
    for choice, entry in zip(choices, sweep.trials, strict=True):
        try:
            trial, ignored = _resolved(profile, sweep, entry)
        except _EntryError as error:
            problems += [(f"{choice.key}.{problem}", choice.chosen) for problem in error.args]
            continue
        every.append(ignored)
        same = resolved.setdefault(identity(trial), choice)
        if same is not choice:
            aside = f" with {same.chosen}" if same.chosen else ""
            problems.append((f"{choice.key}: the same trial as {same.key}{aside}", choice.chosen))
        trials += [replace(trial, seed=seed) for seed in sweep.seeds]
        if sweep.search is not None:
            spaces = spaces_of(sweep.search.spaces, trial.model, trial.method, ignored)
            searched.append(Searched(trial, spaces, partial(_candidate, profile, sweep, entry)))
    if not problems:  # else of trials that are not there nothing is known
        problems = [(line, "") for line in _refusals_of_all(sweep, given, every, ignored_judgement(trials[0]))]
    if not problems and sweep.search is not None:
        problems = [(problem, "") for problem in _search_problems(sweep, sweep.search, searched)]
    if problems:
        raise ConfigError(path, _told(problems, f"profile {profile}"))
    found = tuple(searched)
    return Sweep(
        sweep.name, profile, sweep.dataset, sweep.eps, sweep.resources, trials, search=sweep.search, searched=found
    )


def _search_problems(sweep: SweepFile, search: SearchSettings, searched: list[Searched]) -> list[str]:
    """What is wrong with a search: slices, spaces that nothing uses, ends of spaces that cannot be had."""
    problems = []
    if sweep.validation_images:
        found = f"validation_images: found {sweep.validation_images}"
        problems.append(f"{found}, allowed: 0 beside search, whose winners are judged on test images")
    if search.seeds > len(sweep.seeds):
        problems.append(f"search.seeds: found {search.seeds}, allowed: at most the sweep's {len(sweep.seeds)}")
    used = {key for entry in searched for key in entry.spaces}
    problems += [
        f"search.spaces.{key}: found a space, allowed: a setting that a network or method of trials uses"
        for key in search.spaces
        if key not in used
    ]
    alike: dict[str, Searched] = {}
    for entry in searched:
        if not entry.spaces:
            problems.append(f"search.spaces: found none for {entry.base.row}, allowed: one for each of trials")
        first = {key: space.extremes[0] for key, space in entry.spaces.items()}
        with suppress(ValueError):  # told below
            if alike.setdefault(identity(entry.config(first)), entry) is not entry:
                problems.append(f"trials: {entry.base.row}: two that differ in what is searched alone")
        if search.asha is not None and search.asha.min_epochs >= entry.base.train.epochs:
            found = f"search.asha.min_epochs: found {search.asha.min_epochs}"
            problems.append(f"{found}, allowed: less than epochs = {entry.base.train.epochs} of {entry.base.row}")
        for key, space in entry.spaces.items():
            for value in space.extremes:
                try:
                    entry.config(first | {key: value})
                except ValueError as error:
                    problems.append(f"search.spaces.{key}: {'; '.join(map(str, error.args))}")
    return problems


def _candidate(profile: str, sweep: SweepFile, entry: TrialEntry, settings: dict[str, Any]) -> TrialConfig:
    """The entry's trial under seed 0 with these settings, by their keys in the entry. Raises _EntryError."""
    changed: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        section, _, name = key.partition(".")
        changed.setdefault(section, dict(getattr(entry, section)))[name] = value
    return _resolved(profile, sweep, entry.model_copy(update=changed))[0]


class _EntryError(ValueError):
    """What is wrong with an entry of `trials`: an argument a problem, each beginning with its key in the entry."""


def _resolved(profile: str, sweep: SweepFile, entry: TrialEntry) -> tuple[TrialConfig, dict[str, str]]:
    """The entry's trial under seed 0, and the settings that it ignores, with reasons. Raises _EntryError."""
    recipe = _recipe(sweep, entry)
    options = _chosen("options", entry.model, entry.options, options_of(entry.model))
    of_method = _chosen("method_options", entry.method, entry.method_options, method_options(entry.method))
    try:
        make_method(entry.method, of_method)
    except ValueError as error:
        raise _EntryError(f"method_options: {error}") from None
    given = dict(sweep) | dict(entry) | {"options": options, "method_options": of_method, "train": recipe}
    given |= {"sweep": sweep.name, "profile": profile, "seed": 0, "width": entry.width or sweep.width}
    given |= {"plugins": plugins.digests(sweep.plugins)}
    try:
        trial = TrialConfig(**{field.name: given[field.name] for field in fields(TrialConfig)})
        ignored = ignored_settings(trial, check_buildable(trial))
    except InputError as error:
        raise _EntryError(str(error)) from None
    except (TypeError, ValueError) as error:
        raise _EntryError(f"options: {error}") from None
    sections = ("train", "options", "method_options")
    own = {f"{key}.{name}": value for key in sections for name, value in getattr(entry, key).items()}
    if problems := _refusals(own, ignored):
        raise _EntryError(*problems)
    return trial, ignored


def _refusals(given: dict[str, Any], ignored: dict[str, str]) -> list[str]:
    """A line for each setting that is given and ignored.

    A ramp of no epochs is no setting: so says who has no ramp that the sweep's is not to be longer than training.
    """
    refused = [key for key, value in given.items() if key in ignored and (key, value) != ("train.ramp_epochs", 0)]
    return [f"{key}: found {shown(given[key])}, allowed: nothing, for {ignored[key]}" for key in refused]


def _refusals_of_all(
    sweep: SweepFile, given: dict[str, Any], every: list[dict[str, str]], judgement: dict[str, str]
) -> list[str]:
    """A line for each setting that a file gives for all trials and none uses.

    given: what the file says. every: what each trial ignores, with reasons. judgement: what judging does. Of judging,
    null and false set nothing, so that a profile can take back what it does not use.
    """
    recipe = {f"train.{key}": value for key, value in given.get("train", {}).items()}
    by_all = {key: reason for key, reason in every[0].items() if all(key in ignored for ignored in every)}
    judging = {f"evaluation.{key}": value for key, value in given.get("evaluation", {}).items() if value}
    lines = [f"{line}; no other trial uses it" for line in _refusals(recipe, by_all)] + _refusals(judging, judgement)
    if "width" in given and all(entry.width is not None for entry in sweep.trials):
        lines.append(f"width: found {shown(given['width'])}, allowed: nothing, for each of trials has its own")
    return lines


def _recipe(sweep: SweepFile, entry: TrialEntry) -> TrainSettings:
    """The sweep's recipe with the entry's changes. Raises _EntryError."""
    try:
        return TypeAdapter(TrainSettings).validate_json(json.dumps(asdict(sweep.train) | entry.train, default=str))
    except ValidationError as error:
        raise _EntryError(*(_problem({**item, "loc": ("train", *item["loc"])}) for item in error.errors())) from None


def _chosen(key: str, owner: str, options: dict[str, Any], known: dict[str, inspect.Parameter]) -> dict[str, Any]:
    """The options that are not the owner's defaults, in their own types, so that 1 and 1.0 name one trial.

    Raises _EntryError.
    """
    try:
        refuse_unknown_options(owner, options, known)
    except UnknownOptionError as error:
        raise _EntryError(f"{key}.{error.option}: {error}") from None
    typed = {name: _typed(f"{key}.{name}", value, known[name].annotation) for name, value in options.items()}
    return {name: value for name, value in typed.items() if value != known[name].default}


def _typed(key: str, value: Any, kind: Any) -> Any:
    adapter = TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))
    try:
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise _EntryError(f"{key}: found {shown(value)}: {error.errors()[0]['msg'].lower()}") from None
