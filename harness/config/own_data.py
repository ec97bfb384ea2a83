"""Images of a user's own, as a sweep file names them and as a trial records them."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BeforeValidator, Field, TypeAdapter, model_validator

from baselines.datasets import DATASETS, Dataset
from harness.common.errors import require
from harness.common.models import Integers, Model

KINDS = ("folder", "arrays", "parquet", "torchvision")
_NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]*"
_LARGEST_SIZE = 4096
LARGEST_CLASSES = 100_000


class OwnData(Model):
    """Images of your own: one of `folder`, `arrays`, `parquet` and `torchvision`."""

    folder: str = ""
    """A folder with `train/<class>/*.png` and `test/<class>/*.png`, or with `<class>/*.png` beside `test_share`; any
    still image that Pillow reads; paths are relative to the sweep file."""
    arrays: str = ""
    """A NumPy file .npz with `x_train`, `y_train`, `x_test` and `y_test`, or the first two beside `test_share`; images
    are uint8 [N, H, W, C], [N, C, H, W] or [N, H, W]."""
    parquet: str = ""
    """A folder with `train*.parquet` and `test*.parquet`, or any `*.parquet` beside `test_share`; columns: `image`,
    encoded such as PNG, as bytes or {bytes, path}, and `label`, integers or texts."""
    torchvision: str = ""
    """A class of torchvision.datasets with a root and an argument split or train, such as GTSRB; its files lie in the
    data directory."""
    name: str = ""
    """The data's name in tables; empty takes the last part of the path, without .npz, or the class."""
    size: int | Integers | None = None
    """Images are resized to [height, width], or to a square; null refuses images of several sizes."""
    test_share: float | None = None
    """The share of the images that become test images, where the files have none of their own: a fixed draw."""
    options: dict[str, Any] = Field(default={})
    """Further arguments of the torchvision class, such as `{split: letters}` of EMNIST."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        named = [kind for kind in KINDS if getattr(self, kind)]
        require(", ".join(KINDS), named, len(named) == 1, "one of them")
        name = self.title
        is_free = re.fullmatch(_NAME, name) is not None and name not in DATASETS
        allowed = f"letters, digits, '_', '-' and '.', and none of {', '.join(DATASETS)}; `name:` sets it"
        require("name", name, is_free, allowed)
        sizes = [self.size] if isinstance(self.size, int) else list(self.size or ())
        is_size = self.size is None or (len(sizes) in (1, 2) and all(1 <= size <= _LARGEST_SIZE for size in sizes))
        require("size", sizes, is_size, f"null, a number or [height, width], from 1 to {_LARGEST_SIZE:,}")
        share = self.test_share
        require("test_share", share, share is None or 0 < share < 1, "null, or a share between 0 and 1")
        no_options = self.kind == "torchvision" or not self.options
        require("options", self.options, no_options, f"nothing beside `{self.kind}`")
        return self

    def __hash__(self) -> int:
        """Return the hash of what names the data."""
        return hash((self.kind, self.title, getattr(self, self.kind)))

    @property
    def kind(self) -> str:
        """One of KINDS."""
        return next(kind for kind in KINDS if getattr(self, kind))

    @property
    def title(self) -> str:
        """The data's name in tables."""
        path = Path(self.folder or self.parquet or self.arrays.removesuffix(".npz"))
        return self.name or self.torchvision or path.name

    @property
    def shape(self) -> tuple[int, int] | None:
        """Height and width to which images are resized; None if they are not."""
        if self.size is None:
            return None
        sizes = [self.size] if isinstance(self.size, int) else self.size
        return sizes[0], sizes[-1]

    def relative_to(self, directory: Path) -> Self:
        """Return it with an absolute path. directory: to which the path is relative."""
        if self.kind == "torchvision":
            return self
        changes: dict[str, Any] = {self.kind: os.path.abspath(directory / Path(getattr(self, self.kind)).expanduser())}
        return self.replace(name=self.title, **changes)


def _entry(value: object) -> object:
    """Return what JSON has of an entry as one. Raises pydantic's ValidationError."""
    return TypeAdapter(Dataset).validate_python(value)


class MeasuredData(Model):
    """Own data in a trial. Neither part is in the trial's key: the fingerprint of the images decides both."""

    source: OwnData
    """Where the images are."""
    entry: Annotated[Dataset, BeforeValidator(_entry)]
    """What was measured from them; the network is built for it."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        entry = self.entry
        is_shape = len(entry.shape) == 3 and all(1 <= size <= _LARGEST_SIZE for size in entry.shape)
        require("shape", entry.shape, is_shape, f"channels, height and width, from 1 to {_LARGEST_SIZE:,}")
        is_count = 2 <= entry.classes <= LARGEST_CLASSES
        require("classes", entry.classes, is_count, f"from 2 to {LARGEST_CLASSES:,}")
        for name in ("mean", "std"):
            values = getattr(entry, name)
            is_right = len(values) == entry.shape[0] and all(0 <= value <= 1 for value in values)
            require(name, values, is_right, "a number from 0 to 1 for each channel")
        require("std", entry.std, min(entry.std) > 0, "numbers above 0")
        return self
