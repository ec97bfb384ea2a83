"""Read images of a user's own: from folders, arrays, Parquet or torchvision, and measure what a network needs.

Images are put in the order of their SHA-256 digests before any share is taken: a shuffle that depends on nothing but
the images. So neither the names of files nor their order change the fingerprint.
"""

import hashlib
import inspect
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np

from baselines.datasets import Dataset
from baselines.unknown_names import UnknownNameError
from harness.common.errors import InputError, SettingError, require
from harness.config.own_data import OwnData
from harness.data.reading import (
    check_labels,
    convert,
    is_transparent,
    name_errors,
    open_image,
    read_parquet,
    require_memory,
)

Arrays = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
_MOST_CHANNELS = 4  # an axis of so many values is one of channels
_PARQUET = "train*.parquet and test*.parquet, or other *.parquet beside `test_share`"


@dataclass(frozen=True)
class Images:
    """Images as they are read.

    pixels: uint8 [H, W, C] each. labels: integers or texts [N]. name_of: returns the name of an image for errors.
    transparent: how many were transparent in their files.
    """

    pixels: Sequence[np.ndarray] | np.ndarray
    labels: np.ndarray
    name_of: Callable[[int], str]
    transparent: int = 0

    def part(self, numbers: Sequence[int]) -> Self:
        """Return the images of these numbers, in this order."""
        names = [self.name_of(number) for number in numbers]
        return type(self)([self.pixels[number] for number in numbers], self.labels[list(numbers)], names.__getitem__)


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


def files_of(path: Path) -> list[Path]:
    """Return the file, or all files below the folder, in order; none if there is neither."""
    return sorted(file for file in [path, *path.rglob("*")] if file.is_file())


def read(source: OwnData, path: Path, writes: bool) -> tuple[Arrays, Dataset, list[str]]:
    """Return train images uint8 [N, C, H, W] and labels int64 [N], the same of the test images; the measured entry; and
    warnings.

    writes: whether torchvision may download. Raises InputError.
    """
    if source.kind == "torchvision":
        parts = _torchvision(source, path, writes)
    elif source.kind == "arrays":
        require("dataset.arrays", str(path), path.is_file(), "a file that exists")
        parts = _arrays(source, path)
    else:
        key = f"dataset.{source.kind}"
        require(key, str(path), path.is_dir(), "a folder that exists")
        for file in path.rglob("*"):  # reading a pipe would wait
            is_pipe = file.exists() and not (file.is_file() or file.is_dir())
            require(key, str(file), not is_pipe, "a folder of files and folders alone")
        parts = _folder(source, path) if source.kind == "folder" else _parquet(source, path)
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
    transparent = sum(part.transparent for part in parts)
    return (arrays[0], arrays[1], arrays[2], arrays[3]), entry, _warnings(transparent, train, test)


def _warnings(transparent: int, train: Images, test: Images) -> list[str]:
    """Return what a reader must know of images. transparent: how many of them were."""
    first: dict[bytes, tuple[object, str]] = {}  # the label and the name of the first image of each digest
    mixed: dict[bytes, str] = {}  # of digests with several labels: two images
    digests = [_digests(part) for part in (train, test)]
    for part, own in zip((train, test), digests, strict=True):
        for number, (digest, label) in enumerate(zip(own, part.labels, strict=True)):
            name = part.name_of(number)
            other, other_name = first.setdefault(digest, (label, name))
            if other != label:
                mixed.setdefault(digest, f"{other_name} ({other}) and {name} ({label})")
    messages, total = list[str](), sum(map(len, digests))
    if transparent:
        messages.append(f"{transparent} of {total} images are transparent: they are composed over white")
    if len(first) == 1:
        messages.append(f"all {total} images are equal")
    elif mixed:
        equal, example = sum(digest in mixed for digest in chain(*digests)), next(iter(mixed.values()))
        messages.append(f"{equal} of {total} images are equal to one of another class: such as {example}")
    return messages


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


def _decode(encoded: Iterable[tuple[object, Any]], labels: np.ndarray, source: OwnData, path: Path) -> Images:
    """Return decoded and, where `size` says so, resized images. encoded: name for errors, and image, of each.

    path: of all files. Raises InputError once the images need far more memory than these have bytes.
    """
    names, pixels, count, transparent = list[str](), list[np.ndarray](), 0, 0
    size = sum(file.stat().st_size for file in files_of(path))
    for where, file in encoded:
        with open_image(where, file) as image:
            names.append(str(where))
            pixels.append(_pixels(image, where, source))
            transparent += is_transparent(image)
        count += pixels[-1].nbytes
        require_memory(path, count, size)
    return Images(pixels, labels, names.__getitem__, transparent)


def _pixels(image: Any, where: object, source: OwnData) -> np.ndarray:
    """Return the pixels [H, W, C] of an image of Pillow."""
    from PIL import Image

    values = convert(image, where)
    if source.shape is not None and source.shape != values.shape[:2]:
        height, width = source.shape
        values = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))
    return np.atleast_3d(values)


def _folder(source: OwnData, path: Path) -> list[Images]:
    """Read train/<class>/* and test/<class>/*, or <class>/*."""
    from torchvision.datasets import ImageFolder

    splits = [path / name for name in ("train", "test") if (path / name).is_dir()]
    if len(splits) == 1:
        allowed = "train/ and test/, or neither: a folder for each class"
        raise InputError(f"{path}: found {splits[0].name}/ alone, allowed: {allowed}")
    parts = []
    for folder in splits or [path]:
        with name_errors(folder):
            images = ImageFolder(str(folder))
        labels = np.array([images.classes[number] for number in images.targets])
        parts.append(_decode([(name, Path(name)) for name, _ in images.samples], labels, source, path))
    return parts


def _arrays(source: OwnData, path: Path) -> list[Images]:
    """Read x_train, y_train, x_test and y_test of an .npz file; the last two may be missing."""
    parts = []
    with name_errors(path), np.load(path, allow_pickle=False) as file:
        require_memory(path, sum(part.file_size for part in file.zip.infolist()), path.stat().st_size)
        has_test = "x_test" in file or "y_test" in file
        for split in ("train", "test") if has_test else ("train",):
            if missing := [name for name in (f"x_{split}", f"y_{split}") if name not in file]:
                found, allowed = ", ".join(file) or "none", "x_train, y_train, x_test, y_test"
                raise InputError(f"{path}: {missing[0]}: found the arrays {found}, allowed: {allowed}")
            images, labels = file[f"x_{split}"], check_labels(file[f"y_{split}"], f"{path}: y_{split}")
            parts.append(_array(images, labels, f"{path}: x_{split}", source))
    return parts


def _array(images: np.ndarray, labels: np.ndarray, where: str, source: OwnData) -> Images:
    """Return an array's images. Raises InputError for another type or shape, and if two axes could be of channels."""
    found, allowed = f"{images.dtype} {list(images.shape)}", "uint8 [N, H, W, C], [N, C, H, W] or [N, H, W]"
    images = images[..., None] if images.ndim == 3 else images
    axes = [axis for axis in (1, 3) if images.ndim == 4 and images.shape[axis] <= _MOST_CHANNELS]
    if images.dtype != np.uint8 or len(axes) != 1 or 0 in images.shape:
        raise InputError(f"{where}: found {found}, allowed: {allowed}, with 1 to {_MOST_CHANNELS} channels")
    if len(images) != len(labels):
        raise InputError(f"{where}: found {len(images):,} images and {len(labels):,} labels, allowed: as many")
    images = images.transpose(0, 2, 3, 1) if axes == [1] else images
    if source.shape is not None and source.shape != images.shape[1:3]:
        raise InputError(f"{where}: found {found}, allowed with `size`: {list(source.shape)}; arrays are not resized")
    return Images(images, labels, lambda number: f"{where}[{number}]")


def _parquet(source: OwnData, path: Path) -> list[Images]:
    """Read train*.parquet and test*.parquet, or any *.parquet."""
    splits = [files for name in ("train", "test") if (files := sorted(path.glob(f"{name}*.parquet")))]
    if len(splits) == 1:
        raise InputError(f"{path}: found {splits[0][0].name} alone, allowed: {_PARQUET}")
    if not (splits := splits or [sorted(path.glob("*.parquet"))])[0]:
        raise InputError(f"{path}: found no *.parquet, allowed: {_PARQUET}")
    parts = []
    for files in splits:
        tables = [read_parquet(file, "image") for file in files]
        kinds = {labels.dtype.kind for _, labels in tables}
        if len(kinds) > 1:
            raise InputError(f"{path}: column 'label': found integers and texts, allowed: one of them in all files")
        labels = np.concatenate([labels for _, labels in tables])
        parts.append(_decode(chain.from_iterable(encoded for encoded, _ in tables), labels, source, path))
    return parts


def _torchvision(source: OwnData, root: Path, writes: bool) -> list[Images]:
    """Read a class of torchvision.datasets, downloaded where its files are missing. Raises InputError."""
    import torchvision.datasets

    kind = getattr(torchvision.datasets, source.torchvision, None)
    parameters = _parameters(kind)
    if "root" not in parameters or parameters.isdisjoint({"train", "split"}):
        classes = {name: _parameters(getattr(torchvision.datasets, name)) for name in torchvision.datasets.__all__}
        names = [name for name, own in classes.items() if "root" in own and own & {"train", "split"}]
        error = UnknownNameError("class", source.torchvision, names)
        raise SettingError("dataset.torchvision", source.torchvision, error.allowed)
    splits: list[dict[str, Any]] = [{"split": "train"}, {"split": "test"}]
    if "train" in parameters:
        splits = [{"train": True}, {"train": False}]
    kept = ("root", "download", *splits[0])
    allowed = f"arguments of torchvision.datasets.{source.torchvision} other than {', '.join(kept)}"
    require("dataset.options", source.options, source.options.keys().isdisjoint(kept), allowed)
    parts = []
    for split in splits:
        where = f"torchvision.datasets.{source.torchvision}({', '.join(f'{k}={v!r}' for k, v in split.items())})"
        with name_errors(where):
            images = _open(kind, root, split | source.options, writes and "download" in parameters)
            parts.append(_items(images, where, source))
    return parts


def _parameters(kind: object) -> set[str]:
    """Return what a class is made of; where it hands arguments on, also its base's. Nothing of what is no class."""
    names: set[str] = set()
    if not isinstance(kind, type):
        return names
    for each in kind.__mro__:
        own = inspect.signature(each).parameters.values()
        names |= {parameter.name for parameter in own}
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in own):
            break
    return names


def _open(kind: Any, root: Path, arguments: dict[str, Any], downloads: bool) -> Any:
    """Return a data set of torchvision, from the files that there are or, without, downloaded ones."""
    try:
        return kind(str(root), **arguments)
    except (RuntimeError, OSError):  # the files are missing
        if not downloads:
            raise
        root.mkdir(parents=True, exist_ok=True)
        return kind(str(root), **arguments, download=True)


def _items(images: Any, where: str, source: OwnData) -> Images:
    """Return the images of a data set of torchvision."""
    from PIL import Image

    labels, pixels, transparent = list[int](), list[np.ndarray](), 0
    for number in range(len(images)):
        image, label = images[number]
        if not (isinstance(image, Image.Image) and isinstance(label, int | np.integer)):
            kinds = f"{type(image).__name__} and {type(label).__name__}"
            raise InputError(f"{where}[{number}]: found {kinds}, allowed: an image and an integer, its class")
        labels.append(int(label))
        pixels.append(_pixels(image, f"{where}[{number}]", source))
        transparent += is_transparent(image)
    return Images(pixels, np.array(labels), lambda number: f"{where}[{number}]", transparent)
