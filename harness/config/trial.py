"""What one trial is: everything that decides its numbers, and the key that names it everywhere."""

import hashlib
import json
from typing import Any

from pydantic import Field, ValidationInfo, field_validator

from baselines import DATASETS
from baselines.datasets import Dataset
from harness.common.errors import require
from harness.common.models import Model, Texts
from harness.own_data import MeasuredData, OwnData
from harness.pretrained.checkpoint import TRAINED_ELSEWHERE, Checkpoint, Source
from harness.settings import Evaluation, Radius, Recipe

RECIPE_VERSION = 7
"""Raise it whenever training or evaluation changes its numbers, through a default too (tests/harness/golden then
fails)."""

FULL_PROFILE = "full"
"""The sweep file as it stands; every other profile changes its size."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$"
LONGEST_NAME = 100
LARGEST_SEED = 2**31 - 1
LARGEST_WIDTH = 100.0

_IN_EVERY_KEY: dict[str, Any] = {
    "options": {}, "method_options": {}, "width": 1.0, "train_images": None, "validation_images": 0, "train": {},
    "evaluation": {},
}  # fmt: skip
"""What keys are made of even at its default. A later setting is in no key where it has its default."""


NO_NUMBER = {"source", "own_data", "named"}


class Trial(Model):
    """Everything that decides one trial's numbers, except the data and the code.

    The fields of NO_NUMBER decide no number: equal trials may differ in them.
    """

    sweep: str = Field(pattern=NAME_PATTERN, max_length=LONGEST_NAME)
    """The sweep, and the folder of its results."""
    profile: str
    """The profile of the sweep file, and what `--set` changed."""
    dataset: str
    """The data set."""
    eps: Radius
    """The radius of evaluation."""
    seed: int = Field(ge=0, le=LARGEST_SEED)
    """Of initial weights, batches and attacks."""
    model: str
    """The network."""
    method: str
    """The training method."""
    options: dict[str, Any] = Field(default={})
    """The network's options that differ from their defaults."""
    method_options: dict[str, Any] = Field(default={})
    """The method's options that differ from their defaults."""
    width: float = Field(1.0, gt=0, le=LARGEST_WIDTH)
    """The factor of the network's channels."""
    train_images: int | None = Field(None, ge=1)
    """Number of training images, the first ones; None takes all."""
    validation_images: int = Field(0, ge=0)
    """Above 0, so many training images are held out and evaluated instead of the test split."""
    train: Recipe = Field(default=Recipe(), validate_default=True)
    """How the network is trained."""
    evaluation: Evaluation = Evaluation()
    """How the trained network is evaluated."""
    plugins: dict[str, str] = Field(default={})
    """Modules of users that the trial needs, each with the digest of its source (harness.config.plugins)."""
    checkpoint: Checkpoint | None = Field(None, validate_default=True)
    """The file with the weights of a network that was trained elsewhere; None trains the network."""
    source: Source | None = None
    """Where a network trained elsewhere was published."""
    own_data: MeasuredData | None = None
    """Where data without a registered name is, and what was measured from it; the fingerprint decides."""
    named: Texts | None = None
    """The settings that the label shows: those of the trial's own entry. None where nobody has said."""

    @field_validator("train")
    @classmethod
    def _check_recipe(cls, train: Recipe, info: ValidationInfo) -> Recipe:
        images = info.data.get("train_images")
        fits = images is None or train.batch_size <= images
        require("batch_size", train.batch_size, fits, f"at most the {images} training images")
        return train.replace(eps=None) if train.eps == info.data.get("eps") else train  # one trial, one key

    @field_validator("checkpoint")
    @classmethod
    def _check_checkpoint(cls, checkpoint: Checkpoint | None, info: ValidationInfo) -> Checkpoint | None:
        is_elsewhere = info.data.get("method") == TRAINED_ELSEWHERE
        allowed = "a file with the weights" if is_elsewhere else f"null, if method is not {TRAINED_ELSEWHERE!r}"
        require("checkpoint", checkpoint, (checkpoint is not None) == is_elsewhere, allowed)
        return checkpoint

    @field_validator("source")
    @classmethod
    def _check_source(cls, source: Source | None, info: ValidationInfo) -> Source | None:
        is_elsewhere = info.data.get("method") == TRAINED_ELSEWHERE
        require("source", source, source is None or is_elsewhere, "null, for the network is trained here")
        return source

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same trial."""
        return isinstance(other, Trial) and self.canonical() == other.canonical()

    def canonical(self) -> dict[str, Any]:
        """Return all that decides the trial's numbers as JSON has it, without defaults: what keys and digests hash."""
        content = _IN_EVERY_KEY | self.model_dump(mode="json", exclude_defaults=True, exclude=NO_NUMBER)
        if self.checkpoint is not None:
            content["checkpoint"] = self.checkpoint.model_dump(mode="json")
        return content

    def key(self, fingerprint: str) -> str:
        """Return the sixteen hex digits that name the trial: a hash of its JSON, its data and the recipe version.

        A changed default must raise the recipe version (tests/harness/golden records all defaults).
        """
        content = self.canonical()
        evaluation = {"methods" if name == "stages" else name: value for name, value in content["evaluation"].items()}
        content["evaluation"] = evaluation  # the name in the keys of published trials
        text = json.dumps([content, fingerprint, RECIPE_VERSION], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def identity(self) -> str:
        """A text that is the same for trials that differ in their seeds alone."""
        return json.dumps(self.canonical() | {"seed": 0}, sort_keys=True)

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
        """The name of the table row: model, method, options of both, named settings; the same for all seeds."""
        options = [f"{name}={value}" for name, value in self.named_options.items()]
        settings = {name: setting_text(name, self.settings[name]) for name in self.named or () if name in self.settings}
        return " ".join([self.model, self.method, *options, *label_settings(self.method, settings)])

    @property
    def label(self) -> str:
        """A short name for people: row and seed."""
        return label_of_row(self.row, self)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the trial, flat and as in JSON, except network, method, their options and the seed.

        Plugins are one text, empty where there are none. The recipe is None for a network trained elsewhere.
        """
        left_out = {"model", "options", "method", "method_options", "seed", "plugins", "checkpoint"} | NO_NUMBER
        flat = flatten(self.model_dump(mode="json", exclude=left_out))
        flat["plugins"] = " ".join(f"{name}@{digest}" for name, digest in sorted(self.plugins.items()))
        if self.is_trained_elsewhere:
            flat |= {name: None for name in flat if is_of_training(name)}
        return flat


def distinguish(trials: list[Trial]) -> list[Trial]:
    """Return the trials, each later one named by the settings in which it differs from an earlier one of its label.

    Trials that nobody has named, as published ones, are named by all settings in which they differ.
    """
    unnamed = [(trial, trial.settings) for trial in trials if trial.named is None]
    trained = [each for each in unnamed if not each[0].is_trained_elsewhere]
    differing = [
        name
        for name in (unnamed[0][1] if unnamed else ())
        if len({str(settings[name]) for _, settings in (trained if is_of_training(name) else unnamed)}) > 1
    ]
    rows, named = dict[str, Trial](), list[Trial]()
    for trial in [trial if trial.named is not None else trial.replace(named=differing) for trial in trials]:
        while (other := rows.setdefault(trial.row, trial)).identity != trial.identity:
            own, others = trial.settings, other.settings
            new = [name for name in own if own[name] != others[name] and name not in (trial.named or ())]
            new = [name for name in new if name != "profile"] or new  # which says what `--set` changed
            if not new:
                break
            trial = trial.replace(named=(*(trial.named or ()), *new))
        named.append(trial)
    return named


def rows(trials: list[Trial]) -> list[str]:
    """Return the name of each trial's row, the later one of two that read alike with what differs."""
    return [trial.row for trial in distinguish(trials)]


def labels(trials: list[Trial]) -> list[str]:
    """Return the label of each trial, as `rows` does."""
    return [trial.label for trial in distinguish(trials)]


def label_of_row(row: str, trial: Trial) -> str:
    """Return the label of a trial whose row has this name."""
    return f"{row} seed {trial.seed}"


def label_settings(method: str, differing: dict[str, str]) -> list[str]:
    """Return the settings that the label of a row of this method shows: 'train.epochs=160'.

    differing: text by flat name; empty text is left out, and so is training for a network trained elsewhere.
    """
    has_recipe = method != TRAINED_ELSEWHERE
    return [f"{name}={text}" for name, text in differing.items() if text and (has_recipe or not is_of_training(name))]


def setting_text(name: str, value: Any) -> str:
    """Return a setting's value, by its flat name, as labels show it."""
    return missing_text(name) if value is None else value_text(value)


def missing_text(setting: str) -> str:
    """Return what labels and tables show for a setting, by its flat name, that is None."""
    return "all" if setting.endswith("_images") else "none"


def value_text(value: Any) -> str:
    """Return a value as labels and tables show it: a number so that no other one has its text."""
    if not isinstance(value, float):
        return " ".join(str(value).split())
    short = f"{value:g}"
    return short if float(short) == value else str(value)


def is_of_training(setting: str) -> bool:
    """Return whether a setting, by its flat name, matters in training alone."""
    return setting == "train_images" or setting.startswith("train.")


def flatten(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return {'train.epochs': 160} for {'train': {'epochs': 160}}."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
