"""Linear bounds in one leaf of branch and bound: what a split unit fixes, and which leaves have no input."""

import numpy as np
import pytest
import torch
from torch import nn

from cerdeq.equilibrium import FixedPoint
from harness.checker.bounds.boxes import Box
from harness.checker.bounds.linear import lower_bounds
from harness.checker.bounds.network import read_network
from harness.checker.bounds.regions import interval_region
from harness.checker.bounds.relu_lines import Leaves

OF_BOTH_SIGNS, ABOVE_0 = (0.0, 1.0), (0.15, 0.05)  # centre and radius: x_1 in [-1, 1], x_2 in [0.1, 0.2]


def bound_in_leaf(recurrence, boxes, spec, signs=None):
    """Return the bound of spec . z for z_1 = relu(x_1), z_2 = relu(x_2 + recurrence z_1), x in boxes.

    The network is an equilibrium, or an ordinary ReLU if recurrence is 0. signs: of the leaf; None for no leaf.
    """
    weight = torch.tensor([[0.0, 0.0], [recurrence, 0.0]]).double()
    inject, classifier = nn.Linear(2, 2).double(), nn.Linear(2, 2).double()
    for layer in (inject, classifier):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    activation = FixedPoint(weight) if recurrence else nn.ReLU()
    network = read_network(nn.Sequential(nn.Flatten(), inject, activation, classifier).eval())
    center, radius = np.array(boxes).T[:, None, None, None]
    region, leaf, one = interval_region(network, Box(center, radius)), {}, np.ones((1, 2))
    if signs is not None:
        leaf = {network.steps[2].name: Leaves(np.nan * one, np.array([signs], float), 0 * one, one)}
    (bound,) = lower_bounds(network, region, {4: np.array([spec], float)}, leaf)
    return bound


def test_a_unit_that_is_off_in_a_leaf_leaves_the_others_alone():
    """z_2 = relu(x_2 - z_1 / 2): where z_1 = 0 its input is at least 0.1, elsewhere it may be below 0."""
    assert bound_in_leaf(-0.5, (OF_BOTH_SIGNS, ABOVE_0), [0, 1]) <= 0
    assert bound_in_leaf(-0.5, (OF_BOTH_SIGNS, ABOVE_0), [0, 1], [-1, 0]) == pytest.approx(0.1, abs=1e-12)


@pytest.mark.parametrize(("spec", "exact"), [([0.0, 1.0], 0.0), ([0.0, -1.0], -0.2), ([-0.4, -1.0], -0.4)])
def test_a_unit_that_is_on_in_a_leaf_still_feeds_the_others(spec, exact):
    """z_2 = relu(x_2 - z_1 / 2) for z_1 in [0, 1] and x_2 in [0.1, 0.2]: from 0 to 0.2."""
    assert -1 < bound_in_leaf(-0.5, (OF_BOTH_SIGNS, ABOVE_0), spec, [1, 0]) <= exact + 1e-12


@pytest.mark.parametrize("recurrence", [0, -0.5])
@pytest.mark.parametrize(("signs", "is_empty"), [([-1, 0], True), ([0, 1], True), ([1, 0], False), ([0, -1], False)])
def test_only_an_empty_leaf_has_no_limit(recurrence, signs, is_empty):
    """x_1 is above 0 and x_2 below it, so the first unit is on and the second off."""
    bound = bound_in_leaf(recurrence, ((0.5, 0.25), (-0.5, 0.25)), [1, 1], signs)
    assert bound == (np.inf if is_empty else pytest.approx(0.25, abs=1e-9))


def test_a_leaf_of_an_equilibrium_is_empty_where_units_that_are_off_leave_no_input():
    """Without z_1, p_2 is at least 0.1: no input has both units off. Over the box itself p_2 may be below 0."""
    assert bound_in_leaf(-0.5, (OF_BOTH_SIGNS, ABOVE_0), [0, 1], [-1, -1]) == np.inf
