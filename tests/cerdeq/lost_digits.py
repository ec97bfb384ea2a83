"""Provides sums that lose digits, and checks of Intervals and of functionals by exact rational arithmetic."""

import pytest
import torch
from oracles import DTYPES, Exact, encloses, fractions

from cerdeq.bounds import Context, Interval

COUNT = 4096  # terms of a sum: more than lanes of a processor add up apart

precisions = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def lost(dtype, count=COUNT):
    """Return 1 and many halves of its last digit: summed in few parts, most of them are lost."""
    values = torch.full((count,), torch.finfo(dtype).eps / 2, dtype=dtype)
    values[0] = 1
    return values


def box_of(center, radius=None):
    return Interval(center, torch.zeros_like(center) if radius is None else radius)


def contains(rule, low, high=None):
    """Return whether an Interval contains the fractions from low to high."""
    return encloses(rule.box, Exact(low, low if high is None else high))


def sound():
    return Context(sound=True)


def assert_below(pulled, coefficients, value, sources):
    """Check that a functional of sources, fractions, is at most coefficients . value, both of one point, exactly."""
    rows = fractions(coefficients[0].flatten(1))
    below = fractions(pulled.coefficients[0][0].flatten(1))
    for row, bound, constant in zip(rows, below, fractions(pulled.constant[0]), strict=True):
        exactly = sum(a * v for a, v in zip(row, value, strict=True))
        assert sum(a * v for a, v in zip(bound, sources, strict=True)) + constant <= exactly


def both_signs(values):
    return torch.stack([values, -values])[None]
