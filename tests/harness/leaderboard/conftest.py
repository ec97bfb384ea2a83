"""A sweep's directory, and pages without figures, which take seconds."""

import pytest
from made_networks import publish

from harness.report.figures import catalogue


@pytest.fixture(autouse=True)
def _no_figures(monkeypatch):
    monkeypatch.setattr(catalogue, "FIGURES", ())


@pytest.fixture
def sweep(tmp_path):
    """results/study with an empty literature.csv of its own beside it."""
    (tmp_path / "results/study").mkdir(parents=True)
    publish(tmp_path / "results/study", "")
    return tmp_path / "results/study"
