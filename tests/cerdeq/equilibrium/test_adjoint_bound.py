"""Linear bounds through equilibria: the adjoint, multipliers and their rounding."""

import pytest
import torch
from equilibria import solutions
from graphs import contractive
from oracles import Lambda, assert_contains, points_of, random_box
from torch import nn

from cerdeq import Box, bound
from cerdeq.bounds import BOUNDS

pytestmark = pytest.mark.usefixtures("short_searches")


def equilibrium_model(kernel, rate, seed=0):
    torch.manual_seed(seed)
    layer = contractive(3, rate, kernel)
    if kernel is None:
        return nn.Sequential(nn.Linear(4, 3), layer, nn.Linear(3, 2)).double().eval(), (4,)
    inject = nn.Conv2d(1, 3, 2, padding=1, stride=2)
    return nn.Sequential(inject, layer, nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)).double().eval(), (1, 3, 3)


@pytest.mark.parametrize("method", BOUNDS)
def test_an_equilibrium_may_stand_among_branches_and_be_used_twice(method):
    """One FixedPoint at two places, its input read elsewhere too."""
    torch.manual_seed(8)
    model = Lambda(lambda m, x: m.last(torch.cat([m.point(m.point(m.first(x)) - m.first(x)), m.first(x), x], 1)))
    model.first, model.point, model.last = nn.Linear(3, 3), contractive(3, 0.6), nn.Linear(9, 2)
    model, box = model.double().eval(), random_box(2, 3)
    values = []
    with torch.no_grad():
        for x in points_of(box, 40):
            h, weight = model.first(x), model.point.weight
            z = solutions(weight, solutions(weight, h) - h)
            values.append(model.last(torch.cat([z, h, x], 1)))
    assert_contains(*bound(model, box, method), torch.stack(values))


def test_a_box_of_an_equilibrium_that_is_not_proved_gives_no_bound():
    """A radius of infinity, which the forward pass gives where its check fails."""
    model, shape = equilibrium_model(None, 0.6)
    box = Box(torch.zeros(1, *shape, dtype=torch.float64), torch.full((1, *shape), 1e308, dtype=torch.float64))
    for method in BOUNDS:
        lower, upper = bound(model, box, method)
        assert not lower.isfinite().any() or (lower < -1e300).all()
        assert not upper.isfinite().any() or (upper > 1e300).all()
