"""The keys of a sweep file."""

from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from baselines import DATASETS, UnknownNameError
from harness.common.errors import located, require
from harness.common.models import Model, validate
from harness.common.radius import Radius
from harness.config import plugins
from harness.config.entry import Width, check_entries
from harness.config.own_data import OwnData
from harness.config.search import SearchSettings
from harness.config.training import LARGEST_SEED, LONGEST_NAME, NAME_PATTERN
from harness.settings import Evaluation, EvaluationSettings, Recipe

FIXED = frozenset({"name", "dataset", "eps", "profiles", "include", "plugins", "ran"})
"""The keys that a profile cannot change."""


def _read_dataset(value: object) -> object:
    if isinstance(value, dict):
        return validate(OwnData, value)
    if not isinstance(value, OwnData) and str(value) not in DATASETS:
        raise UnknownNameError("data set", value, list(DATASETS))
    return value


def _listed(value: object) -> object:
    """Return a value as a list of one, unless it is a list."""
    return value if isinstance(value, list) else [value]


class SweepEvaluation(EvaluationSettings):
    """How trained networks are evaluated, at one radius or several."""

    eps: Annotated[list[Radius], Field(min_length=1), BeforeValidator(_listed, Radius | list[Radius])] | None = None
    """The radius or a list of radii, each a section of the leaderboard; null for the sweep's `eps`."""

    def at(self, eps: Radius, validation_images: int) -> list[Evaluation]:
        """Return an evaluation for each radius. eps: the sweep's. validation_images: as many are evaluated, if any."""
        settings: dict[str, Any] = {name: getattr(self, name) for name in EvaluationSettings.model_fields}
        if validation_images:
            settings |= {"split": "validation", "test_images": None}
        return [Evaluation(eps=radius, **settings) for radius in self.eps or [eps]]


class Resources(Model):
    """What Ray reserves for each trial; fractions of a GPU share it."""

    cpu: int = Field(1, ge=1)
    """CPU cores, and as many threads."""
    gpu: float = Field(0, ge=0)
    """GPUs, or a fraction of one, which is also the share of its memory."""

    @field_validator("gpu")
    @classmethod
    def _check_gpus(cls, gpus: float) -> float:
        require("gpu", gpus, gpus <= 1 or gpus.is_integer(), "a fraction of one GPU, or a whole number of them")
        return gpus


class Ran(Model):
    """What the last command asked for: `harness.run` writes it into `sweep.yaml` of a results directory."""

    profile: str
    """The profile that is merged into the file, with what `--set` changed of trainings, as tables show it."""
    networks: list[str] = Field(default_factory=list)
    """The keys of the study's networks; empty before a search has found them."""
    evaluations: list[str] = Field(default_factory=list)
    """The keys of its evaluations, the main one first."""

    @cached_property
    def network_keys(self) -> frozenset[str]:
        """The keys of the networks, to look one up."""
        return frozenset(self.networks)


class Sweep(Model):
    """A sweep file, its includes merged."""

    name: str = Field(pattern=NAME_PATTERN, max_length=LONGEST_NAME, examples=["cifar10"])
    """Name of the folder under results/ and of the MLflow experiment."""
    dataset: Annotated[str | OwnData, BeforeValidator(_read_dataset)] = Field(examples=["cifar10"])
    """The data set to train and evaluate on: a name, or a mapping, below, for images of your own."""
    eps: Radius
    """The exact l-inf radius in pixel units, above 0 and at most 1: a number or a fraction like 8/255. It is that of
    training and of evaluation, unless `train` or `evaluation` has its own."""
    seeds: list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]] = Field(min_length=1, examples=[[0, 1]])
    """Seeds of initial weights, batches and attacks; each entry of `trials` is trained once with each."""
    train: Recipe = Field(default_factory=Recipe)
    """The recipe."""
    evaluation: Annotated[
        list[SweepEvaluation], Field(min_length=1), BeforeValidator(_listed, SweepEvaluation | list[SweepEvaluation])
    ] = Field(default_factory=lambda: [SweepEvaluation()])
    """How trained networks are evaluated: a mapping, or a list of mappings. Each, at each of its radii, is a section of
    the leaderboard. The first one is the main one: a search minimises its errors, and MLflow shows them first."""
    width: Width = 1.0
    """Factor of every network's channels."""
    train_images: int | None = Field(None, ge=1)
    """Number of training images, the first ones; null takes all."""
    validation_images: int = Field(0, ge=0)
    """Above 0, so many of the last training images are held out and evaluated instead of the test split."""
    plugins: list[str] = Field(default_factory=list, examples=[["my_package.nets"]])
    """Modules of your own to import, such as [my_package.nets]: what they register can be named in this file."""
    trials: Annotated[list[dict[str, Any]], AfterValidator(check_entries)] = Field(
        min_length=1, examples=[[{"model": "cnn7", "method": "ibp"}]]
    )
    """What is compared: the rows of the leaderboard."""
    resources: Resources = Field(default_factory=lambda: Resources())
    """What Ray reserves for each trial."""
    search: SearchSettings | None = None
    """Settings to search before anything is compared; null searches nothing."""
    include: str = ""
    """A file with more of these keys, such as a recipe, relative to this file and in its folder or below; the keys here
    override its keys."""
    profiles: dict[str, dict[str, Any]] | None = None
    """The same study at another size: by name, the keys that each profile changes. Mappings are merged key by key,
    lists replaced. The profile 'cpu' is used where there is no GPU."""
    ran: Ran | None = None
    """Only in `results/<sweep>/sweep.yaml`, which `harness.run` writes: profile, networks and evaluations of the last
    command."""

    @property
    def dataset_name(self) -> str:
        """The name of the data set."""
        return self.dataset if isinstance(self.dataset, str) else self.dataset.title

    @property
    def evaluations(self) -> list[Evaluation]:
        """All evaluations, the main one first."""
        return [each for settings in self.evaluation for each in settings.at(self.eps, self.validation_images)]

    @model_validator(mode="after")
    def _check_evaluations(self) -> Self:
        keys = [each.key for each in self.evaluations]
        twice = [each.description for each in self.evaluations if keys.count(each.key) > 1]
        require("evaluation", twice, not twice, "each evaluation once")
        if self.search is not None:
            with located("search."):
                self.search.evaluation_of_candidates(self.evaluations[0])
        return self

    @field_validator("plugins")
    @classmethod
    def _import_plugins(cls, names: list[str]) -> list[str]:
        plugins.load(names)
        return names

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: list[int]) -> list[int]:
        require("seeds", seeds, len(set(seeds)) == len(seeds), "each one once")
        return seeds
