"""Load a data set as two splits of uint8 tensors, with a fingerprint. It is decoded once and then read from a cache."""

import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from baselines.datasets import DATASETS, Dataset
from harness.common.errors import InputError, SettingError, require
from harness.common.models import validate
from harness.common.terminal import say
from harness.config.own_data import MeasuredData, OwnData
from harness.data import own
from harness.data.layouts import Shard, Source, fetch, find, not_found
from harness.data.own_readers import files_of
from harness.data.reading import name_errors
from harness.machine.environment import cache_directory, data_directory
from harness.storage.files import write_atomically

_CACHE_FORMAT = 3
"""Increase it when the same files decode to something else."""

_SHOWN_CLASSES = 10
_OWN_DATA = (("entry", "{}"), ("warnings", "[]"))  # what a cache has of own data alone, and what stands for it
_TENSORS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True, eq=False)
class Split:
    """Images uint8 [N, C, H, W] with values 0..255, labels int64 [N], both on the CPU.

    shards, total: the number of shards that were read, and of all shards of the split.
    """

    images: Tensor
    labels: Tensor
    shards: int = 1
    total: int = 1

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_complete(self) -> bool:
        """True if every shard of the split was read."""
        return self.shards == self.total

    def part(self, start: int, stop: int) -> Self:
        """Return images `start` to `stop`, without `stop`; views, no copies."""
        return replace(self, images=self.images[start:stop], labels=self.labels[start:stop])


@dataclass(frozen=True, eq=False)
class Data:
    """A data set that was read and checked.

    fingerprint: 16 hex digits, a hash of all images and labels in order.
    directory: of the files; None if they come with a package.
    warnings: what a reader must know of own images.
    """

    info: Dataset
    train: Split
    test: Split
    fingerprint: str
    directory: Path | None
    warnings: tuple[str, ...] = ()

    def training_images(self, count: int | None = None, validation: int = 0) -> Split:
        """Return the first `count` train images (None: all) of those before the last `validation` ones.

        Raises InputError if there are too few images, or if `count` is None and shards of the split are missing.
        """
        self.held_out_images(validation)  # raises if there are too few
        available = len(self.train) - validation
        return self.train.part(0, self._check_count("train", self.info.train_size, self.train, count, available))

    def held_out_images(self, validation: int) -> Split | None:
        """Return the last `validation` train images (None if 0). Raises InputError if that leaves none to train on."""
        available = len(self.train) - validation
        allowed = f"at most {len(self.train) - 1}; {self.info.title}: {len(self.train):,} train images"
        require("validation_images", validation, available >= 1, allowed)
        return self.train.part(available, len(self.train)) if validation else None

    def evaluated_images(self, validation: int, count: int | None) -> Split:
        """Return the first `count` (None: all) of the last `validation` train images; if that is 0, of the test images.

        Raises InputError if there are too few images.
        """
        held_out = self.held_out_images(validation)
        if held_out is None:
            return self.test_images(count)
        require("images", count, count is None or count <= validation, f"at most the {validation} held out")
        return held_out.part(0, validation if count is None else count)

    def test_images(self, count: int | None = None) -> Split:
        """Return the first `count` test images (None: all).

        Raises InputError if there are too few images, or if `count` is None and shards of the split are missing.
        """
        return self.test.part(0, self._check_count("test", self.info.test_size, self.test, count, len(self.test)))

    def _check_count(self, name: str, size: int, split: Split, count: int | None, available: int) -> int:
        if count is None and split.is_complete:
            return available
        if count is not None and 1 <= count <= available:
            return count
        key = "train_images" if name == "train" else "evaluation.test_images"
        files = f"{split.shards} of {split.total} {name} shards found, {len(split):,} of {size:,} images"
        held_out = len(split) - available
        files += f", {held_out:,} of them held out" if held_out else ""
        raise SettingError(key, count, f"1 to {available}; {self.info.title}: {files}")

    def describe(self) -> str:
        """Return how many images there are and where from and, of own data, what was measured, as a text."""
        images = f"{len(self.train):,} training and {len(self.test):,} test images from {self.directory or 'a package'}"
        if not (measured := self._measured()):
            return images
        shape = " x ".join(map(str, self.info.shape))
        shown = ", ".join(self.info.class_names[:_SHOWN_CLASSES])
        more = ", ..." if self.info.classes > _SHOWN_CLASSES else ""
        mean, std = (" ".join(map(str, measured[name])) for name in ("mean", "std"))
        classes = f"{self.info.classes} classes ({shown}{more})"
        return f"{images}: {shape}, {classes}, mean {mean}, deviation {std}, fingerprint {self.fingerprint}"

    def _measured(self) -> dict[str, Any]:
        """Return what was measured of own data; of registered data nothing was."""
        if self.info.name in DATASETS:
            return {}
        entry = json.loads(json.dumps(asdict(self.info)))
        return {name: entry[name] for name in ("shape", "classes", "class_names", "mean", "std")}

    def summary(self) -> dict[str, Any]:
        """Return the data set's entry in results, ready for JSON. `complete`: no shard of either split is missing."""
        return {
            "name": self.info.name,
            "fingerprint": self.fingerprint,
            **self._measured(),
            "directory": None if self.directory is None else str(self.directory.absolute()),
            "complete": self.train.is_complete and self.test.is_complete,
            "train_images": len(self.train),
            "train_shards_found": self.train.shards,
            "train_shards_total": self.train.total,
            "test_images": len(self.test),
            "test_shards_found": self.test.shards,
            "test_shards_total": self.test.total,
        }


def load(source: str | OwnData, data_dir: str | Path | None = None, writes: bool = True) -> Data:
    """Return a data set, from the cache if its files were decoded before.

    Args:
        source: a key of `DATASETS`, or own data.
        data_dir: where to look, as in `data_directory`. A missing data set is downloaded into it.
        writes: whether the function may download and write the cache.

    Raises:
        InputError: if the name is unknown, if the data set cannot be found or downloaded, or if a file is unreadable or
            does not fit the data set's entry.
    """
    root = data_directory(data_dir)
    if isinstance(source, OwnData):
        return _load_own(source, root, writes)
    require("dataset", source, source in DATASETS, ", ".join(DATASETS))
    info = DATASETS[source]
    files = find(info, root)
    if files is None and not writes:
        raise not_found(info, root, "it would have to be downloaded")
    files = files or fetch(info, root)

    def read() -> tuple[own.Arrays, None, list[str]]:
        train = _read(info, files.train, files.train_total, info.train_size)
        return train + _read(info, files.test, files.test_total, info.test_size), None, []

    cache = _cache_path(info, files)
    tensors, recorded, *_ = _read_cache(cache) or _decode(info.title, read, lambda: cache, writes)
    return Data(
        info,
        Split(tensors["train_images"], tensors["train_labels"], len(files.train), files.train_total),
        Split(tensors["test_images"], tensors["test_labels"], len(files.test), files.test_total),
        recorded,
        files.directory,
    )


def _load_own(source: OwnData, root: Path, writes: bool) -> Data:
    path = own.path_of(source, root)
    content = [source.model_dump(mode="json"), str(path.absolute())]

    def cache() -> Path:
        files = [] if source.kind == "torchvision" else files_of(path)  # its name alone says what its files hold
        return _cache_at(source.title, content, files)

    stored = _read_cache(cache()) or _decode(source.title, lambda: own.read(source, path, writes), cache, writes)
    tensors, recorded, entry, warnings = stored
    info = validate(MeasuredData, {"source": source, "entry": entry}).entry
    train, test = (Split(tensors[f"{split}_images"], tensors[f"{split}_labels"]) for split in ("train", "test"))
    return Data(info, train, test, recorded, path, tuple(warnings))


Stored = tuple[dict[str, Tensor], str, dict[str, Any], list[str]]
"""The tensors of a data set by the names of _TENSORS, their fingerprint, and of own data the entry as a dictionary and
warnings."""


def _read_cache(cache: Path) -> Stored | None:
    """Return what a cache holds; None if there is none, or it is damaged."""
    try:
        with safe_open(cache, framework="pt") as file:  # its tensors are mapped into memory
            metadata = file.metadata()
            entry, warnings = (json.loads(metadata.get(name, empty)) for name, empty in _OWN_DATA)
            return {split: file.get_tensor(split) for split in _TENSORS}, metadata["fingerprint"], entry, warnings
    except (OSError, SafetensorError, KeyError, TypeError, AttributeError, ValueError):
        return None


def _decode(
    title: str,
    read: Callable[[], tuple[own.Arrays, Dataset | None, list[str]]],
    cache: Callable[[], Path],
    writes: bool,
) -> Stored:
    """Read a data set and write its cache. cache: returns its path, once the files are there."""
    values, info, warnings = read()
    arrays = dict(zip(_TENSORS, values, strict=True))
    recorded, entry = _hash(arrays), {} if info is None else asdict(info)
    if writes:
        own_data = {"entry": json.dumps(entry), "warnings": json.dumps(warnings)} if entry else {}
        metadata = {"fingerprint": recorded} | own_data
        _write_cache(title, cache(), arrays, metadata)
    return {name: torch.from_numpy(array) for name, array in arrays.items()}, recorded, entry, warnings


def fingerprint(train: Split, test: Split) -> str:
    """Return the fingerprint of images and labels, from their tensors."""
    tensors = train.images, train.labels, test.images, test.labels
    return _hash({name: tensor.numpy() for name, tensor in zip(_TENSORS, tensors, strict=True)})


def _cache_path(info: Dataset, source: Source) -> Path:
    """Return the cache's path, a hash of the entry and of its files' sizes and times: changed files have another."""
    entry = [info.shape, info.classes, info.train_size, info.test_size, info.image_column, info.test_split]
    files = dict.fromkeys(path for shard in source.train + source.test for path in shard.files)
    return _cache_at(info.name, entry, files)


def _cache_at(name: str, content: list[Any], files: Iterable[Path]) -> Path:
    """Return the cache's path, a hash of a content for JSON, and of the files' sizes and times."""
    digest = hashlib.sha256(json.dumps([_CACHE_FORMAT, *content]).encode())
    for path in files:
        with name_errors(path):
            stat = path.stat()
        digest.update(json.dumps([str(path.absolute()), stat.st_size, stat.st_mtime_ns]).encode())
    return cache_directory() / f"{name}-{digest.hexdigest()[:16]}.safetensors"


def _write_cache(title: str, cache: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write the cache; a failure is a line on standard error."""
    try:
        write_atomically(cache, lambda temporary: save_file(arrays, temporary, metadata))
    except (OSError, SafetensorError) as error:
        cause = (error.strerror if isinstance(error, OSError) else None) or error
        advice = "set HOME or XDG_CACHE_HOME to a directory of your own"
        say(
            f"warning: {title} is decoded again each time, for {cache} cannot be written: {cause}; {advice}",
            file=sys.stderr,
        )


def _read(info: Dataset, shards: tuple[Shard, ...], total: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images uint8 [N, C, H, W] and labels int64 [N] of a split's shards in order, checked by the entry.

    total, size: how many shards and images the whole split has.
    """
    images, labels = [], []
    for shard in shards:
        where = shard.files[0]
        with name_errors(where):
            shard_images, shard_labels = shard.read()
            if shard_images.dtype != np.uint8 or shard_images.shape[1:] != info.shape:
                description = f"{shard_images.dtype} {list(shard_images.shape[1:])}"
                raise InputError(f"{where}: images are {description}, expected uint8 {list(info.shape)}")
            if not np.issubdtype(shard_labels.dtype, np.integer) or shard_labels.shape != shard_images.shape[:1]:
                description = f"{shard_labels.dtype} {list(shard_labels.shape)}"
                raise InputError(f"{where}: labels are {description}, expected integers [{len(shard_images)}]")
            if len(shard_labels) and not 0 <= shard_labels.min() <= shard_labels.max() < info.classes:
                limits = f"{shard_labels.min()} to {shard_labels.max()}"
                raise InputError(f"{where}: labels from {limits}, expected 0 to {info.classes - 1}")
        images.append(shard_images)
        labels.append(shard_labels.astype(np.int64))
    count = sum(len(shard_labels) for shard_labels in labels)
    if count > size or count == 0 or (count < size and len(shards) == total):
        files = f"{len(shards)} of {total} shards"
        raise InputError(f"{shards[0].files[0]}: {count:,} images in {files}, expected {size:,} in the whole split")
    return np.concatenate(images), np.concatenate(labels)


def _hash(arrays: dict[str, np.ndarray]) -> str:
    """Return the first 16 hex digits of the sha256 of types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in _TENSORS:
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{array.dtype} {list(array.shape)} ".encode())
        digest.update(array.data)
    return digest.hexdigest()[:16]
