"""Read images of a user's own, split them into training and test images, and measure what a network needs.

Images are put in the order of their SHA-256 digests before any share is taken: a shuffle that depends on nothing but
the images. So neither the names of files nor their order change the fingerprint.
"""

import hashlib
import json
import unicodedata
from collections import Counter
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from baselines.datasets import Dataset
from harness.common.errors import InputError, require
from harness.config.own_data import OwnData
from harness.data.own_readers import Images, entries_of, read_arrays, read_folder, read_tables, read_torchvision

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def path_of(source: OwnData, root: Path) -> Path:
    """Return where own data lie: their path or, if nothing is there, its last part in `root`, the data directory."""
    if source.kind == "torchvision":
        return root
    path = Path(getattr(source, source.kind))
    return root / path.name if not path.exists() and (root / path.name).exists() else path


def require_near(source: OwnData, root: Path) -> None:
    """Raise InputError for files that only the user may name: results record their paths, and others may write those.

    root: the data directory.
    """
    if source.kind == "torchvision":
        require("dataset.options", source.options, "/" not in json.dumps(source.options), "no paths")
        return
    path = path_of(source, root).resolve()
    is_near = any(directory in path.parents for directory in (root.resolve(), Path.cwd()))
    allowed = f"a path below the data directory, {root}, or the working directory; --data-dir names another"
    require(f"dataset.{source.kind}", str(path), is_near, allowed)


def read(source: OwnData, path: Path, writes: bool) -> tuple[Arrays, Dataset, list[str]]:
    """Return train images uint8 [N, C, H, W] and labels int64 [N], the same of the test images; the measured entry; and
    warnings.

    writes: whether torchvision may download. Raises InputError.
    """
    if source.kind == "torchvision":
        parts = read_torchvision(source, path, writes)
    elif source.kind == "arrays":
        require("dataset.arrays", str(path), path.is_file(), "a file that exists")
        parts = read_arrays(source, path)
    else:
        key = f"dataset.{source.kind}"
        require(key, str(path), path.is_dir(), "a folder that exists")
        for file in entries_of(path):  # reading a pipe would wait
            is_pipe = file.exists() and not file.is_file()
            require(key, str(file), not is_pipe, "a folder of files and folders alone")
        parts = read_folder(source, path) if source.kind == "folder" else read_tables(source, path)
    parts, messages = _unify_labels(parts)
    train, test = _split(source, path, [_shuffle(part) for part in _same_size(parts, source)])
    classes = np.unique(train.labels)
    for number, label in enumerate(test.labels):
        if label not in classes:
            raise InputError(f"{test.name_of(number)}: found the class {label}, allowed: those of training images")
    if len(classes) < 2:
        raise InputError(f"{path}: found training images of the class {classes[0]} alone, allowed: 2 classes or more")
    arrays = [
        array
        for part in (train, test)
        for array in (
            np.ascontiguousarray(np.stack(list(part.pixels)).transpose(0, 3, 1, 2)),
            np.searchsorted(classes, part.labels).astype(np.int64),
        )
    ]
    mean, std = _measure(arrays[0])
    entry = Dataset(
        name=source.title,
        title=source.title,
        shape=arrays[0].shape[1:],
        classes=len(classes),
        mean=mean,
        std=std,
        train_size=len(train.labels),
        test_size=len(test.labels),
        class_names=tuple(map(str, classes)),
    )
    messages += _changes(parts) + _equal_images(train, test)
    return (arrays[0], arrays[1], arrays[2], arrays[3]), entry, messages


def _unify_labels(parts: list[Images]) -> tuple[list[Images], list[str]]:
    """Return images with one label for a text in several Unicode forms, and a message for each; other labels stay."""
    forms: dict[str, list[str]] = {}
    for label in sorted({str(label) for part in parts for label in np.unique(part.labels)}):
        forms.setdefault(unicodedata.normalize("NFC", label), []).append(label)
    several = {composed: own for composed, own in forms.items() if len(own) > 1}
    composed_of = {form: composed for composed, own in several.items() for form in own}
    if several:
        labels = [np.array([composed_of.get(str(label), str(label)) for label in part.labels]) for part in parts]
        parts = [replace(part, labels=own) for part, own in zip(parts, labels, strict=True)]
    return parts, [
        f"the class {composed} is written in {len(own)} Unicode forms, {' and '.join(map(ascii, own))}: it is one class"
        for composed, own in several.items()
    ]


def _changes(parts: list[Images]) -> list[str]:
    """Return what was done to images, and what was left out."""
    total = sum(len(part.labels) for part in parts)
    changed = sum((part.changed for part in parts), Counter[str]())
    left_out = sum((part.left_out for part in parts), Counter[str]())
    messages = [f"{count} of {total} images {change}" for change, count in sorted(changed.items())]
    if left_out:
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(left_out.items()))
        messages.append(f"files left out: {kinds}")
    return messages


def _equal_images(train: Images, test: Images) -> list[str]:
    """Return a message if all images are equal, or some are equal to one of another class."""
    first: dict[bytes, tuple[object, str]] = {}  # the label and the name of the first image of each digest
    mixed: dict[bytes, str] = {}  # of digests with several labels: two images
    digests = [_digests(part) for part in (train, test)]
    for part, own in zip((train, test), digests, strict=True):
        for number, (digest, label) in enumerate(zip(own, part.labels, strict=True)):
            name = part.name_of(number)
            other, other_name = first.setdefault(digest, (label, name))
            if other != label:
                mixed.setdefault(digest, f"{other_name} ({other}) and {name} ({label})")
    total = sum(map(len, digests))
    if len(first) == 1:
        return [f"all {total} images are equal"]
    if not mixed:
        return []
    equal, example = sum(digest in mixed for digest in chain(*digests)), next(iter(mixed.values()))
    return [f"{equal} of {total} images are equal to one of another class: such as {example}"]


def _digests(images: Images) -> list[bytes]:
    return [hashlib.sha256(image.tobytes()).digest() for image in images.pixels]


def _shuffle(images: Images) -> Images:
    """Return the images in the order of their digests; equal ones mixed, whatever their labels."""
    seen, keys = Counter[tuple[bytes, str]](), list[tuple[bytes, bytes]]()
    for digest, label in zip(_digests(images), map(str, images.labels), strict=True):
        seen[digest, label] += 1
        keys.append((digest, hashlib.sha256(f"{seen[digest, label]} {label}".encode()).digest()))
    return images.part(sorted(range(len(keys)), key=keys.__getitem__))


def _split(source: OwnData, path: Path, parts: list[Images]) -> tuple[Images, Images]:
    """Return train and test images: two parts, or shares of one."""
    if len(parts) == 2:
        allowed = f"nothing, for {path} has test images of their own"
        require("dataset.test_share", source.test_share, source.test_share is None, allowed)
        return parts[0], parts[1]
    (images,) = parts
    if source.test_share is None:
        raise InputError(f"{path}: found no test images, allowed: a split of their own, or test_share, such as 0.2")
    count = round(source.test_share * len(images.labels))
    allowed = f"a share that leaves images on both sides of {len(images.labels)}"
    require("dataset.test_share", source.test_share, 0 < count < len(images.labels), allowed)
    order = range(len(images.labels))
    return images.part(order[count:]), images.part(order[:count])


def _same_size(parts: list[Images], source: OwnData) -> list[Images]:
    """Return the images with as many channels each. Raises InputError unless all have one height and width."""
    first = parts[0].pixels[0].shape
    for part in parts:
        for number, image in enumerate(part.pixels):
            if image.shape[:2] != first[:2]:
                both = f"{parts[0].name_of(0)}: {first[0]} x {first[1]} pixels (height x width)"
                both += f", and {part.name_of(number)}: {image.shape[0]} x {image.shape[1]}"
                raise InputError(f"found {both}; allowed: one size, or `size: [height, width]`")
    channels = max(image.shape[2] for part in parts for image in part.pixels)
    same = [[np.broadcast_to(image, (*first[:2], channels)) for image in part.pixels] for part in parts]
    return [Images(pixels, part.labels, part.name_of) for pixels, part in zip(same, parts, strict=True)]


def _measure(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel of uint8 [N, C, H, W], of pixels in [0, 1], to four digits.

    A deviation is at least a step of a pixel, 1/255, since networks divide by it.
    """
    counts = [np.bincount(images[:, channel].ravel(), minlength=256) for channel in range(images.shape[1])]
    values = np.arange(256) / 255
    means = [float((count * values).sum() / count.sum()) for count in counts]
    pairs = zip(counts, means, strict=True)
    variances = [float((count * (values - mean) ** 2).sum() / count.sum()) for count, mean in pairs]
    return tuple(round(mean, 4) for mean in means), tuple(round(max(v**0.5, 1 / 255), 4) for v in variances)
