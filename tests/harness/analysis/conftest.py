"""A sweep's directory."""

import pytest
from judged_trials import publish


@pytest.fixture
def sweep(tmp_path):
    """results/study with a published.csv of its own beside it, which says nothing."""
    (tmp_path / "results/study").mkdir(parents=True)
    publish(tmp_path / "results/study", "")
    return tmp_path / "results/study"
