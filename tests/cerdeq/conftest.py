"""Fixtures of the tests of bounds."""

import pytest

from cerdeq.bounds import alpha_crown
from cerdeq.operators import table


@pytest.fixture
def own_operators(monkeypatch):
    """Forget after the test what it registered."""
    monkeypatch.setattr(table, "_by_function", dict(table._by_function))
    monkeypatch.setattr(table, "_by_module", dict(table._by_module))


@pytest.fixture
def short_searches(monkeypatch):
    """Search for slopes in few steps: the bounds of every step must be true."""
    monkeypatch.setattr(alpha_crown, "ITERATIONS", 4)
