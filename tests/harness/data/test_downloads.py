"""Where data sets are searched, what is downloaded, and the message where neither helps."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fake_data import PARQUET, check_arrays, fake_cifar, fake_parquet, fake_tiny_imagenet

from baselines.datasets import DATASETS
from harness.common.errors import InputError
from harness.data import layouts, load
from harness.machine.environment import data_directory


def test_the_data_directory_is_the_option_then_the_environment_then_data(small, monkeypatch, tmp_path):
    assert data_directory() == Path("data")
    monkeypatch.setenv("CERDEQ_DATA", "")
    assert data_directory(None) == Path("data")
    monkeypatch.setenv("CERDEQ_DATA", str(tmp_path))
    assert data_directory() == tmp_path
    fake_parquet(tmp_path)
    assert load("cifar10").directory == tmp_path / PARQUET
    assert data_directory("elsewhere") == Path("elsewhere")
    monkeypatch.setenv("HOME", "/home/someone")
    assert data_directory("~/sets") == Path("/home/someone/sets")


@pytest.mark.parametrize("name", ["cifar10", "mnist", "tiny-imagenet"])
def test_missing_and_offline_says_where_it_looked_and_what_to_do(tmp_path, name):
    with pytest.raises(InputError, match="blocked by the test") as error:
        load(name, tmp_path / "sets")
    message = str(error.value)
    for folder in DATASETS[name].folders:
        assert str(tmp_path / "sets" / folder) in message
    assert layouts.ORIGINALS[name].files in message
    assert f"{DATASETS[name].test_split}-00000-of-0000N.parquet" in message
    assert "--data-dir" in message and "CERDEQ_DATA" in message
    assert not list((tmp_path / "sets").iterdir()), "no half download stays"


def test_a_parquet_only_data_set_needs_its_entry_alone(monkeypatch, tmp_path):
    entry = replace(DATASETS["cifar10"], name="new", title="New", folders=("new",), train_size=20, test_size=6)
    monkeypatch.setitem(DATASETS, "new", entry)
    with pytest.raises(InputError, match="New was not found, and there is no download for it"):
        load("new", tmp_path)
    arrays = fake_parquet(tmp_path)
    (tmp_path / PARQUET).rename(tmp_path / "new")
    check_arrays(load("new", tmp_path), arrays)


def test_tiny_imagenet_is_downloaded_unpacked_and_read_again(small, monkeypatch, tmp_path):
    fake_tiny_imagenet(tmp_path / "server" / "tiny-imagenet-200")
    archive = Path(shutil.make_archive(str(tmp_path / "tiny"), "zip", tmp_path / "server"))
    monkeypatch.setattr(layouts, "TINY_IMAGENET_URL", archive.as_uri())
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", lambda url, path: shutil.copy(archive, path))
    monkeypatch.setattr(layouts, "TINY_IMAGENET_MD5", "0" * 32)
    with pytest.raises(InputError, match="File not found or corrupted"):
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
