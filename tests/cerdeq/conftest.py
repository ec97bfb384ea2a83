"""Shared by the tests of bounds."""

import pytest

from cerdeq.bounds import operators


@pytest.fixture
def own_operators(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(operators, "_by_function", dict(operators._by_function))
    monkeypatch.setattr(operators, "_by_module", dict(operators._by_module))
