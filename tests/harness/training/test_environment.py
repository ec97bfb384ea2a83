"""Where a number was computed. A worker whose source is not the driver's trains nothing."""

import shutil
from pathlib import Path

import pytest
import torch
from steppers import train_network

import harness
from harness.common.errors import SettingError
from harness.machine import environment
from harness.storage import folder


def test_another_source_fails_before_training_and_is_not_tried_again(tmp_path, tiny_training):
    with pytest.raises(SettingError, match=f"code: found '{environment.source_digest()}'"):
        train_network(tiny_training(), tmp_path, code="0" * 16)
    assert "the driver's, 0000000000000000" in folder.read_failure(tmp_path).error
    assert not (tmp_path / folder.EPOCHS).exists()


def test_the_digest_is_of_the_source_wherever_it_lies(tmp_path, monkeypatch):
    root = Path(harness.__file__).parents[1]
    for package in ("cerdeq", "baselines", "harness"):
        shutil.copytree(root / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "harness/machine/environment.py"))
    digest = environment.source_digest.__wrapped__
    assert digest() == environment.source_digest()
    (tmp_path / "cerdeq/boxes.py").write_text("changed")
    assert digest() != environment.source_digest()


def test_cpus_whose_rounding_differs_have_different_names(monkeypatch):
    """The same seed gives other numbers there."""
    names = set()
    for capability in ("AVX2", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda capability=capability: capability)
        names.add(environment.describe_environment(torch.device("cpu"))["device"])
    assert {name.rpartition(" ")[2] for name in names} == {"AVX2", "AVX512"}
