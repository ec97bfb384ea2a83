"""Fixtures of the tests of bounds."""

import pytest

from cerdeq.bounds import optimise
from cerdeq.rules import operators


@pytest.fixture
def own_operators(monkeypatch):
    """Forget after the test what it registered."""
    monkeypatch.setattr(operators, "_by_function", dict(operators._by_function))
    monkeypatch.setattr(operators, "_by_module", dict(operators._by_module))


@pytest.fixture
def short_searches(monkeypatch):
    """Search for slopes in few steps: the bounds of every step must be true."""
    monkeypatch.setattr(optimise, "ITERATIONS", 4)
