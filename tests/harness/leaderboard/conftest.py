"""A sweep's directory."""

import pytest
from made_trials import publish


@pytest.fixture
def sweep(tmp_path):
    """results/study with an empty published.csv of its own beside it."""
    (tmp_path / "results/study").mkdir(parents=True)
    publish(tmp_path / "results/study", "")
    return tmp_path / "results/study"
