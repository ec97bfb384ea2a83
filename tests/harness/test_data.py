"""Each layout is faked small in tmp_path, with the entry's sizes cut to match; the real data sets are read where
CERDEQ_DATA says they are. Nothing here reaches the network."""

import gzip
import hashlib
import io
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from baselines.datasets import DATASETS
from harness.data import DataError, data_directory, layouts, load

REAL = os.environ.get("CERDEQ_DATA")
SIZES = {"cifar10": (20, 6), "mnist": (9, 4), "tiny-imagenet": (8, 4)}


@pytest.fixture(autouse=True)
def isolated(monkeypatch, tmp_path):
    """No network, no cache but an empty one, no ./data but an empty one."""

    def blocked(*_args, **_kwargs):
        raise OSError("blocked by the test")

    monkeypatch.setattr(socket, "getaddrinfo", blocked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CERDEQ_DATA", raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    yield
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)  # pytest keeps tmp_path, and the real sets are large


@pytest.fixture
def small(monkeypatch):
    """Entries with the sizes of the fakes."""
    for name, (train, test) in SIZES.items():
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], train_size=train, test_size=test))


def pixels(name, count, seed=0):
    """Random images uint8 [count, C, H, W] and labels [count] of the data set's shape, with a 0 label first."""
    rng = np.random.default_rng(seed)
    info = DATASETS[name]
    labels = rng.integers(0, info.classes, count)
    labels[0] = 0
    return rng.integers(0, 256, (count, *info.shape), dtype=np.uint8), labels


def encoded(image, format="PNG"):
    """One image [C, H, W] as a file's bytes."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
    picture.save(buffer, format, lossless=True)
    return buffer.getvalue()


def write_parquet(path, images, labels, column="img", format="PNG"):
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"bytes": encoded(image, format), "path": f"{index}.{format}"} for index, image in enumerate(images)]
    pq.write_table(pa.table({column: rows, "label": pa.array(labels, pa.int64())}), path)


def fake_parquet(root, shards=2, format="PNG"):
    """CIFAR-10 as Parquet: 20 train images in two shards (as many written as asked for), 6 test images."""
    folder = root / "cifar10" / "plain_text"
    images, labels = pixels("cifar10", 20)
    for shard in range(shards):
        part = slice(10 * shard, 10 * shard + 10)
        write_parquet(folder / f"train-0000{shard}-of-00002.parquet", images[part], labels[part], format=format)
    test_images, test_labels = pixels("cifar10", 6, seed=1)
    write_parquet(folder / "test-00000-of-00001.parquet", test_images, test_labels, format=format)
    return images, labels, test_images, test_labels


def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
    content = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def fake_mnist(root, suffix=".gz"):
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    arrays = []
    for seed, (split, count) in enumerate(zip(("train", "t10k"), SIZES["mnist"], strict=True)):
        images, labels = pixels("mnist", count, seed)
        write_idx(raw / f"{split}-images-idx3-ubyte{suffix}", images[:, 0])
        write_idx(raw / f"{split}-labels-idx1-ubyte{suffix}", labels)
        arrays += [images, labels]
    return arrays


def fake_cifar(root, monkeypatch):
    """torchvision's layout, with pickles as the originals have them and torchvision's md5 sums set to theirs."""
    from torchvision.datasets import CIFAR10

    base = root / CIFAR10.base_folder
    base.mkdir(parents=True)
    images, labels = pixels("cifar10", 20)
    test_images, test_labels = pixels("cifar10", 6, seed=1)

    def write(name, content):
        # The originals hold dtype('u1', 0, 1), where numpy has written False and True since.
        data = pickle.dumps(content, protocol=2).replace(b"\x89\x88\x87R", b"K\x00K\x01\x87R")
        (base / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def batch(name, images, labels):
        return [name, write(name, {"data": images.reshape(len(images), -1), "labels": labels.tolist()})]

    train = [batch(f"data_batch_{i + 1}", images[4 * i : 4 * i + 4], labels[4 * i : 4 * i + 4]) for i in range(5)]
    monkeypatch.setattr(CIFAR10, "train_list", train)
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch", test_images, test_labels)])
    names = write("batches.meta", {"label_names": [str(label) for label in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": names})
    return images, labels, test_images, test_labels


def fake_tiny_imagenet(root):
    """Two classes whose wnids stand unsorted in wnids.txt; 5 and 3 train images of a constant colour, 4 test images."""
    for wnid, count, base in (("n02", 3, 100), ("n01", 5, 0)):
        images = root / "train" / wnid / "images"
        images.mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", (64, 64), (base + 10 * index,) * 3).save(images / f"{wnid}_{index}.JPEG")
    images = root / "val" / "images"
    images.mkdir(parents=True)
    lines = []
    for index, wnid in enumerate(("n02", "n01", "n01", "n02")):
        Image.new("L", (64, 64), 50 * index).save(images / f"val_{index}.JPEG")
        lines.append(f"val_{index}.JPEG\t{wnid}\t0\t0\t63\t63\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("n02\nn01\n")


def check_arrays(data, arrays):
    images, labels, test_images, test_labels = arrays
    for split, wanted_images, wanted_labels in ((data.train, images, labels), (data.test, test_images, test_labels)):
        assert split.images.dtype == torch.uint8 and split.labels.dtype == torch.int64
        assert split.images.is_contiguous()
        np.testing.assert_array_equal(split.images, wanted_images)
        np.testing.assert_array_equal(split.labels, wanted_labels)


def cache_files(tmp_path):
    return sorted((tmp_path / "cache" / "cerdeq").iterdir())


def test_digits_are_split_by_every_fifth_and_scaled_to_bytes():
    from sklearn.datasets import load_digits

    data = load("digits", "nowhere")
    values, labels = load_digits(return_X_y=True)
    assert len(data.train) == 1437 and len(data.test) == 360
    np.testing.assert_array_equal(data.test.labels, labels[::5])
    np.testing.assert_array_equal(data.train.labels[:4], labels[1:5])
    assert data.test.images[0].flatten().tolist() == [round(value * 255 / 16) for value in values[0]]
    assert data.summary() == {
        "name": "digits",
        "fingerprint": data.fingerprint,
        "directory": None,
        "complete": True,
        "train_images": 1437,
        "train_shards_found": 1,
        "train_shards_total": 1,
        "test_images": 360,
        "test_shards_found": 1,
        "test_shards_total": 1,
    }


def test_cifar_as_torchvision_keeps_it(small, monkeypatch, tmp_path, recwarn):
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


def test_a_missing_shard_is_told_and_a_part_never_called_the_whole(small, tmp_path):
    images, *_ = fake_parquet(tmp_path, shards=1)
    data = load("cifar10", tmp_path)
    np.testing.assert_array_equal(data.train.images, images[:10])
    assert (data.train.found, data.train.total, data.train.complete, data.test.complete) == (1, 2, False, True)
    assert data.summary()["complete"] is False
    told = r"1 of 2 train shards found \(10 of 20 images\): set train_images to at most 10, not all"
    with pytest.raises(DataError, match=told):
        data.training_images(None)
    with pytest.raises(DataError, match=r"set train_images to at most 7, not 8"):
        data.training_images(8, validation=3)
    assert len(data.training_images(10)[0]) == 10
    assert len(data.test_images()) == 6

    whole = fake_parquet(tmp_path)
    again = load("cifar10", tmp_path)
    check_arrays(again, whole)
    assert again.summary()["complete"] and again.fingerprint != data.fingerprint


def test_an_incomplete_test_split_needs_a_number(small, tmp_path):
    fake_parquet(tmp_path)
    folder = tmp_path / "cifar10" / "plain_text"
    path = folder / "test-00000-of-00001.parquet"
    write_parquet(folder / "test-00001-of-00002.parquet", *(array[:3] for array in pixels("cifar10", 6, seed=1)))
    with pytest.raises(DataError, match=r"test-00001-of-00002\.parquet: does not belong with test-00000-of-00001"):
        load("cifar10", tmp_path)
    path.unlink()
    data = load("cifar10", tmp_path)
    with pytest.raises(DataError, match=r"1 of 2 test shards found \(3 of 6 images\): set test_images to at most 3"):
        data.test_images()
    assert len(data.test_images(2)) == 2
    (folder / "test-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match=r"no shard of the test split"):
        load("cifar10", tmp_path)


def test_training_and_validation_images_do_not_overlap(small, tmp_path):
    images, labels, *_ = fake_parquet(tmp_path)
    data = load("cifar10", tmp_path)
    train, held_out = data.training_images(None, validation=5)
    np.testing.assert_array_equal(train.images, images[:15])
    np.testing.assert_array_equal(held_out.images, images[15:])
    np.testing.assert_array_equal(held_out.labels, labels[15:])
    train, held_out = data.training_images(4, validation=16)
    np.testing.assert_array_equal(train.labels, labels[:4])
    assert len(held_out) == 16
    assert data.training_images(20)[1] is None
    for wanted, validation in ((21, 0), (5, 16), (0, 0)):
        with pytest.raises(DataError, match=f"train_images to at most {20 - validation}, not {wanted}"):
            data.training_images(wanted, validation)
    with pytest.raises(DataError, match="validation_images 20 leaves none of 20"):
        data.training_images(None, validation=20)
    with pytest.raises(DataError, match="test_images to at most 6, not 7"):
        data.test_images(7)


@pytest.mark.parametrize("folder", ["", "tiny-imagenet", "tiny-imagenet-200"])
def test_tiny_imagenet_as_published(small, tmp_path, folder):
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


def test_the_cache_stands_in_for_decoding_until_a_file_changes(small, monkeypatch, tmp_path):
    arrays = fake_parquet(tmp_path)
    first = load("cifar10", tmp_path)
    (cache,) = cache_files(tmp_path)
    monkeypatch.setattr(layouts, "_decode", None)
    second = load("cifar10", tmp_path)
    check_arrays(second, arrays)
    assert second.fingerprint == first.fingerprint and second.summary() == first.summary()
    os.utime(tmp_path / "cifar10" / "plain_text" / "test-00000-of-00001.parquet", ns=(1, 1))
    with pytest.raises(DataError, match="not callable"):
        load("cifar10", tmp_path)
    assert cache_files(tmp_path) == [cache]


def test_tensors_from_the_cache_can_be_written_to_without_touching_it(small, tmp_path):
    arrays = fake_parquet(tmp_path)
    load("cifar10", tmp_path)
    load("cifar10", tmp_path).train.images.zero_()
    check_arrays(load("cifar10", tmp_path), arrays)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "other tensors", "other shape", "no metadata"])
def test_a_damaged_cache_is_built_again(small, tmp_path, damage):
    from safetensors.torch import load_file, save_file

    arrays = fake_parquet(tmp_path)
    fingerprint = load("cifar10", tmp_path).fingerprint
    (cache,) = cache_files(tmp_path)
    content, tensors = cache.read_bytes(), load_file(cache)
    if damage in ("other tensors", "other shape", "no metadata"):
        tensors["train_labels"] = tensors["train_labels"][: 20 if damage == "no metadata" else 19].clone()
        kept = {"train_labels": tensors["train_labels"]} if damage == "other tensors" else tensors
        save_file(kept, cache, None if damage == "no metadata" else {"fingerprint": fingerprint})
    else:
        cache.write_bytes({"truncated": content[:-100], "empty": b"", "garbage": b"garbage" * 99}[damage])
    data = load("cifar10", tmp_path)
    check_arrays(data, arrays)
    assert data.fingerprint == fingerprint
    assert cache_files(tmp_path) == [cache] and cache.read_bytes() == content


def test_without_a_cache_it_goes_on_and_warns(small, monkeypatch, tmp_path):
    arrays = fake_parquet(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="CIFAR-10 is decoded anew each time"):
        check_arrays(load("cifar10", tmp_path), arrays)


def test_the_fingerprint_is_of_the_content_and_not_of_the_files(small, monkeypatch, tmp_path):
    fake_parquet(tmp_path / "a", format="PNG")
    fake_parquet(tmp_path / "b", format="WEBP")
    fake_cifar(tmp_path / "c", monkeypatch)
    prints = [load("cifar10", tmp_path / root).fingerprint for root in "abc"]
    assert len(set(prints)) == 1 and re.fullmatch("[0-9a-f]{16}", prints[0])
    images, labels = pixels("cifar10", 20)
    write_parquet(
        tmp_path / "b" / "cifar10" / "plain_text" / "train-00000-of-00002.parquet", images[:10], labels[:10][::-1]
    )
    assert load("cifar10", tmp_path / "b").fingerprint != prints[0]


def test_data_directory_is_option_then_environment_then_data(monkeypatch, tmp_path):
    assert data_directory() == Path("data")
    monkeypatch.setenv("CERDEQ_DATA", "")
    assert data_directory(None) == Path("data")
    monkeypatch.setenv("CERDEQ_DATA", str(tmp_path))
    assert data_directory() == tmp_path
    assert data_directory("elsewhere") == Path("elsewhere")
    monkeypatch.setenv("HOME", "/home/someone")
    assert data_directory("~/sets") == Path("/home/someone/sets")


def test_load_looks_where_data_directory_says(small, monkeypatch, tmp_path):
    option, environment, default = (fake_mnist(tmp_path / "option"), tmp_path / "environment", Path("data"))
    fake_parquet(environment)
    fake_tiny_imagenet(default / "tiny-imagenet")
    check_arrays(load("mnist", tmp_path / "option"), option)
    assert load("tiny-imagenet").directory == default / "tiny-imagenet"
    monkeypatch.setenv("CERDEQ_DATA", str(environment))
    assert load("cifar10").directory == environment / "cifar10" / "plain_text"


def test_an_unknown_name_lists_the_known():
    with pytest.raises(DataError, match="dataset: found 'cifar100', allowed: cifar10, mnist, tiny-imagenet, digits"):
        load("cifar100")


@pytest.mark.parametrize("name", ["cifar10", "mnist", "tiny-imagenet"])
def test_missing_and_offline_says_where_it_looked_and_what_to_do(monkeypatch, tmp_path, name):
    with pytest.raises(DataError, match="blocked by the test") as error:
        load(name, tmp_path / "sets")
    message = str(error.value)
    for folder in DATASETS[name].folders:
        assert str(tmp_path / "sets" / folder) in message
    assert layouts.ORIGINALS[name].files in message
    assert f"{DATASETS[name].test_split}-00000-of-0000N.parquet" in message
    assert "--data-dir" in message and "CERDEQ_DATA" in message
    assert not list((tmp_path / "sets").iterdir()), "no half download stays"


def test_a_directory_that_cannot_be_written_to_is_an_error_of_the_same_kind(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"CIFAR-10 was not found, and downloading it into .* failed"):
        load("cifar10", tmp_path / "file")


def test_a_parquet_only_data_set_needs_its_entry_alone(monkeypatch, tmp_path):
    entry = replace(DATASETS["cifar10"], name="new", title="New", folders=("new",), train_size=20, test_size=6)
    monkeypatch.setitem(DATASETS, "new", entry)
    with pytest.raises(DataError, match="New was not found, and there is no download for it"):
        load("new", tmp_path)
    arrays = fake_parquet(tmp_path)
    (tmp_path / "cifar10" / "plain_text").rename(tmp_path / "new")
    check_arrays(load("new", tmp_path), arrays)


def test_tiny_imagenet_is_downloaded_unpacked_and_found_again(small, monkeypatch, tmp_path):
    fake_tiny_imagenet(tmp_path / "server" / "tiny-imagenet-200")
    archive = Path(shutil.make_archive(str(tmp_path / "tiny"), "zip", tmp_path / "server"))
    monkeypatch.setattr(layouts, "TINY_IMAGENET_URL", archive.as_uri())
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", lambda url, path: shutil.copy(archive, path))
    monkeypatch.setattr(layouts, "TINY_IMAGENET_MD5", "0" * 32)
    with pytest.raises(DataError, match="File not found or corrupted"):
        load("tiny-imagenet", tmp_path / "sets")
    monkeypatch.setattr(layouts, "TINY_IMAGENET_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    first = load("tiny-imagenet", tmp_path / "sets")
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["tiny-imagenet-200"]
    archive.unlink()
    assert load("tiny-imagenet", tmp_path / "sets").fingerprint == first.fingerprint


def test_cifar_is_downloaded_by_torchvision_and_moved_into_place(small, monkeypatch, tmp_path):
    from torchvision.datasets import CIFAR10

    arrays = fake_cifar(tmp_path / "server", monkeypatch)

    def download(self):
        shutil.copytree(tmp_path / "server", self.root, dirs_exist_ok=True)
        (Path(self.root) / "cifar-10-python.tar.gz").write_text("")

    monkeypatch.setattr(CIFAR10, "download", download)
    check_arrays(load("cifar10", tmp_path / "sets"), arrays)
    assert [path.name for path in (tmp_path / "sets").iterdir()] == ["cifar-10-batches-py"]


def test_importing_it_imports_no_reader():
    unwanted = {"torchvision", "sklearn", "pyarrow", "ray", "mlflow", "pydantic"}
    code = "import sys, harness.data; print(*sys.modules)"
    root = Path(__file__).parents[2]
    output = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True).stdout
    assert not unwanted & set(output.split())


def real(name):
    """The real data set, or a skip that says why there is none."""
    if not REAL:
        pytest.skip("CERDEQ_DATA is not set")
    root = Path(REAL).absolute()
    if layouts.find(DATASETS[name], root) is None:
        pytest.skip(f"CERDEQ_DATA has no {DATASETS[name].title}")
    return load(name, root)


def channel_means(images):
    return images.sum((0, 2, 3), dtype=torch.int64) / images[:, 0].numel() / 255


def test_the_real_cifar10():
    data = real("cifar10")
    if data.train.complete:
        assert data.train.labels.bincount().tolist() == [5000] * 10
        torch.testing.assert_close(channel_means(data.train.images), torch.tensor(data.info.mean), atol=1e-4, rtol=0)
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.test.labels[:20].tolist() == [3, 8, 8, 0, 6, 6, 1, 6, 3, 1, 0, 9, 5, 7, 9, 8, 5, 7, 8, 6]


def test_the_real_mnist():
    data = real("mnist")
    assert len(data.training_images()[0]) == 60_000 and len(data.test_images()) == 10_000
    assert data.train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert data.test.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    torch.testing.assert_close(channel_means(data.train.images), torch.tensor([0.1307]), atol=1e-4, rtol=0)


def test_the_real_tiny_imagenet():
    data = real("tiny-imagenet")
    assert data.test.labels.bincount().tolist() == [50] * 200
    torch.testing.assert_close(channel_means(data.train.images[:5000]), torch.tensor(data.info.mean), atol=5e-3, rtol=0)
    if not data.train.complete:
        with pytest.raises(DataError, match=f"{data.train.found} of 4 train shards found"):
            data.training_images()
    assert len(data.training_images(5000)[0].labels.unique()) == 200
