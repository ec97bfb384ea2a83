"""Linear bounds through equilibria: the adjoint, multipliers and their rounding."""

import pytest
import torch
from equilibria import solutions
from graphs import contractive
from oracles import Lambda, assert_contains, points_of, random_box
from torch import nn

from cerdeq import bound
from cerdeq.bounds import BOUNDS

pytestmark = pytest.mark.usefixtures("short_searches")


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
