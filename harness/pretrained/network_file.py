"""Networks trained elsewhere: the file with their weights, how it is read, and what was published on them."""

import hashlib
import json
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from harness.common.errors import InputError, require
from harness.common.models import Floats, Model, Texts

TRAINED_ELSEWHERE = "trained elsewhere"
"""The method of a trial whose network this harness does not train."""

Percent = Annotated[float, Field(ge=0, le=100)]


class NetworkFile(Model):
    """A file of weights, safetensors or torch, and how it is read. In a trial `file` has no folders."""

    file: str
    """The file with the weights, relative to the sweep file: safetensors, or a torch file that holds only tensors."""
    prefix: str = ""
    """Only tensors whose names begin with this are loaded. The prefix is removed from their names. The names of nested
    mappings are joined by dots, such as `state_dict.conv.weight`."""
    keys: Literal["by-name", "by-order", "mondeq"] = "by-name"
    """How tensors are matched to the network's: 'by-name', or 'by-order', which takes names of the file in any
    spelling, but as many tensors as the network has, in its order, of the same shapes; 'mondeq' reads A, B, U, u, C
    and c of a monotone equilibrium, from a torch or MATLAB file, into the network `monotone`."""
    ignore: Texts = ()
    """Tensors of the file that are not loaded, by their names in the file."""
    mean: Floats | None = None
    """A mean for each channel: the network sees (pixel - mean) / std, pixels in [0, 1]. Null means mean 0 and std 1."""
    std: Floats | None = Field(None, validate_default=True)
    """A standard deviation for each channel, if `mean` is set."""
    sha256: str = Field("", pattern="^([0-9a-f]{64})?$")
    """The SHA-256 of the file; another file is refused. Empty for any file. Of an ONNX file with external data it is
    the digest of one file that holds all of it; the message that refuses another file shows it."""

    @field_validator("file")
    @classmethod
    def _check_file(cls, file: str) -> str:
        require("file", file, bool(Path(file).name), "the path of a file")
        return file

    @field_validator("std")
    @classmethod
    def _check_std(cls, std: tuple[float, ...] | None, info: ValidationInfo) -> tuple[float, ...] | None:
        mean = info.data.get("mean")
        are_pairs = (mean is None) == (std is None) and len(mean or ()) == len(std or ())
        require("std", std and list(std), are_pairs, f"as many numbers as mean, {mean and list(mean)}")
        require("std", std and list(std), all(value > 0 for value in std or ()), "numbers above 0")
        return std

    @property
    def is_onnx(self) -> bool:
        """True for an ONNX file, which may be packed."""
        return self.file.endswith((".onnx", ".onnx.gz"))

    @property
    def label(self) -> str:
        """The file's name and 8 digits of a digest of the file and of how it is read."""
        content = json.dumps(self.model_dump(mode="json") | {"file": ""}, sort_keys=True)
        return f"{self.file}@{hashlib.sha256(content.encode()).hexdigest()[:8]}"


class Source(Model):
    """Where a network trained elsewhere was published, and its published numbers."""

    paper: str
    """The paper, such as 'Jovanović et al. 2022'."""
    method: str
    """The training method, as the paper prints it."""
    clean_accuracy: Percent | None = None
    """The published accuracy on clean test images, in percent; null if there is none."""
    certified_accuracy: Percent | None = None
    """The published certified accuracy at the sweep's eps, in percent; null if there is none."""


def digest_of(content: bytes) -> str:
    """Return the SHA-256 of a file's content as hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def read_file(path: Path, network_file: NetworkFile) -> bytes:
    """Return the content of a network file; of an ONNX file with external data, one file that holds all of it.

    Raises InputError where there is no such file, it cannot be read, or its SHA-256 is not the right one.
    """
    try:
        if not path.is_file():
            raise InputError(
                f"checkpoint: found no file {path}, allowed: a file; in a sweep file, by its path relative to that"
            )
        content = _read_onnx(path) if network_file.is_onnx else path.read_bytes()
    except OSError as error:
        raise InputError(f"checkpoint: {path} cannot be read: {error.strerror}") from None
    own, allowed = digest_of(content), f"{network_file.sha256}, the SHA-256 of {path}"
    require("checkpoint.sha256", own, network_file.sha256 in ("", own), allowed)
    return content


def _read_onnx(path: Path) -> bytes:
    from cerdeq.onnx import OnnxError, read_content  # imported late, as torch takes seconds

    try:
        return read_content(path)
    except OnnxError as error:
        raise InputError(f"checkpoint: {error}") from None
