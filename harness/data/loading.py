"""Load a data set as two splits of uint8 tensors, with a fingerprint. It is decoded once and then read from a cache."""

import hashlib
import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from baselines.datasets import DATASETS, Dataset
from harness.common.errors import InputError, SettingError, require
from harness.data.layouts import Shard, Source, fetch, find, name_errors, not_found
from harness.machine.environment import cache_directory, data_directory
from harness.storage.files import write_atomically

_CACHE_FORMAT = 1
"""Increase it when the same files decode to something else."""

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
    """

    info: Dataset
    train: Split
    test: Split
    fingerprint: str
    directory: Path | None

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

    def summary(self) -> dict[str, Any]:
        """Return the data set's entry in results, ready for JSON. `complete`: no shard of either split is missing."""
        return {
            "name": self.info.name,
            "fingerprint": self.fingerprint,
            "directory": None if self.directory is None else str(self.directory.absolute()),
            "complete": self.train.is_complete and self.test.is_complete,
            "train_images": len(self.train),
            "train_shards_found": self.train.shards,
            "train_shards_total": self.train.total,
            "test_images": len(self.test),
            "test_shards_found": self.test.shards,
            "test_shards_total": self.test.total,
        }


def load(name: str, data_dir: str | Path | None = None, writes: bool = True) -> Data:
    """Return the data set called `name`, from the cache if its files were decoded before.

    Args:
        name: a key of `DATASETS`.
        data_dir: where to look, as in `data_directory`. A missing data set is downloaded into it.
        writes: whether the function may download and write the cache.

    Raises:
        InputError: if the name is unknown, if the data set cannot be found or downloaded, or if a file is unreadable or
            does not fit the data set's entry.
    """
    require("dataset", name, name in DATASETS, ", ".join(DATASETS))
    info, root = DATASETS[name], data_directory(data_dir)
    source = find(info, root)
    if source is None and not writes:
        raise not_found(info, root, "it would have to be downloaded")
    source = source or fetch(info, root)
    cache = _cache_path(info, source)
    try:
        with safe_open(cache, framework="pt") as file:  # its tensors are mapped into memory
            tensors = {split: file.get_tensor(split) for split in _TENSORS}
            recorded = file.metadata()["fingerprint"]
    except (OSError, SafetensorError, KeyError, TypeError):  # there is none, or it is damaged
        train = _read(info, source.train, source.train_total, info.train_size)
        test = _read(info, source.test, source.test_total, info.test_size)
        arrays = dict(zip(_TENSORS, train + test, strict=True))
        tensors, recorded = {key: torch.from_numpy(array) for key, array in arrays.items()}, _hash(arrays)
        if writes:
            _write_cache(info, cache, arrays, recorded)
    return Data(
        info,
        Split(tensors["train_images"], tensors["train_labels"], len(source.train), source.train_total),
        Split(tensors["test_images"], tensors["test_labels"], len(source.test), source.test_total),
        recorded,
        source.directory,
    )


def fingerprint(train: Split, test: Split) -> str:
    """Return the fingerprint of images and labels, from their tensors."""
    tensors = train.images, train.labels, test.images, test.labels
    return _hash({name: tensor.numpy() for name, tensor in zip(_TENSORS, tensors, strict=True)})


def _cache_path(info: Dataset, source: Source) -> Path:
    """Return the cache's path, a hash of the entry and of its files' sizes and times: changed files have another."""
    entry = [info.shape, info.classes, info.train_size, info.test_size, info.image_column, info.test_split]
    digest = hashlib.sha256(json.dumps([_CACHE_FORMAT, *entry]).encode())
    for path in dict.fromkeys(path for shard in source.train + source.test for path in shard.files):
        with name_errors(path):
            stat = path.stat()
        digest.update(json.dumps([str(path.absolute()), stat.st_size, stat.st_mtime_ns]).encode())
    return cache_directory() / f"{info.name}-{digest.hexdigest()[:16]}.safetensors"


def _write_cache(info: Dataset, cache: Path, arrays: dict[str, np.ndarray], fingerprint: str) -> None:
    """Write the cache; a failure is a warning."""
    try:
        write_atomically(cache, lambda temporary: save_file(arrays, temporary, {"fingerprint": fingerprint}))
    except (OSError, SafetensorError) as error:
        warnings.warn(
            f"{info.title} is decoded again each time, since {cache} cannot be written: {error}", stacklevel=3
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
