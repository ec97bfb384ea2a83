"""What one trial is: everything that decides its numbers, and the key that names it everywhere."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.config.radius import Radius
from harness.config.settings import EvaluationSettings, TrainSettings
from harness.errors import require
from harness.typed import checked

RECIPE_VERSION = 7
"""Raised whenever training or evaluation changes its numbers, by a default too (tests/harness/golden fails when it must
be)."""

FULL_PROFILE = "full"
"""The profile of a sweep file as it stands; any other changes its size."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$"
LONGEST_NAME = 100
PLUGIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")
"""The name of a module."""
LARGEST_SEED = 2**31 - 1
LARGEST_WIDTH = 100.0


@dataclass(frozen=True)
class TrialConfig:
    """Everything that decides one trial's numbers, but for the data and the code.

    sweep, profile: where it comes from.
    eps: the radius judged, a Radius or what makes one.
    seed: of initial weights, batches and attacks.
    model, options, width: the network, what differs from its defaults, and the factor of its channels.
    method, method_options: the training method, and what differs from its defaults.
    train_images: how many, the first ones; None takes all.
    validation_images: so many training images are held out and judged instead of the test split, where above 0.
    train, evaluation: the recipe, and how the trained network is judged.
    plugins: modules of users that it needs, each with the digest of its source (harness.config.plugins).
    """

    sweep: str
    profile: str
    dataset: str
    eps: Radius
    seed: int
    model: str
    method: str
    options: dict[str, Any] = field(default_factory=dict)
    method_options: dict[str, Any] = field(default_factory=dict)
    width: float = 1.0
    train_images: int | None = None
    validation_images: int = 0
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    plugins: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", Radius(self.eps))
        name = re.fullmatch(NAME_PATTERN, self.sweep) is not None and len(self.sweep) <= LONGEST_NAME
        require("sweep", self.sweep, name, "a name of letters, digits, '_', '-' and single dots")
        require("seed", self.seed, 0 <= self.seed <= LARGEST_SEED, f"an integer from 0 to {LARGEST_SEED}")
        require("width", self.width, 0 < self.width <= LARGEST_WIDTH, f"a factor above 0 and at most {LARGEST_WIDTH:g}")
        images = self.train_images
        require("train_images", images, images is None or images >= 1, "an integer of at least 1, or null for all")
        batch = self.train.batch_size
        require("train.batch_size", batch, images is None or batch <= images, f"at most the {images} training images")
        require("validation_images", self.validation_images, self.validation_images >= 0, "an integer of at least 0")
        modules = all(PLUGIN.fullmatch(name) for name in self.plugins)
        require("plugins", self.plugins, modules, "names of modules, each with the digest of its source")
        if self.train.eps == self.eps:
            object.__setattr__(self, "train", dataclasses.replace(self.train, eps=None))  # one trial, one key

    @property
    def train_eps(self) -> Radius:
        """The radius at the end of the training ramp."""
        return self.train.eps or self.eps

    @property
    def named_options(self) -> dict[str, Any]:
        """The options of network and method together, in the order of their names."""
        return dict(sorted((self.options | self.method_options).items()))

    @property
    def row(self) -> str:
        """What trials that differ in their seeds alone are called: model, method, options of both."""
        return _row(self, {})

    @property
    def label(self) -> str:
        """A short human name: its row and seed."""
        return labelled(self.row, self)


def identity(config: TrialConfig) -> str:
    """The same text for trials that differ in their seeds alone."""
    return json.dumps(to_dict(dataclasses.replace(config, seed=0)), sort_keys=True)


def rows(configs: Sequence[TrialConfig]) -> list[str]:
    """Each config's row, with the settings that others of them have otherwise."""
    every = [flat_settings(config) for config in configs]
    differing = [name for name in (every[0] if every else ()) if any(own[name] != every[0][name] for own in every)]
    shown = [{name: own[name] for name in differing} for own in every]
    return [_row(config, own) for config, own in zip(configs, shown, strict=True)]


def labels(configs: Sequence[TrialConfig]) -> list[str]:
    """Each config's label, with the settings that others of them have otherwise."""
    return [labelled(row, config) for row, config in zip(rows(configs), configs, strict=True)]


def labelled(row: str, config: TrialConfig) -> str:
    """The label of a config whose row is called so."""
    return f"{row} seed {config.seed}"


def _row(config: TrialConfig, differing: dict[str, Any]) -> str:
    shown = config.named_options | differing
    return " ".join([config.model, config.method, *(f"{k}={v}" for k, v in shown.items())])


def flat_settings(config: TrialConfig) -> dict[str, Any]:
    """All that decides a trial but for its network, training method, their options and its seed; flat, as in JSON.

    Plugins are one text, empty where there are none.
    """
    apart = ("model", "options", "method", "method_options", "seed", "plugins")
    plugins = " ".join(f"{name}@{digest}" for name, digest in sorted(config.plugins.items()))
    return flat({name: value for name, value in to_dict(config).items() if name not in apart}) | {"plugins": plugins}


def flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{'train': {'epochs': 160}} -> {'train.epochs': 160}."""
    flattened: dict[str, Any] = {}
    for name, value in content.items():
        flattened |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flattened


def to_dict(config: TrialConfig) -> dict[str, Any]:
    """A JSON-ready dictionary that `from_dict` turns back into an equal config.

    Without `plugins` where there are none, so that keys and digests of such trials are what they were before those.
    """
    content = json.loads(json.dumps(dataclasses.asdict(config), default=_written))
    return content if config.plugins else {name: value for name, value in content.items() if name != "plugins"}


_LATER = ("attack_step",)
"""Settings of judging that came after digests were first made of configs."""


def digested(config: TrialConfig) -> dict[str, Any]:
    """What digests of certifications and searches are made of: `to_dict` without later settings at their defaults, so
    that they are found again."""
    content, chosen = to_dict(config), _chosen(config.evaluation)
    evaluation = {name: value for name, value in content["evaluation"].items() if name in chosen or name not in _LATER}
    return content | {"evaluation": evaluation}


def _written(value: object) -> str:
    """What JSON has no type for. Raises TypeError for all but a radius."""
    if not isinstance(value, Radius):
        raise TypeError(f"{value!r} cannot be written as JSON")
    return str(value)


def from_dict(data: dict[str, Any]) -> TrialConfig:
    """The config that `to_dict` wrote. Raises SettingError or TypeError where keys or values do not fit."""
    checked(TrialConfig, data)
    train, evaluation = dict(data["train"]), dict(data["evaluation"])
    train["decay_epochs"] = tuple(train["decay_epochs"])
    if _STAGES_ONCE in evaluation:
        evaluation["stages"] = evaluation.pop(_STAGES_ONCE)
    evaluation["stages"] = tuple(evaluation["stages"])
    parts = {
        "train": TrainSettings(**checked(TrainSettings, train)),
        "evaluation": EvaluationSettings(**checked(EvaluationSettings, evaluation)),
    }
    return TrialConfig(**data | parts)


_STAGES_ONCE = "methods"
"""What evaluation.stages was called in folders of before; keys go on being made with it, so that those are found."""


def trial_key(config: TrialConfig, fingerprint: str) -> str:
    """Sixteen hex digits that name a trial: hash of its resolved config, its data and the recipe version.

    Settings at their defaults are left out, so that a new one leaves the names of older trials as they are; a changed
    default must raise the recipe version (tests/harness/golden has them all).
    """
    chosen = to_dict(config) | {"train": _chosen(config.train), "evaluation": _chosen(config.evaluation)}
    if "stages" in chosen["evaluation"]:
        chosen["evaluation"][_STAGES_ONCE] = chosen["evaluation"].pop("stages")
    content = json.dumps([chosen, fingerprint, RECIPE_VERSION], sort_keys=True, default=_written)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _chosen(settings: TrainSettings | EvaluationSettings) -> dict[str, Any]:
    """The settings that are not at their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    return {name: value for name, value in vars(settings).items() if value != defaults[name]}
