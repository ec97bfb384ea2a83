"""Linear bounds of networks in float32 are as tight as those in float64."""

import copy

import pytest
import torch
from small_networks import NAMED, small

from baselines.contract import images
from cerdeq import LinfBall, bound

FAST = ("cnn5", "conv", "fc")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in NAMED])
def test_float32_bounds_are_within_one_percent_of_those_of_float64(name):
    torch.manual_seed(0)
    model = small(name, "cifar10").float().eval()
    ball = LinfBall(images("cifar10", 1).float(), 2 / 255)
    lower, upper = bound(model, ball, "crown")
    low, high = bound(copy.deepcopy(model).double(), ball.double(), "crown")
    assert (upper.double() - lower.double() <= 1.01 * (high - low)).all()
    assert (lower <= low).all() and (high <= upper).all()
