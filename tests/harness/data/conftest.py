"""Nothing here reaches the network; each layout is faked small, with the entry's sizes cut to match."""

import shutil
import socket
from dataclasses import replace

import pytest
from fake_data import SIZES

from baselines.datasets import DATASETS


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
