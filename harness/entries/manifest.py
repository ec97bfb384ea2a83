"""`entry.yaml`: what an entry says of itself, checked to the last key."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from baselines import DATASETS, network_names
from harness.common.errors import InputError, require
from harness.common.models import STRICT, validate
from harness.common.radius import Radius
from harness.config.training import LARGEST_SEED, LARGEST_WIDTH
from harness.config.yaml_text import MOST_CHARACTERS, parse_yaml
from harness.entries.files import FILE_NAME, read_bounded
from harness.storage.entry_check import ExtraData, NetworkKind, VerifierKind

MANIFEST = "entry.yaml"
_LONGEST, _REFUSED = 200, '<>&"`\\{}$'  # of a text; what pages or shells might run
_EPS = r"^([01]?\.[0-9]{1,12}|[01]|[0-9]{1,9}/[0-9]{1,9})$"  # Fraction computes 10**n of 1e-n, whatever n is


def check_text(key: str, text: str) -> str:
    """Return a text that is shown on pages. Raises SettingError for one that is long or might do something there."""
    is_plain = text.isprintable() and not set(text) & set(_REFUSED) and len(text) <= _LONGEST
    has_letters = any(map(str.isalnum, text))
    allowed = f"up to {_LONGEST} printable characters with a letter or digit, none of {_REFUSED}"
    require(key, text, is_plain and has_letters, allowed)
    return text


def _must_be(key: str, allowed: Sequence[Any], words: str) -> AfterValidator:
    """Return the check that a key's value is one of these. words: what they are, for the message."""

    def check(value: Any) -> Any:
        require(key, value, value in allowed, words)
        return value

    return AfterValidator(check)


def _write_number(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


_NETWORKS = [name for name in network_names() if name != "onnx"]  # that one reads any file that an option names
_BOX = "[0, 1]: pixels go from 0 to 1; say how the network scales them as normalisation"
Text = Annotated[str, AfterValidator(partial(check_text, "text"))]
FileName = Annotated[str, Field(pattern=FILE_NAME)]


class Architecture(BaseModel):
    """A network of this project, whose weights are a safetensors file."""

    model_config = STRICT

    model: Annotated[str, _must_be("model", _NETWORKS, f"{', '.join(_NETWORKS)}; an ONNX file needs no `architecture`")]
    """Its name, as in `docs/networks.md`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Its options, where they differ from their defaults."""
    width: float = Field(1.0, gt=0, le=LARGEST_WIDTH)
    """Factor of its channels."""


class Normalisation(BaseModel):
    """What is done to pixels before the ONNX file: (pixel - mean) / std."""

    model_config = STRICT

    mean: list[Annotated[float, Field(ge=-1e6, le=1e6)]]
    """A number for each channel."""
    std: list[Annotated[float, Field(ge=1e-6, le=1e6)]]
    """A number for each channel."""


class EntryNetwork(BaseModel):
    """One trained network and its files."""

    model_config = STRICT

    seed: int = Field(ge=0, le=LARGEST_SEED)
    """The seed that it was trained with."""
    network: FileName
    """An ONNX file; with `architecture`, the weights as a safetensors file."""
    verdicts: FileName
    """A Parquet or CSV file with a row for each image."""
    certificates: FileName | None = None
    """A safetensors file, as `docs/certificates.md` describes it."""
    witnesses: FileName | None = None
    """A safetensors file: for each falsified image an adversarial one, float32 [C, H, W], by its index."""

    @property
    def files(self) -> list[str]:
        """The names of its files."""
        return [name for name in (self.network, self.verdicts, self.certificates, self.witnesses) if name]


class Manifest(BaseModel):
    """What an entry says of itself."""

    model_config = STRICT

    title: Text
    """The name of the row: the method and the network."""
    authors: list[Text] = Field(min_length=1, max_length=50)
    """Who made it."""
    licence: Text
    """Of the entry's files, such as CC-BY-4.0."""
    dataset: Annotated[str, _must_be("dataset", list(DATASETS), ", ".join(DATASETS))]
    """The data set, by this project's name."""
    eps: Annotated[str, BeforeValidator(_write_number), Field(pattern=_EPS)]
    """The radius, exactly, in units of pixels from 0 to 1: 8/255 or 0.3."""
    networks: list[EntryNetwork] = Field(min_length=1, max_length=100)
    """One for each seed."""
    sha256: dict[FileName, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]] = Field(max_length=1000)
    """The SHA-256 of every file beside this one."""
    network_kind: NetworkKind
    """relu, equilibrium, lipschitz or other."""
    verifier_kind: VerifierKind
    """What proves the certified images: complete (branch and bound), linear bounds, IBP, Lipschitz or sampling."""
    paper: Annotated[str, Field(pattern=r"^https://[A-Za-z0-9_.~%?=#:+/-]+$", max_length=300)] | None = None
    """An address of the paper."""
    architecture: Architecture | None = None
    """Needed if the file has only weights: the model's name and options."""
    normalisation: Normalisation | None = None
    """(pixel - mean) / std, if the ONNX file does not do it."""
    split: Literal["test"] = "test"
    """The images: those of the test split."""
    images: int | None = Field(None, ge=1)
    """Number of test images, from the first on; null for all. Only entries of all are ranked."""
    norm: Literal["linf"] = "linf"
    """The norm of eps."""
    box: Annotated[list[float], _must_be("box", [[0, 1]], _BOX)] = Field(default_factory=lambda: [0.0, 1.0])
    """Range of pixels: [0, 1] alone."""
    training_commit: Text | None = None
    """Git commit of the training code."""
    hours: Annotated[float, Field(ge=0, le=1e7)] | None = None
    """Total training time of all networks."""
    hardware: Text | None = None
    """Hardware used for training."""
    extra_data: ExtraData = "no"
    """Images besides the training split that the network was trained on."""

    @property
    def radius(self) -> Radius:
        """The exact radius."""
        return Radius(self.eps)

    def problems(self) -> Iterator[str]:
        """Yield what is wrong with keys that are right one by one."""
        seeds, networks = [each.seed for each in self.networks], [self.sha256.get(n.network) for n in self.networks]
        if len(set(seeds)) < len(seeds):
            yield f"networks: found the seeds {seeds}, allowed: each one once"
        if len(set(networks)) < len(networks):
            yield "networks: found one file under two seeds, allowed: a network trained with each"
        suffix = ".safetensors" if self.architecture else ".onnx"
        for each in self.networks:
            if not each.network.endswith(suffix):
                kind = "with" if self.architecture else "without"
                yield f"networks: found {each.network}, allowed: {suffix}, {kind} `architecture`"
            if not each.verdicts.endswith((".csv", ".parquet")):
                yield f"networks: found {each.verdicts}, allowed: .csv or .parquet"
            yield from (f"sha256: {name} is missing" for name in each.files if name not in self.sha256)
        channels, size = DATASETS[self.dataset].shape[0], DATASETS[self.dataset].test_size
        if self.images is not None and self.images > size:
            yield f"images: found {self.images}, allowed: 1 to {size}"
        if self.normalisation is not None:
            lengths = {len(self.normalisation.mean), len(self.normalisation.std)}
            if lengths != {channels} or self.architecture:
                yield f"normalisation: allowed: {channels} numbers each, and nothing beside `architecture`"


def read_manifest(entry: Path) -> tuple[Manifest, bytes]:
    """Return the manifest of an entry, and its bytes. Raises InputError, with all problems in one line."""
    content = read_bounded(entry / MANIFEST, MOST_CHARACTERS)
    try:
        value = parse_yaml(content.decode())
        require("it", type(value).__name__, isinstance(value, dict), "a mapping with title, authors, licence, ...")
        manifest: Manifest = validate(Manifest, value)
        if not 0 < float(Radius(manifest.eps)) <= 1 or (problems := list(manifest.problems())):
            raise InputError("; ".join(problems))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{MANIFEST}: {'; '.join(str(error).splitlines())}") from None
    return manifest, content
