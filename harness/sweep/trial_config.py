"""What one trial is: everything that decides its numbers, and the key that names it everywhere.

A config is written in these ways:

| as | by | left out |
|---|---|---|
| JSON, in trial.json | `to_dict`, `from_dict` | nothing |
| the key of its folder | `trial_key` | settings at their defaults, `source`, `own_data` |
| a digest, of a certification or a search | `digest_content` | as `identity`, but seed; younger settings at defaults |
| text to find trials of one row | `identity` | seed, `source`, `own_data` |
| settings that tables compare | `flat_settings` | network, method, their options, seed |
| the name of its row, in tables | `rows`, `labels` | settings in which no config differs |
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from baselines import DATASETS
from baselines.datasets import Dataset
from harness.common.errors import require
from harness.common.typed import check_types
from harness.own_data import MeasuredData, OwnData
from harness.settings import EvaluationSettings, Radius, TrainSettings
from harness.sweep.imported_network import TRAINED_ELSEWHERE, Checkpoint, Source, without_source

RECIPE_VERSION = 7
"""Raise it whenever training or evaluation changes its numbers, through a default too (tests/harness/golden then
fails)."""

FULL_PROFILE = "full"
"""The sweep file as it stands; every other profile changes its size."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$"
LONGEST_NAME = 100
LARGEST_SEED = 2**31 - 1
LARGEST_WIDTH = 100.0


@dataclass(frozen=True)
class TrialConfig:
    """Everything that decides one trial's numbers, except the data and the code.

    sweep, profile: where the trial comes from.
    eps: the evaluation radius, a Radius or what makes one.
    seed: of initial weights, batches and attacks.
    model, options, width: the network, its options that differ from their defaults, the factor of its channels.
    method, method_options: the training method, its options that differ from their defaults.
    train_images: number of training images, the first ones; None takes all.
    validation_images: above 0, so many training images are held out and evaluated instead of the test split.
    train, evaluation: the recipe, and how the trained network is evaluated.
    plugins: modules of users that the trial needs, each with the digest of its source (harness.sweep.plugins).
    checkpoint: the file with the weights of a network that was trained elsewhere; None trains the network.
    source: where a network trained elsewhere was published. It decides no number: equal configs may differ in it.
    own_data: where data without a registered name is, and what was measured from it. Equal configs may differ in it:
        the fingerprint decides.
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
    checkpoint: Checkpoint | None = None
    source: Source | None = field(default=None, compare=False)
    own_data: MeasuredData | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", Radius(self.eps))
        is_name = re.fullmatch(NAME_PATTERN, self.sweep) is not None and len(self.sweep) <= LONGEST_NAME
        require("sweep", self.sweep, is_name, "a name of letters, digits, '_', '-' and single dots")
        require("seed", self.seed, 0 <= self.seed <= LARGEST_SEED, f"an integer from 0 to {LARGEST_SEED}")
        require("width", self.width, 0 < self.width <= LARGEST_WIDTH, f"a factor above 0 and at most {LARGEST_WIDTH:g}")
        images = self.train_images
        require("train_images", images, images is None or images >= 1, "an integer of at least 1, or null for all")
        batch = self.train.batch_size
        require("train.batch_size", batch, images is None or batch <= images, f"at most the {images} training images")
        require("validation_images", self.validation_images, self.validation_images >= 0, "an integer of at least 0")
        is_elsewhere = self.is_trained_elsewhere
        require("method", self.method, self.checkpoint is None or is_elsewhere, f"{TRAINED_ELSEWHERE!r}")
        require("source", self.source, self.source is None or is_elsewhere, "null, for the network is trained here")
        if self.train.eps == self.eps:
            object.__setattr__(self, "train", dataclasses.replace(self.train, eps=None))  # one trial, one key

    @property
    def is_trained_elsewhere(self) -> bool:
        """True if the trial's network comes from a file and is only evaluated."""
        return self.method == TRAINED_ELSEWHERE

    @property
    def data_info(self) -> Dataset:
        """The entry of the data set."""
        return DATASETS[self.dataset] if self.own_data is None else self.own_data.entry

    @property
    def data_source(self) -> str | OwnData:
        """What `harness.data.load` takes to load the data set."""
        return self.dataset if self.own_data is None else self.own_data.source

    @property
    def epochs(self) -> int:
        """The number of epochs that the network is trained; 0 for one trained elsewhere."""
        return 0 if self.is_trained_elsewhere else self.train.epochs

    @property
    def trial_image_count(self) -> int | None:
        """The number of images that the trial evaluates, None for all: `test_images`, or all that are held out.

        A certification has a config of its own, whose `test_images` counts held-out images, too.
        """
        return None if self.validation_images else self.evaluation.test_images

    @property
    def train_eps(self) -> Radius:
        """The radius at the end of the training ramp."""
        return self.train.eps or self.eps

    @property
    def named_options(self) -> dict[str, Any]:
        """The options of network and method and the checkpoint together, in the order of their names."""
        checkpoint = {"checkpoint": self.checkpoint.label} if self.checkpoint else {}
        return dict(sorted((self.options | self.method_options | checkpoint).items()))

    @property
    def row(self) -> str:
        """The name of the table row: model, method, options of both. Trials that differ in their seeds share it."""
        return _row(self, {})

    @property
    def label(self) -> str:
        """A short name for people: row and seed."""
        return label_of_row(self.row, self)


def identity(config: TrialConfig) -> str:
    """Return the same text for trials that differ in their seeds alone."""
    return json.dumps(without_source(to_dict(dataclasses.replace(config, seed=0))), sort_keys=True)


def rows(configs: Sequence[TrialConfig]) -> list[str]:
    """Return the name of each config's row, with the settings in which the configs differ."""
    settings = [flat_settings(config) for config in configs]
    trained = [own for config, own in zip(configs, settings, strict=True) if not config.is_trained_elsewhere]

    def differs(name: str) -> bool:
        users = trained if is_of_training(name) else settings
        return any(own[name] != users[0][name] for own in users)

    differing = [name for name in (settings[0] if settings else []) if differs(name)]
    differences = [
        {name: missing_text(name) if own[name] is None else value_text(own[name]) for name in differing}
        for own in settings
    ]
    return [_row(config, own) for config, own in zip(configs, differences, strict=True)]


def labels(configs: Sequence[TrialConfig]) -> list[str]:
    """Return the label of each config, with the settings in which the configs differ."""
    return [label_of_row(row, config) for row, config in zip(rows(configs), configs, strict=True)]


def label_of_row(row: str, config: TrialConfig) -> str:
    """Return the label of a config whose row has this name."""
    return f"{row} seed {config.seed}"


def _row(config: TrialConfig, differing: dict[str, str]) -> str:
    options = [f"{name}={value}" for name, value in config.named_options.items()]
    return " ".join([config.model, config.method, *options, *label_settings(config.method, differing)])


def label_settings(method: str, differing: dict[str, str]) -> list[str]:
    """Return the settings in which rows differ, as the label of a row of this method shows them: 'train.epochs=160'.

    differing: text by flat name; empty text is left out, and so is training for a network trained elsewhere.
    """
    has_recipe = method != TRAINED_ELSEWHERE
    return [f"{name}={text}" for name, text in differing.items() if text and (has_recipe or not is_of_training(name))]


def missing_text(setting: str) -> str:
    """Return what labels and tables show for a setting, by its flat name, that is None."""
    return "all" if setting.endswith("_images") else "none"


def value_text(value: Any) -> str:
    """Return a value as labels and tables show it: a number so that no other one has its text."""
    if not isinstance(value, float):
        return " ".join(str(value).split())
    short = f"{value:g}"
    return short if float(short) == value else str(value)


def flat_settings(config: TrialConfig) -> dict[str, Any]:
    """Return all that decides a trial, flat and as in JSON, except network, method, their options and the seed.

    Plugins are one text, empty where there are none. The recipe is None for a network trained elsewhere.
    """
    left_out = ("model", "options", "method", "method_options", "seed", "plugins", "checkpoint", "source", "own_data")
    plugins = " ".join(f"{name}@{digest}" for name, digest in sorted(config.plugins.items()))
    settings = {name: value for name, value in to_dict(config).items() if name not in left_out}
    flat = flatten(settings) | {"plugins": plugins}
    if config.is_trained_elsewhere:
        flat |= {name: None for name in flat if is_of_training(name)}
    return flat


def is_of_training(setting: str) -> bool:
    """Return whether a setting, by its flat name, matters in training alone."""
    return setting == "train_images" or setting.startswith("train.")


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {'train.epochs': 160} for {'train': {'epochs': 160}}."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def to_dict(config: TrialConfig) -> dict[str, Any]:
    """Return a JSON-ready dictionary that `from_dict` turns back into an equal config.

    Fields that are younger than the first keys and digests are left out where they are empty.
    """
    content = json.loads(json.dumps(dataclasses.asdict(config), default=_encode_radius))
    return {name: value for name, value in content.items() if value or name not in _YOUNGER_FIELDS}


def digest_content(config: TrialConfig) -> dict[str, Any]:
    """Return what digests of certifications and searches are made of.

    It is `to_dict` without settings at their defaults that are younger than the first digests.
    """
    content = without_source(to_dict(config))
    for section, name in _YOUNGER_SETTINGS:
        if name not in _changed_settings(getattr(config, section)):
            del content[section][name]
    return content


_YOUNGER_FIELDS = ("plugins", "checkpoint", "source", "own_data")
"""Fields of a config that were added after the first keys."""

_YOUNGER_SETTINGS = (
    ("evaluation", "attack_step"), ("evaluation", "stage_seconds"), ("train", "kappa_start"), ("train", "ramp_shape"),
    ("train", "mean"), ("train", "std"),
)  # fmt: skip
"""Settings that were added after the first digests of configs, by section."""


def _encode_radius(value: object) -> str:
    if not isinstance(value, Radius):
        raise TypeError(f"{value!r} cannot be written as JSON")
    return str(value)


def from_dict(data: dict[str, Any]) -> TrialConfig:
    """Return the config that `to_dict` wrote. Raises SettingError or TypeError where keys or values do not fit."""
    check_types(TrialConfig, data)
    train, evaluation = dict(data["train"]), dict(data["evaluation"])
    train["decay_epochs"] = tuple(train["decay_epochs"])
    train |= {name: tuple(train[name]) for name in ("mean", "std") if train.get(name) is not None}
    if _OLD_STAGES in evaluation:
        evaluation["stages"] = evaluation.pop(_OLD_STAGES)
    evaluation["stages"] = tuple(evaluation["stages"])
    sections: dict[str, Any] = {
        "train": TrainSettings(**check_types(TrainSettings, train)),
        "evaluation": EvaluationSettings(**check_types(EvaluationSettings, evaluation)),
    }
    for name, kind in (("checkpoint", Checkpoint), ("source", Source)):
        if data.get(name) is not None:
            sections[name] = kind(**check_types(kind, data[name]))
    if data.get("own_data") is not None:
        sections["own_data"] = MeasuredData.from_dict(data["own_data"])
    return TrialConfig(**data | sections)


_OLD_STAGES = "methods"
"""The name of evaluation.stages in old folders. Keys still use it, so that those folders keep theirs."""


def trial_key(config: TrialConfig, fingerprint: str) -> str:
    """Return the sixteen hex digits that name a trial: a hash of its config, its data and the recipe version.

    Settings at their defaults are left out, so that a new setting changes no existing key. A changed default must raise
    the recipe version (tests/harness/golden records all defaults).
    """
    content = without_source(to_dict(config))
    content |= {"train": _changed_settings(config.train), "evaluation": _changed_settings(config.evaluation)}
    if "stages" in content["evaluation"]:
        content["evaluation"][_OLD_STAGES] = content["evaluation"].pop("stages")
    text = json.dumps([content, fingerprint, RECIPE_VERSION], sort_keys=True, default=_encode_radius)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _changed_settings(settings: TrainSettings | EvaluationSettings) -> dict[str, Any]:
    """Return the settings that are not at their defaults."""
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    return {name: value for name, value in vars(settings).items() if value != defaults[name]}
