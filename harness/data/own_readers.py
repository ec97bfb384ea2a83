"""Read the images of each kind of own data: folders, arrays, Parquet and classes of torchvision.

Photographs are turned as their EXIF orientation says.
"""

import inspect
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np

from baselines.unknown_names import UnknownNameError
from harness.common.errors import InputError, SettingError, require
from harness.config.own_data import OwnData
from harness.data.reading import (
    check_labels,
    convert,
    image_endings,
    is_animated,
    is_transparent,
    name_errors,
    open_image,
    read_parquet,
    require_memory,
)

_MOST_CHANNELS = 4  # an axis of so many values is one of channels
_TRANSPARENT = "are transparent: they are composed over white"
_TURNED = "are turned as the orientation in their EXIF data says"
_PARQUET = "train*.parquet and test*.parquet, or other *.parquet beside `test_share`"


@dataclass(frozen=True)
class Images:
    """Images as they are read.

    pixels: uint8 [H, W, C] each. labels: integers or texts [N]. name_of: returns the name of an image for errors.
    changed: how many are not as in their files, by _TRANSPARENT and _TURNED. left_out: how many files are not among
    them, by their kind.
    """

    pixels: Sequence[np.ndarray] | np.ndarray
    labels: np.ndarray
    name_of: Callable[[int], str]
    changed: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def part(self, numbers: Sequence[int]) -> Self:
        """Return the images of these numbers, in this order."""
        names = [self.name_of(number) for number in numbers]
        return type(self)([self.pixels[number] for number in numbers], self.labels[list(numbers)], names.__getitem__)


def files_of(path: Path) -> list[Path]:
    """Return the file, or all files below the folder, in order; none if there is neither."""
    return [file for file in [path, *entries_of(path)] if file.is_file()]


def entries_of(path: Path) -> list[Path]:
    """Return all below a folder that is no folder, in order; links to folders are followed."""
    folders = os.walk(path, followlinks=True)
    return sorted(Path(folder, name) for folder, _, names in folders for name in names)


def _decode(encoded: Iterable[tuple[object, Any]], labels: np.ndarray, source: OwnData, path: Path) -> Images:
    """Return decoded and, where `size` says so, resized images; without animated ones.

    encoded: name for errors, and image, of each. path: of all files. Raises InputError once the images need far more
    memory than these have bytes.
    """
    names, pixels, still, count = list[str](), list[np.ndarray](), list[int](), 0
    changed, left_out = Counter[str](), Counter[str]()
    size = sum(file.stat().st_size for file in files_of(path))
    for number, (where, file) in enumerate(encoded):
        with open_image(where, file) as image:
            if is_animated(image):
                left_out[f"animated {image.format}"] += 1
                continue
            still.append(number)
            names.append(str(where))
            pixels.append(_pixels(image, where, source, changed))
        count += pixels[-1].nbytes
        require_memory(path, count, size)
    if not pixels:
        raise InputError(f"{path}: found a split of no still images, allowed: one or more")
    return Images(pixels, labels[still], names.__getitem__, changed, left_out)


def _pixels(image: Any, where: object, source: OwnData, changed: Counter[str]) -> np.ndarray:
    """Return the pixels [H, W, C] of an image of Pillow, and count in `changed` what is done to them."""
    from PIL import ExifTags, Image, ImageOps

    if image.getexif().get(ExifTags.Base.Orientation) in range(2, 9):
        changed[_TURNED] += 1
        image = ImageOps.exif_transpose(image)
    values = convert(image, where)
    changed[_TRANSPARENT] += is_transparent(image)
    if source.shape is not None and source.shape != values.shape[:2]:
        height, width = source.shape
        values = np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR))
    return np.atleast_3d(values)


def read_folder(source: OwnData, path: Path) -> list[Images]:
    """Read train/<class>/* and test/<class>/*, or <class>/*, folders within them, too; nothing that is hidden."""
    splits = [path / name for name in ("train", "test") if (path / name).is_dir()]
    if len(splits) == 1:
        allowed = "train/ and test/, or neither: a folder for each class"
        raise InputError(f"{path}: found {splits[0].name}/ alone, allowed: {allowed}")
    samples, left_out = _samples(path, splits or [path])
    parts = []
    for split, files in samples.items():
        classes = {folder.name for folder in split.iterdir() if folder.is_dir() and not folder.name.startswith(".")}
        labels = [file.relative_to(split).parts[0] for file in files]
        if without := sorted(classes.difference(labels)):
            raise InputError(f"{split / without[0]}: found no images, allowed: a folder for each class with its images")
        if not classes:
            raise InputError(f"{split}: found no folders, allowed: a folder for each class with its images")
        parts.append(_decode(((file, file) for file in files), np.array(labels), source, path))
    parts[0].left_out.update(left_out)
    return parts


def _samples(path: Path, splits: list[Path]) -> tuple[dict[Path, list[Path]], Counter[str]]:
    """Return the images in the class folders of each split, and how many files of each kind are left out."""
    samples, left_out = {split: list[Path]() for split in splits}, Counter[str]()
    for file in entries_of(path):
        split = next((split for split in splits if file.is_relative_to(split)), None)
        is_image = file.suffix.lower() in image_endings()
        if any(part.startswith(".") for part in file.relative_to(path).parts):
            left_out["hidden images"] += is_image
        elif split is None or file.parent == split:
            left_out["images outside of class folders"] += is_image
        elif is_image:
            samples[split].append(file)
        else:
            left_out[file.suffix.lower() or "no ending"] += 1
    return samples, left_out


def read_arrays(source: OwnData, path: Path) -> list[Images]:
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


def read_tables(source: OwnData, path: Path) -> list[Images]:
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


def read_torchvision(source: OwnData, root: Path, writes: bool) -> list[Images]:
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

    labels, pixels, changed = list[int](), list[np.ndarray](), Counter[str]()
    for number in range(len(images)):
        image, label = images[number]
        if not (isinstance(image, Image.Image) and isinstance(label, int | np.integer)):
            kinds = f"{type(image).__name__} and {type(label).__name__}"
            raise InputError(f"{where}[{number}]: found {kinds}, allowed: an image and an integer, its class")
        labels.append(int(label))
        pixels.append(_pixels(image, f"{where}[{number}]", source, changed))
    return Images(pixels, np.array(labels), lambda number: f"{where}[{number}]", changed)
