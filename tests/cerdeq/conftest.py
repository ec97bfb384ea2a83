"""Fixtures of the tests of bounds."""

import pytest

from cerdeq.bounds import alpha_crown, crown, methods
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


@pytest.fixture
def slow_float64(monkeypatch):
    """Compute linear bounds in float32 as far as that may be, as on a GPU whose float64 is slow."""
    for module in (crown, methods):
        monkeypatch.setattr(module, "has_fast_float64", lambda device: False)
