"""Find the files of a data set and read them: one function for each layout.

A layout is a function of a data set's entry and a folder. It returns a Source if the folder holds its files, else None.
It decodes nothing yet. `find` tries a data set's own layout (ORIGINALS), then Hugging Face-style Parquet, in every
folder of its entry. A data set that comes as Parquet needs no code here.
"""

import gzip
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from baselines.datasets import Dataset
from harness.errors import InputError

TINY_IMAGENET_URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
TINY_IMAGENET_MD5 = "90528d7ca1a48142e341f4ef8d21d0de"

_MODES = {1: "L", 3: "RGB"}
_FORMATS = ("JPEG", "PNG", "WEBP")


class DataError(InputError):
    """A data set cannot be used. The message tells the user which file or folder, what is wrong, and what to do."""


@contextmanager
def name_errors(where: object) -> Iterator[None]:
    """Turn any exception inside into a DataError that names `where`."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{where}: cannot be read: {type(error).__name__}: {error}") from error


@dataclass(frozen=True)
class Shard:
    """Files that are read together.

    where: their name in error messages.
    read: returns images uint8 [N, C, H, W] and integer labels [N], not yet checked.
    """

    where: Path
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
    """Return CIFAR-10 in torchvision's layout: pickled batches, checked against the md5 sums of the originals."""
    base = folder / "cifar-10-batches-py"
    if not base.is_dir():
        return None
    files = tuple(sorted(base.iterdir()))

    def read(train: bool) -> tuple[np.ndarray, np.ndarray]:
        from torchvision.datasets import CIFAR10
        from torchvision.datasets.utils import check_integrity

        sums = [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], CIFAR10.meta["md5"])]
        for name, md5 in sums:
            if not check_integrity(base / name, md5):
                raise DataError(f"{base / name}: missing or damaged (md5 differs): remove {base} to download it again")
        with warnings.catch_warnings():  # the original pickles give numpy 2.4 an integer where it wants a bool
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            dataset = CIFAR10(folder, train=train)
        return dataset.data.transpose(0, 3, 1, 2), np.array(dataset.targets)

    return Source(folder, (Shard(base, files, lambda: read(True)),), (Shard(base, files, lambda: read(False)),))


def idx_files(info: Dataset, folder: Path) -> Source | None:
    """Return MNIST in torchvision's layout: four idx files, plain or gzipped. The folder may be read-only."""
    raw = folder / "MNIST" / "raw"
    if not raw.is_dir():
        return None

    def shard(split: str) -> Shard:
        images, labels = (_plain_or_gzip(raw / f"{split}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
        return Shard(images, (images, labels), lambda: (_read_idx(images)[:, None], _read_idx(labels)))

    return Source(folder, (shard("train"),), (shard("t10k"),))


def _plain_or_gzip(path: Path) -> Path:
    for candidate in (path, path.with_name(f"{path.name}.gz")):
        if candidate.is_file():
            return candidate
    raise DataError(f"{path.parent}: neither {path.name} nor {path.name}.gz is there")


def _read_idx(path: Path) -> np.ndarray:
    """Read an idx file of unsigned bytes: two zeros, the type (8), the rank, sizes as big-endian int32, the values."""
    with name_errors(path), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
        content = file.read()
        if content[:3] != b"\0\0\x08":
            raise DataError(f"{path}: not an idx file of unsigned bytes")
        shape = np.frombuffer(content, ">i4", content[3], offset=4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)


def image_folders(info: Dataset, folder: Path) -> Source | None:
    """Tiny ImageNet as published: train/<wnid>/images/*.JPEG and val/images with val_annotations.txt.

    A label is the wnid's position in the sorted wnids.txt. Train images take turns by class, so that the first n are
    balanced. Validation images keep the order of the annotations.
    """
    wnids, annotations = folder / "wnids.txt", folder / "val" / "val_annotations.txt"
    if not (wnids.is_file() and annotations.is_file() and (folder / "train").is_dir()):
        return None
    labels = {wnid: label for label, wnid in enumerate(sorted(wnids.read_text().split()))}
    rows = [line.split("\t")[:2] for line in annotations.read_text().splitlines()]
    for name in (*labels, *(name for name, _ in rows)):
        if Path(name).name != name:
            raise DataError(f"{folder}: found the file name {name!r}, which leads out of the folder")
    train = sorted(
        (turn, label, path)
        for wnid, label in labels.items()
        for turn, path in enumerate(sorted((folder / "train" / wnid / "images").glob("*.JPEG")))
    )
    test = [(folder / "val" / "images" / name, labels.get(wnid, -1)) for name, wnid in rows]

    def shard(where: Path, images: list[tuple[Path, int]]) -> Shard:
        files = tuple(path for path, _ in images)
        values = np.array([label for _, label in images], np.int64)
        return Shard(where, (wnids, annotations, *files), lambda: (_decode(info, [(p, p) for p in files]), values))

    return Source(folder, (shard(folder / "train", [(path, n) for _, n, path in train]),), (shard(annotations, test),))


def parquet_shards(info: Dataset, folder: Path) -> Source | None:
    """Hugging Face-style Parquet, <split>-00000-of-00002.parquet: encoded images and labels; shards may be missing."""
    (train, train_total), (test, test_total) = (_shards(info, folder, split) for split in ("train", info.test_split))
    if not train and not test:
        return None
    for shards, split in ((train, "train"), (test, info.test_split)):
        if not shards:
            raise DataError(f"{folder}: there is no shard of the {split} split ({split}-00000-of-0000N.parquet)")
    return Source(folder, train, test, train_total, test_total)


def _shards(info: Dataset, folder: Path, split: str) -> tuple[tuple[Shard, ...], int]:
    """Return the split's shards that exist, in order, and how many there should be (0 if none exists)."""
    numbered = []
    for path in sorted(folder.glob(f"{split}-*.parquet")):
        if match := re.fullmatch(rf"{split}-(\d+)-of-(\d+)\.parquet", path.name):
            numbered.append((path, int(match[1]), int(match[2])))
    total = numbered[0][2] if numbered else 0
    for path, index, of in numbered:
        if of != total or index >= total:
            raise DataError(f"{path}: does not belong with {numbered[0][0].name}: keep one set of shards in a folder")
    return tuple(Shard(path, (path,), partial(_read_parquet, info, path)) for path, _, _ in numbered), total


def _read_parquet(info: Dataset, path: Path) -> tuple[np.ndarray, np.ndarray]:
    import pyarrow.compute
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    for column in (info.image_column, "label"):
        if column not in table.column_names:
            raise DataError(f"{path}: no column {column!r}, only {', '.join(table.column_names)}")
        if table[column].null_count:
            raise DataError(f"{path}: column {column!r} has empty rows")
    encoded = pyarrow.compute.struct_field(table[info.image_column], "bytes").to_pylist()
    images = _decode(info, [(f"{path}, row {row}", BytesIO(content)) for row, content in enumerate(encoded)])
    return images, table["label"].to_numpy()


def _decode(info: Dataset, encoded: Sequence[tuple[object, BytesIO | Path]]) -> np.ndarray:
    """Decode (name for errors, image) pairs to uint8 [N, C, H, W]; greyscale becomes RGB as needed, and the reverse."""
    channels, height, width = info.shape
    images = np.empty((len(encoded), *info.shape), np.uint8)
    for index, (where, file) in enumerate(encoded):  # one thread: for such small images the GIL makes threads useless
        from PIL import Image  # imported here, since machines that train single trials may lack it

        with name_errors(where), Image.open(file, formats=_FORMATS) as image:
            if image.size != (width, height):
                raise DataError(f"{where}: {image.width} x {image.height} pixels, expected {width} x {height}")
            pixels = np.asarray(image.convert(_MODES[channels]))
            images[index] = pixels.reshape(height, width, channels).transpose(2, 0, 1)
    return images


def sklearn_digits(info: Dataset, folder: Path) -> Source | None:
    """Return scikit-learn's digits, 0..16 scaled to 0..255; every fifth is a test image. They come with the package."""
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        return None
    where = Path(package.origin)

    def read(test: bool) -> tuple[np.ndarray, np.ndarray]:
        from sklearn.datasets import load_digits

        values, labels = load_digits(return_X_y=True)
        chosen = (np.arange(len(labels)) % 5 == 0) == test
        images = np.round(values * 255 / 16).astype(np.uint8).reshape(-1, 1, 8, 8)
        return images[chosen], labels[chosen]

    return Source(None, (Shard(where, (where,), lambda: read(False)),), (Shard(where, (where,), lambda: read(True)),))


def _fetch_by_torchvision(name: str, folder: Path) -> None:
    import torchvision.datasets

    getattr(torchvision.datasets, name)(folder, download=True)


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
    "mnist": Original("MNIST/raw/*-ubyte or *-ubyte.gz", idx_files, partial(_fetch_by_torchvision, "MNIST")),
    "tiny-imagenet": Original("wnids.txt, train/, val/", image_folders, _fetch_tiny_imagenet),
    "digits": Original("the package scikit-learn", sklearn_digits),
}


def find(info: Dataset, root: Path) -> Source | None:
    """Return the first layout in the data set's folders under `root`, or in `root` itself; None if there is none.

    Raises DataError if a layout is there but files are missing or unreadable.
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
    DataError if that fails: offline, no known download, or `root` is not writable.
    """
    original = ORIGINALS.get(info.name)
    if original is None or original.fetch is None:
        raise DataError(not_found_message(info, root, "there is no download for it"))
    try:
        root.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=root, prefix=".download-") as temporary:
            original.fetch(Path(temporary))
            for folder in Path(temporary).iterdir():
                if folder.is_dir():
                    folder.rename(root / folder.name)
    except Exception as error:  # one sentence for any error of the network, an archive or the file system
        reason = f"downloading it into {root.absolute()} failed ({type(error).__name__}: {str(error).strip()})"
        raise DataError(not_found_message(info, root, reason)) from error
    source = find(info, root)
    if source is None:
        raise DataError(not_found_message(info, root, "the download did not contain it"))
    return source


def _folders(info: Dataset, root: Path) -> list[Path]:
    return [*(root / folder for folder in info.folders), root]


def not_found_message(info: Dataset, root: Path, reason: str) -> str:
    """Return the error message for a data set that was not found."""
    original = ORIGINALS.get(info.name)
    parquet = f"train-00000-of-0000N.parquet with {info.test_split}-00000-of-0000N.parquet"
    return (
        f"{info.title} was not found, and {reason}.\n"
        f"Looked in: {', '.join(str(folder.absolute()) for folder in _folders(info, root))}\n"
        f"For: {f'{original.files}, or ' if original else ''}{parquet}\n"
        f"Set the directory by --data-dir or the environment variable CERDEQ_DATA."
    )
