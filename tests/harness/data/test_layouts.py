"""Every layout is read as it is published, and a broken file is named with what is wrong."""

import re
from dataclasses import replace

import malformed
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fake_data import (
    PARQUET,
    SIZES,
    check_arrays,
    encoded,
    fake_cifar,
    fake_mnist,
    fake_parquet,
    fake_svhn,
    fake_tiny_imagenet,
    pixels,
    write_idx,
    write_parquet,
)

from baselines.datasets import DATASETS
from harness.common.errors import InputError
from harness.data import load


def test_cifar_is_read_in_torchvision_s_layout_and_a_damaged_batch_is_refused(small, monkeypatch, tmp_path, recwarn):
    arrays = fake_cifar(tmp_path, monkeypatch)
    data = load("cifar10", tmp_path)
    check_arrays(data, arrays)
    assert data.directory == tmp_path
    assert not recwarn.list
    with open(tmp_path / "cifar-10-batches-py" / "data_batch_3", "ab") as file:
        file.write(b"!")
    with pytest.raises(InputError, match=r"cifar-10-batches-py: cannot be read: .*corrupted"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize(("suffix", "folder"), [("", ""), (".gz", "mnist")])
def test_idx_files_are_read_where_nothing_can_be_written(small, tmp_path, suffix, folder):
    root = tmp_path / "data"
    arrays = fake_mnist(root / folder, suffix)
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for path in folders:
        path.chmod(0o555)
    try:
        check_arrays(load("mnist", root), arrays)
    finally:
        for path in folders:
            path.chmod(0o755)


def test_fashion_mnist_is_read_from_its_own_folder(small, tmp_path):
    fake_mnist(tmp_path)
    with pytest.raises(InputError, match=r"(?s)Fashion-MNIST was not found.*FashionMNIST/raw"):
        load("fashion-mnist", tmp_path, writes=False)
    arrays = fake_mnist(tmp_path, folder="FashionMNIST")
    check_arrays(load("fashion-mnist", tmp_path), arrays)


def test_svhn_is_read_as_published(small, tmp_path):
    arrays = fake_svhn(tmp_path / "svhn")
    check_arrays(load("svhn", tmp_path), arrays)
    (tmp_path / "svhn/test_32x32.mat").unlink()
    with pytest.raises(InputError, match=r"test_32x32\.mat: cannot be read: FileNotFoundError"):
        load("svhn", tmp_path)
    (tmp_path / "svhn/test_32x32.mat").write_bytes(b"no file of MATLAB")
    with pytest.raises(InputError, match=r"test_32x32\.mat: cannot be read"):
        load("svhn", tmp_path)


def test_idx_files_that_do_not_fit_together_are_refused(small, tmp_path):
    fake_mnist(tmp_path)
    labels = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte.gz"
    write_idx(labels, np.zeros(3))
    with pytest.raises(InputError, match=r"t10k-images.*: labels are uint8 \[3\], expected integers \[4\]"):
        load("mnist", tmp_path)
    labels.unlink()
    with pytest.raises(InputError, match=r"t10k-labels-idx1-ubyte\.gz: cannot be read: FileNotFoundError"):
        load("mnist", tmp_path)


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
    rows = [{"bytes": encoded(image[:1] if index == 3 else image)} for index, image in enumerate(images)]
    pq.write_table(pa.table({"img": rows, "label": labels}), tmp_path / PARQUET / "train-00000-of-00002.parquet")
    np.testing.assert_array_equal(load("cifar10", tmp_path).train.images[:10], grey)

    for split, count in zip(("train", "test"), SIZES["mnist"], strict=True):
        images, labels = pixels("mnist", count)
        colour = images.repeat(3, axis=1)
        write_parquet(tmp_path / "mnist" / f"{split}-00000-of-00001.parquet", colour, labels, column="image")
    np.testing.assert_array_equal(load("mnist", tmp_path).test.images, images)


def test_tiny_imagenet_is_read_as_published(small, tmp_path):
    fake_tiny_imagenet(tmp_path / "tiny-imagenet-200")
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
    with pytest.raises(InputError, match=r"val_annotations\.txt: labels from -1 to 0, expected 0 to 199"):
        load("tiny-imagenet", tmp_path)
    annotations.write_text(good)
    broken = tmp_path / "train" / "n01" / "images" / "n01_2.JPEG"
    broken.write_bytes(b"not a picture")
    with pytest.raises(InputError, match=re.escape(str(broken))):
        load("tiny-imagenet", tmp_path)
    broken.unlink()
    with pytest.raises(InputError, match="7 images in 1 of 1 shards, expected 8 in the whole split"):
        load("tiny-imagenet", tmp_path)


def rows(size=32, count=10):
    return [{"bytes": encoded(np.zeros((3, size, size), np.uint8)), "path": ""}] * count


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": rows(), "label": [0] * 10}, "column 'img': found the columns image, label, allowed: img, label"),
        ({"img": [b"flat"] * 10, "label": [0] * 10}, "row 0: found b'flat'..., allowed: an encoded image, such as PNG"),
        ({"img": rows(), "label": [None] + [0] * 9}, "column 'label', row 0: found null"),
        ({"img": rows(), "label": [0.5] * 10}, "column 'label': found double, allowed: integers"),
        ({"img": rows(), "label": [10] * 10}, "labels from 10 to 10, expected 0 to 9"),
        ({"img": rows()[:9] + rows(31, 1), "label": [0] * 10}, "row 9: 31 x 31 pixels, expected 32 x 32"),
        ({"img": rows(count=9), "label": [0] * 9}, "19 images in 2 of 2 shards, expected 20"),
    ],
)
def test_a_broken_shard_is_named_with_what_is_wrong(small, tmp_path, columns, message):
    fake_parquet(tmp_path)
    path = tmp_path / PARQUET / "train-00000-of-00002.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(InputError, match=message) as error:
        load("cifar10", tmp_path)
    assert str(path) in str(error.value)
    assert not (tmp_path / "cache").exists(), "nothing wrong is ever cached"


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_malformed_file_is_named(small, tmp_path, name):
    if name == "mnist":
        fake_mnist(tmp_path, suffix="")
    else:
        fake_parquet(tmp_path)
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        good = path.read_bytes()
        cases = malformed.of_bytes(good)
        del cases["a bit flipped"]  # makes other data
        if name == "mnist":
            cases["of less than nothing"] = b"\0\0\x08\x03" + b"\xff" * 12 + good[16:]
        for content in cases.values():
            path.write_bytes(content)
            with pytest.raises(InputError, match=path.name):
                load(name, tmp_path)
        path.write_bytes(good)
    assert load(name, tmp_path)
