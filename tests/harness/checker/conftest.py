"""What is checked here is proofs, not how fast counterexamples are found before."""

from unittest.mock import patch

import pytest


@pytest.fixture(scope="module", autouse=True)
def _few_starts():
    """Start the first attack at ten points, not at up to a thousand."""
    with patch("cerdeq.branch.attack._MOST", 10):
        yield
