"""What is checked is proofs, not how fast counterexamples are found before. Oracles are those of cerdeq's tests."""

import sys
from pathlib import Path
from unittest.mock import patch

import pytest

sys.path.append(str(Path(__file__).parents[2] / "cerdeq"))


@pytest.fixture(scope="module", autouse=True)
def _few_starts():
    """Start the first attack at ten points, not at up to a thousand."""
    with patch("cerdeq.branch.attack._MOST", 10):
        yield
