"""Deep residual networks: bounds of float32 models are as tight as those of float64, and true; `verify` uses them, too.

Rounding errors grow with depth, and at small radii they are more than the radius.
"""

import copy
from fractions import Fraction

import pytest
import torch
from oracles import exact_value, fractions, points_of
from pairs import every_pair
from torch import nn

from cerdeq import Box, LinfBall, bound, verify
from cerdeq.bounds import BOUNDS, Interval, lower_bounds, trace
from cerdeq.bounds.float32 import in_float32

pytestmark = pytest.mark.usefixtures("short_searches")
LINEAR = [name for name in BOUNDS if BOUNDS[name].linear]


class Residual(nn.Module):
    """x + W relu(V relu(x))."""

    def __init__(self, make):
        super().__init__()
        self.branch = nn.Sequential(nn.ReLU(), make(), nn.ReLU(), make())

    def forward(self, x):
        return x + self.branch(x)


def dense(blocks):
    layers = [nn.Linear(6, 32), *[Residual(lambda: nn.Linear(32, 32)) for _ in range(blocks)], nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 2)), (6,)


def convolutional(blocks):
    layers = [nn.Conv2d(1, 8, 3, padding=1)]
    layers += [Residual(lambda: nn.Conv2d(8, 8, 3, padding=1)) for _ in range(blocks)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 25, 2)), (1, 5, 5)


def float32_network(make, blocks, seed=0):
    torch.manual_seed(seed)
    model, shape = make(blocks)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0, 1.2 / parameter[0].numel() ** 0.5 if parameter.dim() > 1 else 0.1)
    return model.eval(), torch.rand(1, *shape)


@pytest.mark.parametrize(
    ("make", "blocks", "eps", "method"), every_pair([dense, convolutional], [1, 4, 10], [1e-5, 1e-3, 0.02], LINEAR)
)
def test_float32_bounds_are_within_one_percent_of_those_of_float64(make, blocks, eps, method):
    model, x = float32_network(make, blocks)
    ball, exact = LinfBall(x, eps, -1, 2), copy.deepcopy(model).double()
    (lower, upper), (low, high) = bound(model, ball, method), bound(exact, ball.double(), method)
    assert lower.dtype == torch.float32
    last_digits = 8 * torch.finfo(torch.float32).eps * torch.maximum(low.abs(), high.abs())
    assert (upper.double() - lower.double() <= 1.01 * (high - low) + last_digits).all()
    with torch.no_grad():
        values = torch.stack([exact(point) for point in points_of(ball.double(), 50)])
    assert (lower.double() <= values + 1e-12).all() and (values - 1e-12 <= upper.double()).all()


@pytest.mark.parametrize("method", LINEAR)
@pytest.mark.parametrize("in_own_precision", [False, True])
def test_bounds_of_points_contain_their_exact_outputs(method, in_own_precision, request):
    if in_own_precision:
        request.getfixturevalue("slow_float64")
    for seed in range(3):
        model, x = float32_network(dense, 3, seed)
        values = exact_value(model, fractions(x[0]))
        for dtype in (torch.float32, torch.float64):
            lower, upper = bound(model.to(dtype), Box(x.to(dtype), torch.zeros_like(x, dtype=dtype)), method)
            ends = zip(lower[0].tolist(), values, upper[0].tolist(), strict=True)
            assert all(Fraction(low) <= value <= Fraction(high) for low, value, high in ends)
        model.float()


def tight_question(make, blocks, eps):
    """Return a float64 network whose only margin CROWN bounds by a hundredth of its width above 0, a region, a row."""
    model, x = float32_network(make, blocks)
    model.double()
    ball = LinfBall(x.double(), eps, -1, 2)
    row = torch.tensor([[[1.0, 0.0]]]).double()
    lower, upper = (end.item() for end in bound(model, ball, "crown", row))
    with torch.no_grad():
        model[-1].bias[0] += 0.01 * (upper - lower) - lower
        model[-1].bias.copy_(model[-1].bias.float())  # so that float32 has the same number
    assert bound(model, ball, "crown", row)[0].item() > 0
    return model, ball, row


@pytest.mark.parametrize("make", [dense, convolutional])
def test_verify_and_the_stages_use_boxes_that_float32_has_not_loosened(make):
    """What CROWN proves in float64, `verify` proves before any branch; so does the stage `crown` of evaluations."""
    model, ball, row = tight_question(make, 8, 1e-4)
    program, float32 = trace(model, linear=True), in_float32(model, linear=True)
    assert float32 is not None
    lower = lower_bounds(program, Interval(ball.center, ball.radius), row, "crown", 0.0, float32=float32)
    assert lower.item() > 0
    result = verify(model, ball, row, branches=0)
    assert result.status == ["certified"] and result.branches.item() == 0
