"""Data sets are decoded once; the fingerprint is of their content."""

import os
import re
from dataclasses import replace

import pytest
from fake_data import PARQUET, check_arrays, fake_cifar, fake_parquet, pixels, write_parquet

from baselines import DATASETS
from harness.common.errors import InputError
from harness.data import layouts, load


@pytest.fixture
def caches(small, tmp_path):
    """A function to the files in the cache."""
    return lambda: sorted((tmp_path / "cache" / "cerdeq").iterdir())


def test_decoded_images_are_read_from_the_cache_until_a_file_changes(caches, monkeypatch, tmp_path):
    arrays = fake_parquet(tmp_path)
    first = load("cifar10", tmp_path)
    (cache,) = caches()
    monkeypatch.setattr(layouts, "_decode", None)
    second = load("cifar10", tmp_path)
    check_arrays(second, arrays)
    assert second.fingerprint == first.fingerprint and second.summary() == first.summary()
    second.train.images.zero_()
    check_arrays(load("cifar10", tmp_path), arrays)  # the file is not written to
    os.utime(tmp_path / PARQUET / "test-00000-of-00001.parquet", ns=(1, 1))
    with pytest.raises(InputError, match="not callable"):
        load("cifar10", tmp_path)
    assert caches() == [cache]


def test_a_data_set_whose_labels_or_column_change_is_decoded_again(caches, monkeypatch, tmp_path):
    fake_parquet(tmp_path)
    load("cifar10", tmp_path)
    monkeypatch.setitem(DATASETS, "cifar10", replace(DATASETS["cifar10"], classes=2))
    with pytest.raises(InputError, match="label"):
        load("cifar10", tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "garbage"])
def test_a_damaged_cache_is_built_again(caches, tmp_path, damage):
    arrays = fake_parquet(tmp_path)
    fingerprint = load("cifar10", tmp_path).fingerprint
    (cache,) = caches()
    content = cache.read_bytes()
    cache.write_bytes(content[:-100] if damage == "truncated" else b"garbage" * 99)
    data = load("cifar10", tmp_path)
    check_arrays(data, arrays)
    assert data.fingerprint == fingerprint
    assert caches() == [cache] and cache.read_bytes() == content


def test_without_a_cache_it_goes_on_and_warns(small, monkeypatch, tmp_path, capsys):
    arrays = fake_parquet(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    check_arrays(load("cifar10", tmp_path), arrays)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: CIFAR-10 is decoded again each time") and "set HOME" in line


def test_the_fingerprint_is_of_the_content_and_not_of_the_files(small, monkeypatch, tmp_path):
    fake_parquet(tmp_path / "a", format="PNG")
    fake_parquet(tmp_path / "b", format="WEBP")
    fake_cifar(tmp_path / "c", monkeypatch)
    fingerprints = [load("cifar10", tmp_path / root).fingerprint for root in "abc"]
    assert len(set(fingerprints)) == 1 and re.fullmatch("[0-9a-f]{16}", fingerprints[0])
    images, labels = pixels("cifar10", 20)
    write_parquet(tmp_path / "b" / PARQUET / "train-00000-of-00002.parquet", images[:10], labels[:10][::-1])
    assert load("cifar10", tmp_path / "b").fingerprint != fingerprints[0]
