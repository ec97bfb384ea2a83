"""Each layout of data sets, small, with random pixels."""

import gzip
import hashlib
import io
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from scipy.io import savemat

from baselines.datasets import DATASETS

PARQUET = "cifar10/plain_text"
SIZES = {"cifar10": (20, 6), "mnist": (9, 4), "fashion-mnist": (9, 4), "svhn": (7, 3), "tiny-imagenet": (8, 4)}


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
    folder = root / PARQUET
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


def fake_mnist(root, suffix=".gz", folder="MNIST"):
    raw = root / folder / "raw"
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
    digest = write("batches.meta", {"label_names": [str(label) for label in range(10)]})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": digest})
    return images, labels, test_images, test_labels


def fake_svhn(root):
    """SVHN as published: images last, labels from 1 to 10, which stands for 0."""
    root.mkdir(parents=True, exist_ok=True)
    arrays = []
    for seed, (split, count) in enumerate(zip(("train", "test"), SIZES["svhn"], strict=True)):
        images, labels = pixels("svhn", count, seed)
        content = {"X": images.transpose(2, 3, 1, 0), "y": np.where(labels == 0, 10, labels).astype(np.uint8)[:, None]}
        savemat(root / f"{split}_32x32.mat", content)
        arrays += [images, labels]
    return arrays


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
