"""What one network is: everything that decides its weights, and the key that names it everywhere."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from baselines import DATASETS
from baselines.datasets import Dataset
from harness.common.errors import require
from harness.common.models import Model, Texts
from harness.common.radius import Radius
from harness.config.own_data import MeasuredData, OwnData
from harness.pretrained.network_file import TRAINED_ELSEWHERE, NetworkFile, Source
from harness.settings import Recipe

RECIPE_VERSION = 7
"""Raise it whenever training changes its numbers, through a default too (tests/harness/golden then fails)."""

FULL_PROFILE = "full"
"""The sweep file as it stands; every other profile changes its size."""

NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]*(\.[A-Za-z0-9_-]+)*$"
LONGEST_NAME = 100
LARGEST_SEED = 2**31 - 1
LARGEST_WIDTH = 100.0

LONGEST_LABEL = 80
PRESENTATION = {"source", "own_data", "named", "entry_label"}
"""The fields that decide no number: equal trainings may differ in them."""


class Training(Model):
    """Everything that decides a network's weights, except the data and the code."""

    dataset: str
    """The data set."""
    model: str
    """The network."""
    options: dict[str, Any] = Field(default={})
    """The network's options that differ from their defaults."""
    width: float = Field(1.0, gt=0, le=LARGEST_WIDTH)
    """The factor of the network's channels."""
    method: str
    """The training method."""
    method_options: dict[str, Any] = Field(default={})
    """The method's options that differ from their defaults, without the teacher."""
    teacher: "Training | None" = None
    """Of a distilling method, the teacher's training, its seed aside; `own_teacher` has this training's."""
    train_images: int | None = Field(None, ge=1)
    """Number of training images, the first ones; None takes all."""
    validation_images: int = Field(0, ge=0)
    """How many of the last training images are held out of training."""
    train: Recipe = Field(default=Recipe(), validate_default=True)
    """The recipe, with the radius of training; for a network trained elsewhere the default one, which is not used."""
    seed: int = Field(ge=0, le=LARGEST_SEED)
    """Of initial weights, batches and attacks, those of evaluations, too."""
    plugins: dict[str, str] = Field(default={})
    """Modules of users that the network needs, each with the digest of its source (harness.config.plugins)."""
    checkpoint: NetworkFile | None = None
    """The file with the weights of a network that was trained elsewhere; None trains the network."""
    source: Source | None = None
    """Where a network trained elsewhere was published."""
    own_data: MeasuredData | None = None
    """Where data without a registered name is, and what was measured from it; the fingerprint decides."""
    named: Texts = ()
    """The settings of the network's own entry, which its label shows."""
    entry_label: str = Field("", max_length=LONGEST_LABEL)
    """The entry's own `label` for tables; empty for none."""

    @field_validator("train")
    @classmethod
    def _check_recipe(cls, train: Recipe, info: ValidationInfo) -> Recipe:
        images = info.data.get("train_images")
        fits = images is None or train.batch_size <= images
        require("batch_size", train.batch_size, fits, f"at most the {images} training images")
        return train

    @model_validator(mode="after")
    def _check_origin(self) -> Self:
        is_elsewhere = self.is_trained_elsewhere
        allowed = "a file with the weights" if is_elsewhere else f"null, if method is not {TRAINED_ELSEWHERE!r}"
        require("checkpoint", self.checkpoint, (self.checkpoint is not None) == is_elsewhere, allowed)
        allowed = "null, for the network is trained here"
        require("source", self.source, self.source is None or is_elsewhere, allowed)
        require("train.eps", self.train.eps, (self.train.eps is None) == is_elsewhere, "the radius of training")
        is_last = self.teacher is None or self.teacher.teacher is None
        require("teacher", self.teacher and self.teacher.method, is_last, "a method without a teacher of its own")
        return self

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same training."""
        return isinstance(other, Training) and self.canonical() == other.canonical()

    def canonical(self) -> dict[str, Any]:
        """Return all that decides the weights as JSON has it, without defaults: what keys and digests hash."""
        content = self.model_dump(mode="json", exclude_defaults=True, exclude=PRESENTATION)
        if self.checkpoint is not None:
            content["checkpoint"] = self.checkpoint.model_dump(mode="json")
        if self.teacher is not None:
            content["teacher"] = self.teacher.canonical()
        return content

    def key(self, fingerprint: str) -> str:
        """Return the sixteen hex digits that name the network: a hash of its JSON, its data and the recipe version.

        A changed default must raise the recipe version (tests/harness/golden records all defaults).
        """
        text = json.dumps([self.canonical(), fingerprint, RECIPE_VERSION], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def identity(self) -> str:
        """A text that is the same for trainings that differ in their seeds alone."""
        return json.dumps(self.canonical() | {"seed": 0}, sort_keys=True)

    @property
    def own_teacher(self) -> "Training | None":
        """The teacher's training as it is run: under this seed, if it is trained here, the same images held out."""
        if self.teacher is None:
            return None
        seed = self.teacher.seed if self.teacher.is_trained_elsewhere else self.seed
        return self.teacher.replace(seed=seed, validation_images=self.validation_images)

    @property
    def is_trained_elsewhere(self) -> bool:
        """True if the network comes from a file and is only evaluated."""
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
        """The number of epochs of the training; 0 for one elsewhere."""
        return 0 if self.is_trained_elsewhere else self.train.epochs

    @property
    def train_eps(self) -> Radius:
        """The radius at the end of the training ramp, of a network that is trained here."""
        assert self.train.eps is not None
        return self.train.eps

    @property
    def options_text(self) -> str:
        """The options of network and method, checkpoint and teacher, such as "gain=0.5 margin=0.1", sorted."""
        checkpoint = {"checkpoint": self.checkpoint.label} if self.checkpoint else {}
        teacher = {"teacher": f"({self.teacher.row})"} if self.teacher else {}
        options = self.options | self.method_options | checkpoint | teacher
        return " ".join(f"{name}={value}" for name, value in sorted(options.items()))

    @property
    def network(self) -> str:
        """The network with its options, and its width where its entry has one of its own."""
        settings = dict(sorted(self.options.items())) | ({"width": self.width} if "width" in self.named else {})
        return " ".join([self.model, *(f"{name}={value}" for name, value in settings.items())])

    @property
    def row(self) -> str:
        """The name of the network with all seeds: model, method, options of both, settings of its own entry."""
        return self._row_with(self.named)

    @property
    def label(self) -> str:
        """A short name for people: row and seed. Other files, profiles or data may share it; keys differ."""
        return f"{self.row} seed {self.seed}"

    def names(self, key: str) -> tuple[str, str, str]:
        """Return what patterns of commands select the network by: label, key, label with the whole recipe."""
        recipe = [name for name in self.settings if name == "width" or is_of_training(name)]
        return self.label, key, f"{self._row_with(recipe)} seed {self.seed}"

    def _row_with(self, names: Iterable[str]) -> str:
        settings = {name: self.settings[name] for name in names if name in self.settings}
        texts = {name: missing_text(name) if value is None else value_text(value) for name, value in settings.items()}
        return row_name(self.model, self.method, self.options_text, texts)

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides the weights, flat and as in JSON, except network, method, their options and the seed.

        Plugins are one text, empty where there are none. The recipe is None for a network trained elsewhere.
        """
        own = {"model", "options", "method", "method_options", "seed", "plugins", "checkpoint", "teacher"}
        left_out = own | PRESENTATION
        flat = flatten(self.model_dump(mode="json", exclude=left_out))
        flat["plugins"] = " ".join(f"{name}@{digest}" for name, digest in sorted(self.plugins.items()))
        if self.is_trained_elsewhere:
            flat |= {name: None for name in flat if is_of_training(name)}
        return flat


def row_name(model: str, method: str, options: str, settings: dict[str, str]) -> str:
    """Return the name of a row: network, method, options, and settings such as 'train.epochs=160'.

    settings: text by flat name; empty text is left out, and so is training for a network trained elsewhere.
    """
    has_recipe = method != TRAINED_ELSEWHERE
    shown = [f"{name}={text}" for name, text in settings.items() if text and (has_recipe or not is_of_training(name))]
    return " ".join(filter(None, [model, method, options, *shown]))


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
