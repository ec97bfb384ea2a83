"""Data sets are decoded once; the fingerprint is of their content."""

import os
import re

import pytest
from fake_data import check_arrays, fake_cifar, fake_parquet, pixels, write_parquet

from harness.data import DataError, layouts, load


def cache_files(tmp_path):
    return sorted((tmp_path / "cache" / "cerdeq").iterdir())


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
    with pytest.warns(UserWarning, match="CIFAR-10 is decoded again each time"):
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
