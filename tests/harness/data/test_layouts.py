"""Every layout is read as it is published, and a broken file is named with what is wrong."""

import gzip
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_data import (
    SIZES,
    check_arrays,
    encoded,
    fake_cifar,
    fake_mnist,
    fake_parquet,
    fake_tiny_imagenet,
    pixels,
    write_idx,
    write_parquet,
)

from baselines.datasets import DATASETS
from harness.data import DataError, load


def test_cifar_is_read_as_torchvision_keeps_it(small, monkeypatch, tmp_path, recwarn):
    arrays = fake_cifar(tmp_path, monkeypatch)
    data = load("cifar10", tmp_path)
    check_arrays(data, arrays)
    assert data.directory == tmp_path
    assert not recwarn.list


def test_a_damaged_batch_is_named(small, monkeypatch, tmp_path):
    fake_cifar(tmp_path, monkeypatch)
    with open(tmp_path / "cifar-10-batches-py" / "data_batch_3", "ab") as file:
        file.write(b"!")
    with pytest.raises(DataError, match="data_batch_3: missing or damaged"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("folder", ["", "mnist"])
def test_idx_files_are_read_where_nothing_can_be_written(small, tmp_path, suffix, folder):
    root = tmp_path / "data"
    arrays = fake_mnist(root / folder, suffix)
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    before = {path: path.stat().st_mtime_ns for path in folders}
    for path in folders:
        path.chmod(0o555)
    try:
        check_arrays(load("mnist", root), arrays)
        assert {path: path.stat().st_mtime_ns for path in folders} == before
    finally:
        for path in folders:
            path.chmod(0o755)


def test_broken_idx_files_are_named(small, tmp_path):
    fake_mnist(tmp_path)
    raw = tmp_path / "MNIST" / "raw"
    labels = raw / "t10k-labels-idx1-ubyte.gz"
    content = labels.read_bytes()
    for damaged in (content[:-12], b"not gzip", gzip.compress(b"not idx"), gzip.compress(bytes([0, 0, 8, 1, 0, 0, 9]))):
        labels.write_bytes(damaged)
        with pytest.raises(DataError, match=re.escape(str(labels))):
            load("mnist", tmp_path)
    write_idx(labels, np.zeros(3))
    with pytest.raises(DataError, match=r"t10k-images.*: 4 images but labels \[3\]"):
        load("mnist", tmp_path)
    labels.unlink()
    with pytest.raises(DataError, match=r"neither t10k-labels-idx1-ubyte nor t10k-labels-idx1-ubyte\.gz"):
        load("mnist", tmp_path)


@pytest.mark.parametrize("format", ["PNG", "WEBP"])
def test_parquet_shards_are_read_in_order(small, tmp_path, format):
    arrays = fake_parquet(tmp_path, format=format)
    data = load("cifar10", tmp_path)
    check_arrays(data, arrays)
    assert data.directory == tmp_path / "cifar10" / "plain_text"
    assert data.summary()["complete"] and data.train.total == 2


@pytest.mark.parametrize(
    ("name", "folder"),
    [(name, folder) for name, info in DATASETS.items() if info.folders for folder in ("", *info.folders)],
)
def test_every_data_set_is_read_as_parquet_from_every_folder(monkeypatch, tmp_path, name, folder):
    info = replace(DATASETS[name], train_size=6, test_size=4)
    monkeypatch.setitem(DATASETS, name, info)
    train, test = pixels(name, 6), pixels(name, 4, seed=1)
    for split, (images, labels) in (("train", train), (info.test_split, test)):
        write_parquet(tmp_path / folder / f"{split}-00000-of-00001.parquet", images, labels, info.image_column)
    data = load(name, tmp_path)
    check_arrays(data, (*train, *test))
    assert data.directory == tmp_path / folder and data.summary()["complete"]


def test_greyscale_becomes_rgb_and_colour_grey_as_the_entry_wants(small, tmp_path):
    images, labels = pixels("cifar10", 10)
    grey = images.copy()
    grey[3] = grey[3, :1]
    fake_parquet(tmp_path)
    path = tmp_path / "cifar10" / "plain_text" / "train-00000-of-00002.parquet"
    rows = [{"bytes": encoded(image[:1] if index == 3 else image)} for index, image in enumerate(images)]
    pq.write_table(pa.table({"img": rows, "label": labels}), path)
    np.testing.assert_array_equal(load("cifar10", tmp_path).train.images[:10], grey)

    for split, count in zip(("train", "test"), SIZES["mnist"], strict=True):
        images, labels = pixels("mnist", count)
        colour = images.repeat(3, axis=1)
        write_parquet(tmp_path / "mnist" / f"{split}-00000-of-00001.parquet", colour, labels, column="image")
    np.testing.assert_array_equal(load("mnist", tmp_path).test.images, images)


@pytest.mark.parametrize("folder", ["", "tiny-imagenet", "tiny-imagenet-200"])
def test_tiny_imagenet_is_read_as_published(small, tmp_path, folder):
    fake_tiny_imagenet(tmp_path / folder)
    data = load("tiny-imagenet", tmp_path)
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 1, 0, 0], "classes take turns"
    assert data.train.images.shape == (8, 3, 64, 64)
    assert data.train.images[:, 2, 5, 7].tolist() == [0, 100, 10, 110, 20, 120, 30, 40]
    assert data.test.labels.tolist() == [1, 0, 0, 1]
    assert data.test.images[:, 1, 63, 0].tolist() == [0, 50, 100, 150]


def test_broken_image_folders_are_named(small, tmp_path):
    fake_tiny_imagenet(tmp_path)
    annotations = tmp_path / "val" / "val_annotations.txt"
    good = annotations.read_text()
    annotations.write_text(good.replace("n02", "n99"))
    with pytest.raises(DataError, match=r"val_annotations\.txt: labels from -1 to 0, expected 0 to 199"):
        load("tiny-imagenet", tmp_path)
    annotations.write_text(good)
    broken = tmp_path / "train" / "n01" / "images" / "n01_2.JPEG"
    broken.write_bytes(b"not a picture")
    with pytest.raises(DataError, match=re.escape(str(broken))):
        load("tiny-imagenet", tmp_path)
    broken.unlink()
    with pytest.raises(DataError, match="7 images in 1 of 1 shards, expected 8 in the whole split"):
        load("tiny-imagenet", tmp_path)
    (tmp_path / "val" / "images" / "val_1.JPEG").unlink()
    with pytest.raises(DataError, match=r"val_1\.JPEG"):
        load("tiny-imagenet", tmp_path)


def shard_with(**columns):
    def write(path):
        pq.write_table(pa.table(columns), path)

    return write


def good_rows(size=32, count=10):
    return [{"bytes": encoded(np.zeros((3, size, size), np.uint8)), "path": ""}] * count


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: path.write_bytes(b"PAR1 not really"), "cannot be read: ArrowInvalid"),
        (shard_with(image=good_rows(), label=[0] * 10), "no column 'img', only image, label"),
        (shard_with(img=good_rows(), fine_label=[0] * 10), "no column 'label'"),
        (shard_with(img=[b"flat"] * 10, label=[0] * 10), "cannot be read: Arrow"),
        (shard_with(img=good_rows(), label=[None] + [0] * 9), "column 'label' has empty rows"),
        (shard_with(img=good_rows(), label=[0.5] * 10), "labels are float64, expected integers"),
        (shard_with(img=good_rows(), label=[10] * 10), "labels from 10 to 10, expected 0 to 9"),
        (shard_with(img=good_rows()[:9] + good_rows(31, 1), label=[0] * 10), "row 9: 31 x 31 pixels, expected 32 x 32"),
        (shard_with(img=[*good_rows(count=9), {"bytes": b"GIF89a"}], label=[0] * 10), "row 9: cannot be read"),
        (shard_with(img=[*good_rows(count=9), {"bytes": None}], label=[0] * 10), "row 9: cannot be read"),
        (shard_with(img=good_rows(), label=pa.array(["1"] * 10)), "labels are"),
        (
            shard_with(img=pa.array([], pa.struct([("bytes", pa.binary())])), label=pa.array([], pa.int64())),
            "no images",
        ),
        (shard_with(img=good_rows(count=9), label=[0] * 9), "19 images in 2 of 2 shards, expected 20"),
    ],
)
def test_a_broken_shard_is_named_with_what_is_wrong(small, tmp_path, write, message):
    fake_parquet(tmp_path)
    path = tmp_path / "cifar10" / "plain_text" / "train-00000-of-00002.parquet"
    write(path)
    with pytest.raises(DataError, match=message) as error:
        load("cifar10", tmp_path)
    assert str(path) in str(error.value)
    assert not (tmp_path / "cache").exists(), "nothing wrong is ever cached"
