"""The keys of a sweep file and of its entries."""

from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    create_model,
    field_validator,
    model_validator,
)

from baselines import DATASETS, UnknownNameError, options_of
from harness.common.errors import require
from harness.common.models import STRICT, Model
from harness.config.search import SearchSettings
from harness.config.trial import LARGEST_SEED, LARGEST_WIDTH, LONGEST_NAME, NAME_PATTERN
from harness.own_data import OwnData
from harness.pretrained.network_file import NetworkFile, Source
from harness.settings import Evaluation, Radius, Recipe

FIXED = frozenset({"name", "dataset", "eps", "profiles", "include", "plugins"})
"""The keys that a profile cannot change."""


def _check_network(name: str) -> str:
    options_of(name)
    return name


def _check_method(name: str) -> str:
    from harness.methods import METHODS  # imports torch, which most wrong files are refused without

    if name not in METHODS:
        raise UnknownNameError("training method", name, list(METHODS))
    return name


def _check_dataset(name: str) -> str:
    if name not in DATASETS:
        raise UnknownNameError("data set", name, list(DATASETS))
    return name


def _name_file(checkpoint: object) -> object:
    return {"file": checkpoint} if isinstance(checkpoint, str) else checkpoint


Width = Annotated[float, Field(gt=0, le=LARGEST_WIDTH)]


class SweepEntry(Model):
    """One network with one training method, trained with each of the sweep's seeds; or one trained elsewhere."""

    model: Annotated[str, AfterValidator(_check_network)] = Field(examples=["cnn7"])
    """The network; `module:function` for a function of a plugin that is not registered."""
    method: Annotated[str, AfterValidator(_check_method)] = Field("", examples=["ibp"])
    """The training method; required, except beside `checkpoint`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """The network's options, where they differ from their defaults."""
    method_options: dict[str, Any] = Field(default_factory=dict)
    """The training method's options, where they differ from their defaults."""
    width: Width | None = None
    """Factor of the network's channels; null for the sweep's `width`."""
    train: dict[str, Any] = Field(default_factory=dict)
    """What this entry changes of the recipe; it overrides the sweep's `train` and a profile's."""
    checkpoint: Annotated[NetworkFile | None, BeforeValidator(_name_file, NetworkFile | str | None)] = None
    """A file with the weights of a network that was trained elsewhere, or a mapping with `file`, below. The network is
    not trained; it is evaluated once, under the first seed."""
    source: Source | None = None
    """Where a network trained elsewhere was published, and its published numbers."""
    zip: list[str] = Field(default_factory=list)
    """Lists of the entry that advance together, such as [model, options.margin]: first values, then second ones."""

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        """Refuse a training method or its settings for a network trained elsewhere, and a source for any other."""
        if self.checkpoint is None:
            require("method", self.method, bool(self.method), "a training method, such as ibp, without `checkpoint`")
            allowed = "nothing, for the network is trained here, without `checkpoint`"
            require("source", self.source and self.source.model_dump(), self.source is None, allowed)
        for key in ("method", "method_options", "train") if self.checkpoint else ():
            value = getattr(self, key)
            require(key, value, not value, "nothing beside `checkpoint`, for the network is not trained")
        return self


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


class Sweep(Model):
    """A sweep file, its includes merged."""

    name: str = Field(pattern=NAME_PATTERN, max_length=LONGEST_NAME, examples=["cifar10"])
    """Name of the folder under results/ and of the MLflow experiment."""
    dataset: Annotated[
        Annotated[str, AfterValidator(_check_dataset), Tag("<name>")] | Annotated[OwnData, Tag("<own data>")],
        Discriminator(lambda value: "<own data>" if isinstance(value, dict | OwnData) else "<name>"),
    ] = Field(examples=["cifar10"])
    """The data set to train and evaluate on: a name, or a mapping, below, for images of your own."""
    eps: Radius
    """The exact l-inf radius of evaluation in pixel units, above 0 and at most 1: a number or a fraction like 8/255."""
    seeds: list[Annotated[int, Field(ge=0, le=LARGEST_SEED)]] = Field(min_length=1, examples=[[0, 1]])
    """Seeds of initial weights, batches and attacks; each entry of `trials` is trained once with each."""
    train: Recipe = Field(default_factory=Recipe)
    """The recipe."""
    evaluation: Evaluation = Field(default_factory=Evaluation)
    """How trained networks are evaluated."""
    trials: list[dict[str, Any]] = Field(min_length=1, examples=[[{"model": "cnn7", "method": "ibp"}]])
    """What is compared: the rows of the leaderboard."""
    resources: Resources = Field(default_factory=lambda: Resources())
    """What Ray reserves for each trial."""
    width: Width = 1.0
    """Factor of every network's channels."""
    train_images: int | None = Field(None, ge=1)
    """Number of training images, the first ones; null takes all."""
    validation_images: int = Field(0, ge=0)
    """Above 0, so many of the last training images are held out and evaluated instead of the test split."""
    search: SearchSettings | None = None
    """Settings to search before anything is compared; null searches nothing."""
    plugins: list[str] = Field(default_factory=list, examples=[["my_package.nets"]])
    """Modules of your own to import, such as [my_package.nets]: what they register can be named in this file."""
    include: str = ""
    """A file with more of these keys, such as a recipe, relative to this file and in its folder or below; the keys here
    override its keys."""
    profiles: dict[str, dict[str, Any]] | None = None
    """The same study at another size: by name, the keys that each profile changes. Mappings are merged key by key,
    lists replaced. The profile 'cpu' is used where there is no GPU."""

    @property
    def dataset_name(self) -> str:
        """The name of the data set."""
        return self.dataset if isinstance(self.dataset, str) else self.dataset.title

    @field_validator("seeds")
    @classmethod
    def _check_seeds(cls, seeds: list[int]) -> list[int]:
        require("seeds", seeds, len(set(seeds)) == len(seeds), "each one once")
        return seeds


def options_model(options: Any) -> type[BaseModel]:
    """Return a class whose fields are the options of a network or a training method, by name as signatures have them.

    A tuple may be a list, as in JSON.
    """
    kinds: Any = {
        name: (option.annotation, ... if option.default is option.empty else option.default)
        for name, option in options.items()
    }
    # A generated class has no source: pydantic's search for its docstrings finds nothing, and is slow in a deep stack.
    return create_model("options", __config__=STRICT | {"use_attribute_docstrings": False}, **kinds)
