"""Find the files of a data set and read them: one function for each layout.

A layout is a function of a data set's entry and a folder. It returns a Source if the folder holds its files, else None.
It decodes nothing yet. `find` tries a data set's own layout (ORIGINALS), then Hugging Face-style Parquet, in every
folder of its entry. A data set that comes as Parquet needs no code here.
"""

import gzip
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from itertools import zip_longest
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from baselines.datasets import Dataset
from harness.common.errors import InputError
from harness.data.reading import convert, name_errors, open_image, read_parquet, require_memory

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"


@dataclass(frozen=True)
class Shard:
    """Files that are read together.

    files: the first one names the shard in messages.
    read: returns images uint8 [N, C, H, W] and integer labels [N], not yet checked.
    """

    files: tuple[Path, ...]
    read: Callable[[], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Source:
    """The shards in a directory, and how many there should be. directory: None if they are part of a package."""

    directory: Path | None
    train: tuple[Shard, ...]
    test: tuple[Shard, ...]
    train_total: int = 1
    test_total: int = 1


Layout = Callable[[Dataset, Path], Source | None]


def cifar_batches(info: Dataset, folder: Path) -> Source | None:
    """Return CIFAR-10 in torchvision's layout: pickled batches, whose md5 sums torchvision checks."""
    base = folder / "cifar-10-batches-py"
    if not base.is_dir():
        return None
    files = (base, *sorted(base.iterdir()))

    def read(train: bool) -> tuple[np.ndarray, np.ndarray]:
        from torchvision.datasets import CIFAR10

        with warnings.catch_warnings():  # the original pickles give numpy 2.4 an integer where it wants a bool
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            dataset = CIFAR10(folder, train=train)
        return dataset.data.transpose(0, 3, 1, 2), np.array(dataset.targets)

    return Source(folder, (Shard(files, partial(read, True)),), (Shard(files, partial(read, False)),))


def idx_files(name: str, info: Dataset, folder: Path) -> Source | None:
    """Return MNIST or a set of its format in torchvision's layout: four idx files, plain or gzipped.

    name: torchvision's, of the folder. The folder may be read-only.
    """
    raw = folder / name / "raw"
    if not raw.is_dir():
        return None

    def shard(split: str) -> Shard:
        plain = [raw / f"{split}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
        images, labels = (path if path.is_file() else path.with_name(f"{path.name}.gz") for path in plain)
        return Shard((images, labels), lambda: (_read_idx(images)[:, None], _read_idx(labels)))

    return Source(folder, (shard("train"),), (shard("t10k"),))


def _read_idx(path: Path) -> np.ndarray:
    """Read an idx file of unsigned bytes: two zeros, the type (8), the rank, sizes as big-endian int32, the values."""
    with name_errors(path), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        content = file.read()
        if content[:3] != b"\0\0\x08":
            raise InputError(f"{path}: found {content[:4]!r}..., allowed: an idx file of unsigned bytes")
        shape = np.frombuffer(content, ">i4", content[3], offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def mat_files(info: Dataset, folder: Path) -> Source | None:
    """Return SVHN as published: train_32x32.mat and test_32x32.mat, in which the label 10 means 0."""
    train, test = (folder / f"{split}_32x32.mat" for split in ("train", "test"))
    if not (train.is_file() or test.is_file()):
        return None

    def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
        from scipy.io import loadmat, whosmat

        content = loadmat(path, variable_names=["X", "y"])
        if missing := [name for name in ("X", "y") if name not in content]:
            found = ", ".join(name for name, *_ in whosmat(path)) or "none"
            raise InputError(f"{path}: variable {missing[0]!r}: found the variables {found}, allowed: X and y")
        return np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1)), content["y"].reshape(-1) % 10

    train_shard, test_shard = (Shard((path,), partial(read, path)) for path in (train, test))
    return Source(folder, (train_shard,), (test_shard,))


def image_folders(info: Dataset, folder: Path) -> Source | None:
    """Tiny ImageNet as published: train/<wnid>/images/*.JPEG and val/images with val_annotations.txt.

    A label is the wnid's position in the sorted wnids.txt. Train images take turns by class, so that the first n are
    balanced. Validation images keep the order of the annotations.
    """
    wnids, annotations = folder / "wnids.txt", folder / "val" / "val_annotations.txt"
    if not (wnids.is_file() and annotations.is_file()):
        return None
    labels = {wnid: label for label, wnid in enumerate(sorted(wnids.read_text().split()))}
    classes = [sorted((folder / "train" / wnid / "images").glob("*.JPEG")) for wnid in labels]
    train = [(path, label) for turn in zip_longest(*classes) for label, path in enumerate(turn) if path]
    rows = [line.split("\t") for line in annotations.read_text().splitlines()]
    test = [(folder / "val" / "images" / name, labels.get(wnid, -1)) for name, wnid, *_ in rows]

    def shard(where: Path, images: list[tuple[Path, int]]) -> Shard:
        files = [path for path, _ in images]
        values = np.array([label for _, label in images], np.int64)
        return Shard(
            (where, wnids, *files), lambda: (_decode(info, zip(files, files, strict=True), len(files)), values)
        )

    return Source(folder, (shard(folder / "train", train),), (shard(annotations, test),))


def parquet_shards(info: Dataset, folder: Path) -> Source | None:
    """Hugging Face-style Parquet, <split>-00000-of-00002.parquet: encoded images and labels; shards may be missing."""
    (train, train_total), (test, test_total) = (_shards(info, folder, split) for split in ("train", info.test_split))
    if not train and not test:
        return None
    if not train or not test:
        raise InputError(f"{folder}: found one split without the other, allowed: {_parquet_files(info)}")
    return Source(folder, train, test, train_total, test_total)


def _parquet_files(info: Dataset) -> str:
    return f"train-00000-of-0000N.parquet with {info.test_split}-00000-of-0000N.parquet"


def _shards(info: Dataset, folder: Path, split: str) -> tuple[tuple[Shard, ...], int]:
    """Return the split's shards that exist, in order, and how many there should be (0 if none exists)."""
    names = [re.fullmatch(rf"{split}-\d+-of-(\d+)\.parquet", path.name) for path in sorted(folder.glob("*.parquet"))]
    totals = {name[0]: int(name[1]) for name in names if name}
    if len({*totals.values()}) > 1:
        raise InputError(f"{folder}: found {', '.join(totals)}, allowed: one set of shards in a folder")
    shards = tuple(Shard((folder / name,), partial(_read_parquet, info, folder / name)) for name in totals)
    return shards, max(totals.values(), default=0)


def _read_parquet(info: Dataset, path: Path) -> tuple[np.ndarray, np.ndarray]:
    encoded, labels = read_parquet(path, info.image_column)
    require_memory(path, len(labels) * prod(info.shape), path.stat().st_size)
    return _decode(info, encoded, len(labels)), labels


def _decode(info: Dataset, encoded: Iterable[tuple[object, BytesIO | Path]], count: int) -> np.ndarray:
    """Decode (name for errors, image) pairs to uint8 [N, C, H, W]; greyscale becomes RGB as needed, and the reverse."""
    channels, height, width = info.shape
    images = np.empty((count, *info.shape), np.uint8)
    for index, (where, file) in enumerate(encoded):  # one thread: for such small images the GIL makes threads useless
        with open_image(where, file) as image:
            if image.size != (width, height):
                raise InputError(f"{where}: {image.width} x {image.height} pixels, expected {width} x {height}")
            pixels = convert(image, where, "L" if channels == 1 else "RGB")
            images[index] = pixels.reshape(height, width, channels).transpose(2, 0, 1)
    return images


def sklearn_digits(info: Dataset, folder: Path) -> Source | None:
    """Return scikit-learn's digits, 0..16 scaled to 0..255; every fifth is a test image. They come with the package."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        return None

    def read(test: bool) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits

        values, labels = load_digits(return_X_y=True)
        is_in_split = (np.arange(len(labels)) % 5 == 0) == test
        images = np.round(values * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
        return images[is_in_split], labels[is_in_split]

    files = (Path(package.origin),)
    return Source(None, (Shard(files, partial(read, False)),), (Shard(files, partial(read, True)),))


def _fetch_by_torchvision(name: str, folder: Path) -> None:
    import torchvision.datasets

    getattr(torchvision.datasets, name)(folder, download=True)


def _fetch_svhn(folder: Path) -> None:
    from torchvision.datasets import SVHN

    for split in ("train", "test"):
        SVHN(folder / "svhn", split=split, download=True)


def _fetch_tiny_imagenet(folder: Path) -> None:
    from torchvision.datasets.utils import download_and_extract_archive

    download_and_extract_archive(TINY_IMAGENET_URL, folder, md5=TINY_IMAGENET_MD5, remove_finished=True)


@dataclass(frozen=True)
class Original:
    """The layout in which a data set is published. fetch: downloads it into a folder."""

    files: str
    layout: Layout
    fetch: Callable[[Path], None] | None = None


ORIGINALS = {
    "cifar10": Original("cifar-10-batches-py/", cifar_batches, partial(_fetch_by_torchvision, "CIFAR10")),
    "mnist": Original(
        "MNIST/raw/*-ubyte or *-ubyte.gz", partial(idx_files, "MNIST"), partial(_fetch_by_torchvision, "MNIST")
    ),
    "fashion-mnist": Original(
        "FashionMNIST/raw/*-ubyte or *-ubyte.gz",
        partial(idx_files, "FashionMNIST"),
        partial(_fetch_by_torchvision, "FashionMNIST"),
    ),
    "svhn": Original("train_32x32.mat, test_32x32.mat", mat_files, _fetch_svhn),
    "tiny-imagenet": Original("wnids.txt, train/, val/", image_folders, _fetch_tiny_imagenet),
    "digits": Original("the package scikit-learn", sklearn_digits),
}


def find(info: Dataset, root: Path) -> Source | None:
    """Return the first layout in the data set's folders under `root`, or in `root` itself; None if there is none.

    Raises InputError if a layout is there but files are missing or unreadable.
    """
    original = ORIGINALS.get(info.name)
    layouts = [*([original.layout] if original else []), parquet_shards]
    for folder in _folders(info, root):
        for layout in layouts:
            with name_errors(folder):
                if source := layout(info, folder):
                    return source
    return None


def fetch(info: Dataset, root: Path) -> Source:
    """Download the data set into `root`, with a progress bar, and return it.

    It is unpacked in a temporary folder and then moved, so an interrupted download leaves nothing behind. Raises
    InputError if that fails: offline, no known download, or `root` is not writable.
    """
    original = ORIGINALS.get(info.name)
    if original is None or original.fetch is None:
        raise not_found(info, root, "there is no download for it")
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root, prefix=".download-") as temporary:
            original.fetch(Path(temporary))
            for folder in Path(temporary).iterdir():
                if folder.is_dir():
                    folder.rename(root / folder.name)
    except Exception as error:  # one sentence for any error of the network, an archive or the file system
        reason = f"downloading it into {root.absolute()} failed ({type(error).__name__}: {str(error).strip()})"
        raise not_found(info, root, reason) from error
    if source := find(info, root):
        return source
    raise not_found(info, root, "the download did not contain it")


def _folders(info: Dataset, root: Path) -> list[Path]:
    return [*(root / folder for folder in info.folders), root]


def not_found(info: Dataset, root: Path, reason: str) -> InputError:
    """Return the error for a data set that was not found."""
    original = ORIGINALS.get(info.name)
    return InputError(
        f"{info.title} was not found, and {reason}.\n"
        f"Looked in: {', '.join(str(folder.absolute()) for folder in _folders(info, root))}\n"
        f"For: {f'{original.files}, or ' if original else ''}{_parquet_files(info)}\n"
        f"Set the directory by --data-dir or the environment variable CERDEQ_DATA."
    )
