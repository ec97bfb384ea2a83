"""Parameters of tests with many factors: every pair of values by default, every combination under the marker `slow`."""

import itertools

import pytest


def every_pair(*factors):
    """Return the parameters of all combinations of the factors' values, for `pytest.mark.parametrize`.

    By default run so few that any two values of two factors meet in one of them; the others are marked `slow`.
    """
    grid = [*itertools.product(*(range(len(factor)) for factor in factors))]
    pairs = {numbers: {*itertools.combinations(enumerate(numbers), 2)} for numbers in grid}
    uncovered, fast = set().union(*pairs.values()), set()
    while uncovered:
        best = max(grid, key=lambda numbers: len(pairs[numbers] & uncovered))
        uncovered -= pairs[best]
        fast.add(best)
    marks = [() if numbers in fast else pytest.mark.slow for numbers in grid]
    return [pytest.param(*values, marks=mark) for values, mark in zip(itertools.product(*factors), marks, strict=True)]
